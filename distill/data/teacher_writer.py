"""One round of asking the teacher: for user turns and their answers, or for texts.

A user turn is the teacher's own continuation of its chat template up to where a user's message begins, under a system
prompt that steers it and after a message's first words; it is then answered without that system prompt.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill.data.filters import Seen, answers_itself, refuse
from distill.data.topics import CHAT_KINDS, TEXT_KINDS, Ask, draw
from distill_eval.backends.base import Backend
from distill_eval.errors import CheckpointError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, Sampling

USER, ANSWER, TEXT = "user", "answer", "text"
# Above 0.8 a small teacher's user turns fall apart.
USER_SAMPLING = Sampling(temperature=0.8, top_p=0.95, top_k=100)
ANSWER_SAMPLING = Sampling(temperature=0.7, top_p=0.8, top_k=20)  # the paper's, Appendix B
TEXT_SAMPLING = Sampling(temperature=0.9, top_p=0.95, top_k=100)
LEAST_WORDS = {USER: 3, ANSWER: 1, TEXT: 20}
_MESSAGE, _OTHER = "@@message@@", "@@other@@"


@dataclass(frozen=True)
class Making:
    """What to make. Tokens are those that the teacher wrote and that are kept; the sampling's seeds are ``seed``."""

    chat_tokens: int
    text_tokens: int
    seed: int = 0
    user: Sampling = USER_SAMPLING
    answer: Sampling = ANSWER_SAMPLING
    text: Sampling = TEXT_SAMPLING
    max_user_tokens: int = 256
    max_new_tokens: int = 512  # of an answer or a text
    keep_unfinished: bool = False  # answers cut at that limit; cut texts are always kept, user turns never
    round_size: int = 4096  # requests


@dataclass
class Draft:
    """A chat (user turn, answer, ...) or a text while it is made; ``why`` it is dropped, if it is."""

    index: int
    ask: Ask
    said: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # how many the teacher wrote, by part
    why: str | None = None
    cut_short: str | None = None  # why a second exchange was left out

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens)

    def messages(self) -> list[dict[str, str]]:
        """Return a chat's messages."""
        roles = ("user", "assistant")
        return [{"role": roles[n % 2], "content": text} for n, text in enumerate(self.said)]


class Writer:
    """The teacher as it is asked here: its template, its tokens and the backend that runs it."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any, backend: Backend, making: Making) -> None:
        self.label, self.making = checkpoint.label, making
        self.generated_tokens = 0
        self.on_tokens: Callable[[int], None] = lambda generated: None
        self._tokenizer, self._backend, self._most = tokenizer, backend, checkpoint.max_positions
        added = tokenizer.added_tokens_decoder.items()
        self._special = frozenset(tokenizer.all_special_ids) | {token for token, it in added if it.special}
        self.markers: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._takes_system = True
        if making.chat_tokens:
            self._learn_template()

    def _learn_template(self) -> None:
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                f"teacher '{self.label}' has no chat template, so it can write no chats: take an instruction-tuned "
                "one, or --chat-tokens 0"
            )
        try:
            self._takes_system = _OTHER in self.user_prefix([], _OTHER)
        except CheckpointError:
            self._takes_system = False
        if not self._takes_system:
            self.notes = (
                f"{self.label}: its template takes no system prompt, so none steered the user turns",
            )
        # What stands between two messages must stand in none.
        chat = [{"role": "user", "content": _OTHER}, {"role": "assistant", "content": _MESSAGE}]
        between = self.render(chat).partition(_OTHER)[2].partition(_MESSAGE)[0]
        special = self._tokenizer.convert_ids_to_tokens(sorted(self._special))
        for token in special:
            between = between.replace(token, "\n")
        lines = [line.strip() for line in between.splitlines()]
        # A role's bare name is a word like others.
        self.markers = (*special, *(line for line in lines if re.search(r"[^\w\s]", line)))

    def render(self, messages: Sequence[dict[str, str]], *, answer: bool = False) -> str:
        """Return ``messages`` as the template writes them, and with ``answer`` what an answer begins after."""
        from jinja2.exceptions import TemplateError

        try:
            # A template that knows no thinking does not mind that it is off.
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer, enable_thinking=False
            )
        except TemplateError as error:
            raise CheckpointError(
                f"teacher '{self.label}': its chat template cannot be used ({error})"
            ) from error

    def user_prefix(self, messages: Sequence[dict[str, str]], system: str = "") -> str:
        """Return the template's text up to where the next user's message begins."""
        first = [{"role": "system", "content": system}] if system and self._takes_system else []
        rendered = self.render([*first, *messages, {"role": "user", "content": _MESSAGE}])
        head, found, _ = rendered.rpartition(_MESSAGE)
        if not found:
            raise CheckpointError(
                f"teacher '{self.label}': its chat template shows no user's message as it is"
            )
        return head

    def document_start(self) -> tuple[int, ...]:
        """Return the token that a document begins after: what the tokenizer puts there, else what parts documents."""
        put = self._tokenizer("a")["input_ids"][:1]
        if put and put[0] in self._special:
            return tuple(put)
        vocabulary = self._tokenizer.get_vocab()
        for token in ("<|endoftext|>", self._tokenizer.bos_token, self._tokenizer.eos_token):
            if token in vocabulary:
                return (vocabulary[token],)
        raise CheckpointError(f"teacher '{self.label}': its tokenizer has no token that a text begins after")

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each text and nothing before them."""
        found = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [tuple(ids) for ids in found]

    def write(
        self, drafts: Sequence[Draft], prompts: Sequence[tuple[int, ...]], sampling: Sampling, most: int
    ) -> list[GenerateResponse | None]:
        """Return how the teacher goes on after each draft's prompt; None where there is no room for ``most`` tokens."""
        sampling = replace(sampling, seed=self.making.seed)
        places = [n for n, prompt in enumerate(prompts) if not self._most or len(prompt) + most <= self._most]
        requests = [GenerateRequest(prompts[n], most, sampling, repeat=drafts[n].index) for n in places]
        responses: list[GenerateResponse | None] = [None] * len(prompts)
        for place, response in self._backend.generate(requests):
            responses[places[place]] = response
            self.generated_tokens += len(response.tokens)
            self.on_tokens(self.generated_tokens)
        return responses

    def before_special(self, response: GenerateResponse) -> tuple[str, int, bool]:
        """Return the text up to the first special token, its tokens, and whether that was not the last token."""
        tokens = response.tokens
        if self._special.isdisjoint(tokens[:-1]):
            return response.text, len(tokens), False
        end = next(place for place, token in enumerate(tokens) if token in self._special)
        return self._tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False), end + 1, True


def make_chats(writer: Writer, indices: Sequence[int], seen: Seen) -> list[Draft]:
    """Return the chats of ``indices``, those dropped too; ``seen`` takes in the first user turns of those kept."""
    drafts = [Draft(index, draw(CHAT_KINDS, writer.making.seed, index)) for index in indices]
    asking = drafts
    while asking:
        _write_user_turns(writer, asking)
        if not asking[0].said[1:]:
            for draft in asking:
                draft.why = draft.why or _prefixed(USER, seen.add(draft.said[0]))
        answering = [draft for draft in asking if draft.why is None]
        _write_answers(writer, answering)
        for draft in asking:
            if draft.why and len(draft.said) > 2:  # the first exchange is as good as it was
                draft.cut_short, draft.why = draft.why, None
                draft.said, draft.tokens = draft.said[:2], draft.tokens[:2]
            elif draft.why and len(draft.said) == 2:
                seen.discard(draft.said[0])
        asking = [
            draft
            for draft in asking
            if not (draft.why or draft.cut_short) and len(draft.said) < 2 * draft.ask.turns
        ]
    return drafts


def _write_user_turns(writer: Writer, drafts: Sequence[Draft]) -> None:
    heads = [writer.user_prefix(draft.messages(), draft.ask.system) for draft in drafts]
    begun = ["" if draft.said else draft.ask.beginning for draft in drafts]
    prompts = writer.encode([head + words for head, words in zip(heads, begun, strict=True)])
    responses = writer.write(drafts, prompts, writer.making.user, writer.making.max_user_tokens)
    for draft, words, response in zip(drafts, begun, responses, strict=True):
        _say(writer, draft, response, USER, begun=words)
        if draft.why is None and answers_itself(draft.said[-1]):
            draft.why = _prefixed(USER, "answers itself")


def _write_answers(writer: Writer, drafts: Sequence[Draft]) -> None:
    prompts = writer.encode([writer.render(draft.messages(), answer=True) for draft in drafts])
    responses = writer.write(drafts, prompts, writer.making.answer, writer.making.max_new_tokens)
    for draft, response in zip(drafts, responses, strict=True):
        _say(writer, draft, response, ANSWER, unfinished=writer.making.keep_unfinished)


def _say(
    writer: Writer,
    draft: Draft,
    response: GenerateResponse | None,
    role: str,
    *,
    begun: str = "",
    unfinished: bool = False,
) -> None:
    """Add the message that the teacher wrote to ``draft``, or say why it is dropped."""
    text, num_tokens, special = writer.before_special(response) if response else ("", 0, False)
    if response is None:
        why = "no room"
    elif special:
        why = "markers"
    elif response.finish_reason == "loop":
        why = "loop"
    elif response.finish_reason == "length" and not unfinished:
        why = "unfinished"
    elif not text.strip():
        why = "empty"
    else:
        why = refuse(begun + text, least_words=LEAST_WORDS[role], markers=writer.markers)
    draft.said.append((begun + text).strip())
    draft.tokens.append(num_tokens)
    draft.why = _prefixed(role, why)


def _prefixed(role: str, why: str | None) -> str | None:
    return f"{role}: {why}" if why else None


def make_texts(writer: Writer, indices: Sequence[int], seen: Seen) -> list[Draft]:
    """Return the texts of ``indices``, those dropped too; ``seen`` takes in those kept."""
    start, making = writer.document_start(), writer.making
    drafts = [Draft(index, draw(TEXT_KINDS, making.seed, index)) for index in indices]
    prompts = [start + begun for begun in writer.encode([draft.ask.beginning for draft in drafts])]
    responses = writer.write(drafts, prompts, making.text, making.max_new_tokens)
    for draft, response in zip(drafts, responses, strict=True):
        if response is None:
            draft.why = "no room"
            continue
        # Another document may begin behind a special token.
        written, num_tokens, special = writer.before_special(response)
        text = (draft.ask.beginning + written).strip()
        draft.said, draft.tokens = [text], [num_tokens]
        if response.finish_reason == "loop" and not special:
            draft.why = "loop"
            continue
        draft.why = refuse(text, least_words=LEAST_WORDS[TEXT]) or seen.add(text)
    return drafts
