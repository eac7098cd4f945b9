"""What every generation shares: chat template, tokens, room in the model's positions, sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill_eval.errors import CheckpointError, OptionError
from distill_eval.schema.requests import GREEDY, GenerateRequest
from distill_eval.schema.run import RunOptions

Messages = tuple[tuple[str, str], ...]
"""A chat as (role, text) pairs: what an answer is looked up by."""

NO_TEMPLATE = "none: messages joined by blank lines"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One item as the model gets it: rendered text, token ids, how much it may say, and what was done."""

    text: str
    tokens: tuple[int, ...]
    max_new_tokens: int
    notes: dict[str, str]


def find_template(tokenizer: Any, options: RunOptions) -> tuple[str | None, dict[str, str]]:
    """Return the text of the chat template to use, and what a Record notes about it."""
    if options.chat_template is not None:
        return options.chat_template, {"chat_template": "given"}
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), None)
    return (own, {"chat_template": "own"}) if own else (None, {"chat_template": NO_TEMPLATE})


def with_system(chat: Messages, options: RunOptions) -> Messages:
    """Return ``chat`` with the system prompt asked for, if one is, in place of its own."""
    if options.system_prompt is None:
        return chat
    return (("system", options.system_prompt), *(message for message in chat if message[0] != "system"))


def render_chat(chat: Messages, tokenizer: Any, template: str | None, task: str) -> str:
    """Return a chat as text; without a template its messages joined by blank lines.

    Raises OptionError or CheckpointError for a template that refuses it; ``task`` is named there.
    """
    from jinja2.exceptions import TemplateError

    if template is None:
        return "\n\n".join(text for _, text in chat)
    thinking = {"enable_thinking": False} if "enable_thinking" in template else {}
    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in chat],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **thinking,
        )
    except TemplateError as error:
        if chat[0][0] == "system":
            raise OptionError(
                f"task '{task}': the chat template takes no system prompt ({error}); leave out --system-prompt"
            ) from error
        raise CheckpointError(
            f"task '{task}': the chat template cannot be used ({error}); give another with --chat-template"
        ) from error


def encode(texts: Sequence[str], tokenizer: Any, templated: bool) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt.

    A template writes its own special tokens; plain text gets those the tokenizer adds.
    """
    # verbose=False: whether a text is too long is found out elsewhere.
    ids = tokenizer(list(texts), add_special_tokens=not templated, verbose=False)["input_ids"]
    return [tuple(row) for row in ids]


def fitted(
    text: str, tokens: tuple[int, ...], wanted: int, max_length: int | None, notes: dict[str, str]
) -> Prompt:
    """Fit prompt and answer into ``max_length`` positions: the answer gives way first."""
    if max_length is None or len(tokens) + wanted <= max_length:
        return Prompt(text, tokens, wanted, notes)
    # Examples and question stay whole as long as an answer of some length has room; a chat whose head is cut
    # off is no chat any more.
    least = min(wanted, max(1, max_length // 4))
    room = max_length - len(tokens)
    if room >= least:
        return Prompt(text, tokens, room, notes | {"max_new_tokens": f"{room} instead of {wanted}"})
    kept = tokens[-(max_length - least) :]
    dropped = f"the first {len(tokens) - len(kept)} of {len(tokens)} tokens"
    return Prompt(
        text, kept, least, notes | {"max_new_tokens": f"{least} instead of {wanted}", "prompt_cut": dropped}
    )


def request(prompt: Prompt, options: RunOptions, seed: int, stop: tuple[str, ...] = ()) -> GenerateRequest:
    """Return the request for one draw of ``prompt`` with the run's sampling."""
    # Greedy decoding draws nothing: whatever the seed and the cut-offs say, it is the same request.
    sampling = GREEDY if options.sampling.greedy else replace(options.sampling, seed=seed)
    return GenerateRequest(prompt.tokens, prompt.max_new_tokens, sampling, stop)
