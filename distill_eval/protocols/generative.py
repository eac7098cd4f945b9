"""The generative protocol: EvalScope's prompts, our tokens, EvalScope's scores.

A task is loaded once, before any model: EvalScope's adapter turns its rows into chats. The chats become
token ids through the checkpoint's chat template and are answered in batches of ours. When the model is gone,
EvalScope runs for real, with a model that only looks answers up, and its reviews become Records.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval.errors import StoreError
from distill_eval.items import Item
from distill_eval.protocols.evalscope_data import METRIC_ALIASES, Benchmark, load_benchmark
from distill_eval.protocols.evalscope_engine import import_evalscope
from distill_eval.protocols.evalscope_own import load_own_items
from distill_eval.protocols.evalscope_scoring import Answer, Review, plain_messages, score_answers
from distill_eval.protocols.model_code import code_method
from distill_eval.protocols.prompts import (
    Messages,
    Prompt,
    encode,
    find_template,
    fitted,
    render_chat,
    request,
    with_system,
)
from distill_eval.schema.records import GENERATIVE, Record
from distill_eval.schema.requests import GenerateRequest
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, TaskSpec


@dataclass(frozen=True, slots=True)
class LoadedGenerative:
    """A task's items and chats.

    ``timings`` (seconds): ``import`` and ``build`` are EvalScope's start-up and data; ``prompts`` the chat
    template and tokenising, ``scorer`` EvalScope's run over the answers, both summed over calls.
    """

    task: TaskSpec
    items: tuple[Item, ...]
    benchmark: Benchmark
    chats: dict[str, Messages]
    timings: dict[str, float]


def load(task: TaskSpec, data_dir: Path | None) -> LoadedGenerative:
    """Load every item of ``task`` through EvalScope, with the keys both protocols share.

    Raises DataError for data that is missing, empty or has no gold answers, TaskError for what EvalScope does
    not have; both before any model is loaded.
    """
    start = time.perf_counter()
    import_evalscope()
    started = time.perf_counter()
    benchmark = load_own_items(task) if task.items else load_benchmark(task, data_dir)
    built = time.perf_counter()
    timings = {"import": started - start, "build": built - started, "prompts": 0.0, "scorer": 0.0}
    chats = {
        sample.metadata["item_key"]: plain_messages(sample)
        for part in benchmark.samples.values()
        for sample in part
    }
    return LoadedGenerative(task, tuple(benchmark.items.values()), benchmark, chats, timings)


def check_runnable(loaded: LoadedGenerative, options: RunOptions) -> None:
    """Raise SandboxError for a task that runs model-written code where no sandbox can be had."""
    if _spec(loaded.task).runs_code and not options.allow_unsandboxed_code:
        code_method(loaded.task.name, options)


def build_requests(
    loaded: LoadedGenerative,
    selected: Iterable[str],
    tokenizer: Any,
    options: RunOptions,
    seed: int,
    *,
    max_length: int | None = None,
) -> list[GenerateRequest]:
    """Return one request for each selected item, in data set order.

    ``max_length``: positions the checkpoint has (``client.max_length``); a prompt that leaves no room for the
    new tokens asked for gets fewer, and loses its beginning only when it fills the positions by itself.
    """
    prompts = build_prompts(loaded, chosen_keys(loaded, selected), tokenizer, options, max_length)
    return [request(prompt, options, seed) for prompt in prompts]


def score(
    loaded: LoadedGenerative, selected: Iterable[str], client: Any, options: RunOptions, seed: int
) -> list[Record]:
    """Let EvalScope score the stored answers and return one Record for each selected item, in data set order.

    Calls no model: answers come from ``client.lookup_generate``, and one that is not there raises StoreError.
    """
    chosen = chosen_keys(loaded, selected)
    prompts = build_prompts(loaded, chosen, client.tokenizer, options, client.max_length)
    responses = client.lookup_generate([request(prompt, options, seed) for prompt in prompts])
    absent = sum(response is None for response in responses)
    if absent:
        raise StoreError(
            f"task '{loaded.task.name}': {absent} of {len(chosen)} answers of '{client.checkpoint.label}' "
            f"are not in the response cache; generate them first"
        )
    answers = {
        key: Answer(response.text, response.finish_reason)
        for key, response in zip(chosen, responses, strict=True)
    }
    method = code_method(loaded.task.name, options) if _spec(loaded.task).runs_code else None
    start = time.perf_counter()
    reviews = score_answers(loaded.benchmark, answers, method) if answers else {}
    loaded.timings["scorer"] += time.perf_counter() - start
    records = []
    for key, prompt, response in zip(chosen, prompts, responses, strict=True):
        item, review = loaded.benchmark.items[key], reviews[key]
        notes = prompt.notes | ({"code_sandbox": method, "code_result": review.code} if method else {})
        records.append(
            Record(
                checkpoint=client.checkpoint.label,
                fingerprint=client.checkpoint.fingerprint,
                task=loaded.task.name,
                protocol=GENERATIVE,
                item_key=key,
                subset=item.subset,
                cluster=item.cluster,
                seed=seed,
                prompt=prompt.text,
                output=response.text,
                target=loaded.benchmark.targets[key],
                extracted=review.extracted or None,
                score=_headline(review, _spec(loaded.task)),
                chance=item.chance,
                num_prompt_tokens=len(prompt.tokens),
                num_output_tokens=len(response.tokens),
                finish_reason=response.finish_reason,
                scores=review.scores,
                metadata=notes | ({"unscored": review.note} if review.note else {}),
            )
        )
    return records


def render_prompts(loaded: LoadedGenerative, count: int, tokenizer: Any, options: RunOptions) -> list[str]:
    """Return the first ``count`` items as a model would get them; without a tokenizer, as roles and texts."""
    chosen = list(loaded.chats)[:count]
    if tokenizer is not None:
        return [prompt.text for prompt in build_prompts(loaded, chosen, tokenizer, options, None)]
    chats = (with_system(loaded.chats[key], options) for key in chosen)
    return ["\n\n".join(f"[{role}]\n{text}" for role, text in chat) for chat in chats]


def chosen_keys(loaded: LoadedGenerative, selected: Iterable[str]) -> list[str]:
    """Return the selected items' keys in data set order."""
    wanted = frozenset(selected)
    return [key for key in loaded.chats if key in wanted]


def build_prompts(
    loaded: LoadedGenerative, keys: Sequence[str], tokenizer: Any, options: RunOptions, max_length: int | None
) -> list[Prompt]:
    """Return the prompts of the items ``keys``, in that order; see ``build_requests`` for ``max_length``."""
    if not keys:
        return []
    start = time.perf_counter()
    template, notes = find_template(tokenizer, options)
    chats = [with_system(loaded.chats[key], options) for key in keys]
    texts = [render_chat(chat, tokenizer, template, loaded.task.name) for chat in chats]
    wanted = loaded.task.max_new_tokens or options.max_new_tokens
    prompts = [
        fitted(text, tokens, wanted, max_length, notes)
        for text, tokens in zip(texts, encode(texts, tokenizer, template is not None), strict=True)
    ]
    loaded.timings["prompts"] += time.perf_counter() - start
    return prompts


def _spec(task: TaskSpec) -> GenerativeSpec:
    assert task.generative is not None
    return task.generative


def _headline(review: Review, spec: GenerativeSpec) -> float | None:
    for name in (spec.metric, METRIC_ALIASES.get(spec.metric, "")):
        if name in review.scores:
            return review.scores[name]
    return None
