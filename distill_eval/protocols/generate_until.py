"""The bridging arm ``generate_until``: the generative protocol's decoding, lm-eval's prompt and scorer.

It tells how much of a generative score is EvalScope's. Everything about decoding is therefore that of the
generative protocol: chat template, system prompt, sampling, seeds, number of new tokens, cutting to the model's
positions. lm-eval's own ``generation_kwargs`` (greedy, at most 256 new tokens for most tasks) would change two
things at once and are left aside, but for the strings its tasks stop at, which belong to their prompts. Examples,
prompts, filters and metrics are lm-eval's.

As with EvalScope, requests are answered while the model is loaded, and scored when it is gone.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_eval.errors import StoreError, TaskError, did_you_mean
from distill_eval.items import Item
from distill_eval.protocols.lmeval_engine import (
    LoadedTask,
    build_instances,
    evaluate_items,
    load_task,
    prompt_options,
    sample_scores,
)
from distill_eval.protocols.model_code import CodeEval, code_method, code_run_by
from distill_eval.protocols.prompts import Prompt, encode, find_template, fitted, request
from distill_eval.schema.records import GENERATE_UNTIL, Record
from distill_eval.schema.requests import GenerateRequest, GenerateResponse
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec

INVALID = "[invalid]"  # what lm-eval's filters give when they find no answer
PASS_AT_K = "pass_at_k"  # lm-eval's metric of code, which gives pass@1


def load(task: TaskSpec, data_dir: Path | None) -> LoadedTask:
    """Build lm-eval's generative tasks and identify every row, before any model is loaded; see ``load_task``."""
    assert task.generate_until is not None
    loaded = load_task(task, task.generate_until, data_dir)
    for part in loaded.engine_tasks:
        _check_metric(loaded, part)
    return loaded


def check_runnable(loaded: LoadedTask, options: RunOptions) -> None:
    """Raise SandboxError for a task that runs model-written code where no sandbox can be had."""
    if _runs_code(loaded) and not options.allow_unsandboxed_code:
        code_method(loaded.task.name, options)


def build_requests(
    loaded: LoadedTask,
    selected: Iterable[str],
    tokenizer: Any,
    options: RunOptions,
    seed: int,
    *,
    max_length: int | None = None,
) -> list[GenerateRequest]:
    """Return one request for each selected item, in data set order; arguments as in ``generative``."""
    items = _chosen(loaded, selected)
    built = _build(loaded, items, tokenizer, options, max_length)
    return [_request(built[item.key], options, seed) for item in items]


def score(
    loaded: LoadedTask, selected: Iterable[str], client: Any, options: RunOptions, seed: int
) -> list[Record]:
    """Let lm-eval score the stored answers and return one Record for each selected item, in data set order.

    Calls no model: answers come from ``client.lookup_generate``, and one that is not there raises StoreError.
    """
    from distill_eval.protocols.lmeval_tasks import engine_seeds, quiet_engine

    items = _chosen(loaded, selected)
    if not items:
        return []
    built = _build(loaded, items, client.tokenizer, options, client.max_length)
    responses = client.lookup_generate([_request(built[item.key], options, seed) for item in items])
    absent = sum(response is None for response in responses)
    if absent:
        raise StoreError(
            f"task '{loaded.task.name}' ({GENERATE_UNTIL}): {absent} of {len(items)} answers of "
            f"'{client.checkpoint.label}' are not in the response cache; generate them first"
        )
    method = code_method(loaded.task.name, options) if _runs_code(loaded) else None
    start = time.perf_counter()
    replies = {
        (built[item.key][0].text, built[item.key][1]): response.text
        for item, response in zip(items, responses, strict=True)
    }
    model = _replay(replies, client.tokenizer, options, loaded.task.name)
    with quiet_engine(), engine_seeds(), code_run_by(method) as code:
        samples = evaluate_items(loaded, items, model, _prompting(client.tokenizer, options))
        records = [
            _record(loaded, item, built[item.key][0], response, samples[loaded.places[item.key]], code, seed,
                    client.checkpoint)
            for item, response in zip(items, responses, strict=True)
        ]  # fmt: skip
    loaded.timings["scorer"] += time.perf_counter() - start
    return records


def _chosen(loaded: LoadedTask, selected: Iterable[str]) -> list[Item]:
    wanted = frozenset(selected)
    return [item for item in loaded.items if item.key in wanted]


_Built = tuple[Prompt, tuple[str, ...]]  # the prompt and lm-eval's stop strings


def _request(built: _Built, options: RunOptions, seed: int) -> GenerateRequest:
    return request(built[0], options, seed, built[1])


def _prompting(tokenizer: Any, options: RunOptions) -> dict[str, Any]:
    return prompt_options(find_template(tokenizer, options)[0] is not None, options.system_prompt)


def _build(
    loaded: LoadedTask, items: Sequence[Item], tokenizer: Any, options: RunOptions, max_length: int | None
) -> dict[str, _Built]:
    from distill_eval.protocols.lmeval_tasks import quiet_engine

    start = time.perf_counter()
    template, notes = find_template(tokenizer, options)
    model = _replay({}, tokenizer, options, loaded.task.name)
    with quiet_engine():
        instances = build_instances(loaded, items, model, _prompting(tokenizer, options))
    arguments = [_only(instances[loaded.places[item.key]]).args for item in items]
    tokens = encode([text for text, _ in arguments], tokenizer, template is not None) if items else []
    wanted = loaded.task.max_new_tokens or options.max_new_tokens
    built = {
        item.key: (fitted(text, ids, wanted, max_length, notes), _stops(settings))
        for item, (text, settings), ids in zip(items, arguments, tokens, strict=True)
    }
    loaded.timings["prompts"] += time.perf_counter() - start
    return built


def _only(instances: Sequence[Any]) -> Any:
    (instance,) = instances
    return instance


def _stops(settings: Mapping[str, Any]) -> tuple[str, ...]:
    until = settings.get("until") or ()
    return tuple(text for text in ([until] if isinstance(until, str) else until) if text)


def _replay(
    replies: Mapping[tuple[str, tuple[str, ...]], str], tokenizer: Any, options: RunOptions, label: str
) -> Any:
    from distill_eval.protocols.lmeval_model import ClientLM

    class Replay(ClientLM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            return [replies[text, _stops(settings)] for text, settings in (one.args for one in requests)]

    return Replay(None, tokenizer, options, label)


def _record(
    loaded: LoadedTask,
    item: Item,
    prompt: Prompt,
    response: GenerateResponse,
    samples: Sequence[Mapping[str, Any]],
    code: CodeEval,
    seed: int,
    checkpoint: Any,
) -> Record:
    part = loaded.engine_tasks[loaded.places[item.key][0]]
    metric, _, wanted = loaded.spec.metric.partition(",")
    headline = next(sample for sample in samples if not wanted or sample["filter"] == wanted)
    scores: dict[str, float] = {}
    for sample in samples:
        suffix = f",{sample['filter']}" if len(samples) > 1 else ""
        scores |= {f"{name}{suffix}": value for name, value in sample_scores(sample).items()}
    answer, target = headline["filtered_resps"][0], headline["target"]
    metadata = prompt.notes | {"lm_eval_task": part.name, "doc_id": str(headline["doc_id"])}
    if isinstance(answer, list):  # code: its candidates, of which we draw one
        (answer,) = answer
        end = code.results.get((answer, target))
        if end is not None:
            metadata |= {
                "code_sandbox": str(code.method),
                "code_result": ": ".join(filter(None, (end.status, end.detail))),
            }
    return Record(
        checkpoint=checkpoint.label,
        fingerprint=checkpoint.fingerprint,
        task=loaded.task.name,
        protocol=GENERATE_UNTIL,
        item_key=item.key,
        subset=item.subset,
        cluster=item.cluster,
        seed=seed,
        prompt=prompt.text,
        output=response.text,
        # IFEval's scorer has no target, and lm-eval's task says 0.
        target=target if isinstance(target, str) else "",
        extracted=None if answer in ("", INVALID) else str(answer),
        score=sample_scores(headline).get(metric),
        chance=item.chance,
        num_prompt_tokens=len(prompt.tokens),
        num_output_tokens=len(response.tokens),
        finish_reason=response.finish_reason,
        scores=scores,
        metadata=metadata,
    )


def _runs_code(loaded: LoadedTask) -> bool:
    return any(part.engine.config.unsafe_code for part in loaded.engine_tasks)


def _check_metric(loaded: LoadedTask, part: Any) -> None:
    task, given = loaded.task, list(part.engine.aggregation())
    known = ["pass@1" if name == PASS_AT_K else name for name in given]
    filters = [one.name for one in part.engine._filters]
    if len(filters) > 1:
        known = [f"{name},{filter_name}" for name in known for filter_name in filters]
    for metric in dict.fromkeys((loaded.spec.metric, *loaded.spec.metrics)):
        if metric not in known:
            raise TaskError(
                f"task '{task.name}': generate_until: lm-eval's '{part.name}' has no metric '{metric}'"
                f"{did_you_mean(metric, known)} ({task.source_file})"
            )
