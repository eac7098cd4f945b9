"""The generative protocol: EvalScope's prompts, our tokens, EvalScope's scores.

A task is loaded once, before any model: EvalScope's adapter turns its rows into chats. The chats become
token ids through the checkpoint's chat template and are answered in batches of ours. When the model is gone,
EvalScope runs for real, with a model that only looks answers up, and its reviews become Records.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval.errors import CheckpointError, OptionError, SandboxError, StoreError
from distill_eval.items import Item
from distill_eval.protocols import sandbox
from distill_eval.protocols.evalscope_data import METRIC_ALIASES, Benchmark, load_benchmark
from distill_eval.protocols.evalscope_engine import import_evalscope
from distill_eval.protocols.evalscope_own import load_own_items
from distill_eval.protocols.evalscope_scoring import (
    Answer,
    Messages,
    Review,
    plain_messages,
    score_answers,
)
from distill_eval.schema.records import GENERATIVE, Record
from distill_eval.schema.requests import GREEDY, GenerateRequest
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, TaskSpec

NO_TEMPLATE = "none: messages joined by blank lines"


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """One item as the model gets it: rendered text, token ids, how much it may say, and what was done."""

    text: str
    tokens: tuple[int, ...]
    max_new_tokens: int
    notes: dict[str, str]


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
        _code_method(loaded.task, options)


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
    prompts = _prompts(loaded, _chosen(loaded, selected), tokenizer, options, max_length)
    return [_request(prompt, options, seed) for prompt in prompts]


def score(
    loaded: LoadedGenerative, selected: Iterable[str], client: Any, options: RunOptions, seed: int
) -> list[Record]:
    """Let EvalScope score the stored answers and return one Record for each selected item, in data set order.

    Calls no model: answers come from ``client.lookup_generate``, and one that is not there raises StoreError.
    """
    chosen = _chosen(loaded, selected)
    prompts = _prompts(loaded, chosen, client.tokenizer, options, client.max_length)
    responses = client.lookup_generate([_request(prompt, options, seed) for prompt in prompts])
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
    method = _code_method(loaded.task, options) if _spec(loaded.task).runs_code else None
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
        return [prompt.text for prompt in _prompts(loaded, chosen, tokenizer, options, None)]
    chats = (_with_system(loaded.chats[key], options) for key in chosen)
    return ["\n\n".join(f"[{role}]\n{text}" for role, text in chat) for chat in chats]


def _spec(task: TaskSpec) -> GenerativeSpec:
    assert task.generative is not None
    return task.generative


def _chosen(loaded: LoadedGenerative, selected: Iterable[str]) -> list[str]:
    wanted = frozenset(selected)
    return [key for key in loaded.chats if key in wanted]


def _request(prompt: Prompt, options: RunOptions, seed: int) -> GenerateRequest:
    # Greedy decoding draws nothing: whatever the seed and the cut-offs say, it is the same request.
    sampling = GREEDY if options.sampling.greedy else replace(options.sampling, seed=seed)
    return GenerateRequest(prompt.tokens, prompt.max_new_tokens, sampling)


def _prompts(
    loaded: LoadedGenerative, keys: Sequence[str], tokenizer: Any, options: RunOptions, max_length: int | None
) -> list[Prompt]:
    if not keys:
        return []
    start = time.perf_counter()
    template, notes = _template(tokenizer, options)
    chats = [_with_system(loaded.chats[key], options) for key in keys]
    if template is None:
        texts = ["\n\n".join(text for _, text in chat) for chat in chats]
    else:
        texts = [_rendered(chat, tokenizer, template, loaded.task) for chat in chats]
    # A template writes its own special tokens; plain text gets those the tokenizer adds.
    token_ids = tokenizer(texts, add_special_tokens=template is None)["input_ids"]
    wanted = loaded.task.max_new_tokens or options.max_new_tokens
    prompts = [
        _fitted(text, tuple(ids), wanted, max_length, notes)
        for text, ids in zip(texts, token_ids, strict=True)
    ]
    loaded.timings["prompts"] += time.perf_counter() - start
    return prompts


def _template(tokenizer: Any, options: RunOptions) -> tuple[str | None, dict[str, str]]:
    """Return the text of the chat template to use, and what a Record notes about it."""
    if options.chat_template is not None:
        return options.chat_template, {"chat_template": "given"}
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), None)
    return (own, {"chat_template": "own"}) if own else (None, {"chat_template": NO_TEMPLATE})


def _with_system(chat: Messages, options: RunOptions) -> Messages:
    if options.system_prompt is None:
        return chat
    return (("system", options.system_prompt), *(message for message in chat if message[0] != "system"))


def _rendered(chat: Messages, tokenizer: Any, template: str, task: TaskSpec) -> str:
    from jinja2.exceptions import TemplateError

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
                f"task '{task.name}': the chat template takes no system prompt ({error}); "
                f"leave out --system-prompt"
            ) from error
        raise CheckpointError(
            f"task '{task.name}': the chat template cannot be used ({error}); "
            f"give another with --chat-template"
        ) from error


def _fitted(
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


def _code_method(task: TaskSpec, options: RunOptions) -> str:
    method = sandbox.sandbox_available()
    if method is None and not options.allow_unsandboxed_code:
        raise SandboxError(
            f"task '{task.name}' runs code that the model wrote, and there is no sandbox here: install "
            f"bubblewrap, allow user namespaces, or accept the risk with --allow-unsandboxed-code"
        )
    return method or sandbox.UNSANDBOXED


def _headline(review: Review, spec: GenerativeSpec) -> float | None:
    for name in (spec.metric, METRIC_ALIASES.get(spec.metric, "")):
        if name in review.scores:
            return review.scores[name]
    return None
