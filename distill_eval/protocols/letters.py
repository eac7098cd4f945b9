"""The bridging arm ``letters``: EvalScope's very prompt, the options' letters ranked by log-likelihood.

It has the generative protocol's prompt and the log-likelihood protocol's decision. Log-likelihood minus letters is
therefore what the format does (options hidden and spelled out, or shown and named by letter), letters minus
generation what decoding and extraction do. Only for prompts that ask for a letter at once: after reasoning, the
letter's likelihood without that reasoning says something else.

What is scored is the whole answer in the form the prompt asks for (``generative.letters`` of the task file).
All options share what stands before the letter, so their order is that of the letters alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from distill_eval.errors import TaskError
from distill_eval.protocols.evalscope_data import ITEM_KEY
from distill_eval.protocols.evalscope_own import LETTERS as ALPHABET
from distill_eval.protocols.generative import LoadedGenerative, build_prompts, chosen_keys
from distill_eval.protocols.prompts import Prompt, encode, find_template
from distill_eval.schema.records import LETTERS, Record
from distill_eval.schema.requests import ScoreRequest
from distill_eval.schema.run import RunOptions

ENCODED_AT_ONCE = 512  # items; bounds the tokenizer's working memory
APART = "the answer was tokenised apart from the prompt"


def check(loaded: LoadedGenerative) -> None:
    """Raise TaskError for a task with this arm whose items show no options or have a gold answer outside them."""
    for key, num_options in _num_options(loaded).items():
        gold = _gold(loaded, key)
        if not gold or not gold <= set(ALPHABET[:num_options]):
            raise TaskError(
                f"task '{loaded.task.name}': generative.letters needs items with options and a letter for an "
                f"answer; '{loaded.benchmark.items[key].question[:60]}' has {num_options} options and the answer "
                f"'{loaded.benchmark.targets[key][:20]}' ({loaded.task.source_file})"
            )


def run(loaded: LoadedGenerative, selected: Iterable[str], client: Any, options: RunOptions) -> list[Record]:
    """Rank the letters of every selected item with one call of ``client.score``; records in data set order.

    Prompts are token for token those of ``generative.build_requests``; ``choice_logprobs`` and letters are in
    the order in which the prompt shows the options.
    """
    keys = chosen_keys(loaded, selected)
    if not keys:
        return []
    prompts = build_prompts(loaded, keys, client.tokenizer, options, client.max_length)
    num_options = _num_options(loaded)
    answers = [_answers(loaded, num_options[key]) for key in keys]
    split = _continuations(prompts, answers, client.tokenizer, options)
    requests = [
        _requests(prompt, continuations, client.max_length)
        for prompt, (continuations, _) in zip(prompts, split, strict=True)
    ]
    flat = [request for group in requests for request in group]
    responses = iter(client.score(flat, label=loaded.task.name))
    records = []
    for key, prompt, texts, group, (_, apart) in zip(keys, prompts, answers, requests, split, strict=True):
        logprobs = tuple(next(responses).logprob for _ in group)
        records.append(_record(loaded, key, prompt, texts, group, logprobs, apart, client.checkpoint))
    return records


def _num_options(loaded: LoadedGenerative) -> dict[str, int]:
    return {
        sample.metadata[ITEM_KEY]: len(sample.choices or ())
        for part in loaded.benchmark.samples.values()
        for sample in part
    }


def _gold(loaded: LoadedGenerative, key: str) -> set[str]:
    # Several right letters stand in one target, separated by commas.
    return {letter.strip() for letter in loaded.benchmark.targets[key].split(",")}


def _answers(loaded: LoadedGenerative, num_options: int) -> list[str]:
    assert loaded.task.generative is not None
    assert loaded.task.generative.letters is not None
    return [loaded.task.generative.letters.replace("{letter}", mark) for mark in ALPHABET[:num_options]]


def _continuations(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], tokenizer: Any, options: RunOptions
) -> list[tuple[list[tuple[int, ...]], bool]]:
    """Return for each item the token ids of its answers, and whether they were tokenised apart.

    Prompt and answer are tokenised together and divided where the prompt's own tokens end, as they would
    follow when generated; where the two run together (another first token), the answer is tokenised by itself.
    """
    templated = find_template(tokenizer, options)[0] is not None
    found = []
    for first in range(0, len(prompts), ENCODED_AT_ONCE):
        part = prompts[first : first + ENCODED_AT_ONCE]
        # A plain prompt ends with the last option: the answer begins on a line of its own.
        texts = [
            [answer if templated or answer[0].isspace() else f"\n{answer}" for answer in group]
            for group in answers[first : first + ENCODED_AT_ONCE]
        ]
        alone = encode([prompt.text for prompt in part], tokenizer, templated)
        together = iter(
            encode([p.text + text for p, group in zip(part, texts, strict=True) for text in group],
                   tokenizer, templated)
        )  # fmt: skip
        for head, group in zip(alone, texts, strict=True):
            whole = [next(together) for _ in group]
            apart = any(ids[: len(head)] != head or len(ids) == len(head) for ids in whole)
            split = encode(group, tokenizer, True) if apart else [ids[len(head) :] for ids in whole]
            found.append((split, apart))
    return found


def _requests(
    prompt: Prompt, continuations: Sequence[tuple[int, ...]], max_length: int
) -> list[ScoreRequest]:
    # The last token is only predicted. All letters of an item are ranked after the same context.
    kept = max_length + 1 - max(map(len, continuations))
    return [ScoreRequest(prompt.tokens[-kept:], continuation) for continuation in continuations]


def _record(
    loaded: LoadedGenerative,
    key: str,
    prompt: Prompt,
    texts: Sequence[str],
    requests: Sequence[ScoreRequest],
    logprobs: tuple[float, ...],
    apart: bool,
    checkpoint: Any,
) -> Record:
    item = loaded.benchmark.items[key]
    best = max(range(len(logprobs)), key=logprobs.__getitem__)
    acc = float(ALPHABET[best] in _gold(loaded, key))
    metadata = {name: note for name, note in prompt.notes.items() if name != "max_new_tokens"}
    num_tokens = len(requests[best].context)
    if num_tokens < len(prompt.tokens):
        metadata["cut_for_answer"] = (
            f"the first {len(prompt.tokens) - num_tokens} of {len(prompt.tokens)} tokens"
        )
    if apart:
        metadata["answer_tokens"] = APART
    return Record(
        checkpoint=checkpoint.label,
        fingerprint=checkpoint.fingerprint,
        task=loaded.task.name,
        protocol=LETTERS,
        item_key=key,
        subset=item.subset,
        cluster=item.cluster,
        seed=None,
        prompt=prompt.text,
        output=texts[best],
        target=loaded.benchmark.targets[key],
        extracted=ALPHABET[best],
        score=acc,
        chance=item.chance,
        num_prompt_tokens=num_tokens,
        num_output_tokens=len(requests[best].continuation),
        finish_reason="scored",
        scores={"acc": acc},
        choice_logprobs=logprobs,
        metadata=metadata,
    )
