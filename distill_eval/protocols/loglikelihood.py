"""The log-likelihood protocol: lm-eval's own tasks, prompts and metrics, scored through the cached client."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval.errors import TaskError, did_you_mean
from distill_eval.items import Item
from distill_eval.protocols.lmeval_engine import (
    LoadedTask,
    build_instances,
    evaluate_items,
    load_task,
    prompt_options,
    sample_scores,
)
from distill_eval.schema.records import LOGLIKELIHOOD, Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec


def load(task: TaskSpec, data_dir: Path | None) -> LoadedTask:
    """Build lm-eval's tasks and identify every row, before any model is loaded; see ``load_task``."""
    assert task.loglikelihood is not None
    loaded = load_task(task, task.loglikelihood, data_dir)
    for part in loaded.engine_tasks:
        _check_metric(task, part)
    return loaded


def run(loaded: LoadedTask, selected: frozenset[str], client: Any, options: RunOptions) -> list[Record]:
    """Score the selected items with one call of ``client.score`` and return their records in data set order.

    Keys of ``selected`` that the task does not have are left alone. lm-eval builds the prompts and computes
    the metrics; the client answers. Adds to ``loaded.timings``.
    """
    from distill_eval.protocols.lmeval_model import ClientLM
    from distill_eval.protocols.lmeval_tasks import quiet_engine

    items = [item for item in loaded.items if item.key in selected]
    if not items:
        return []
    start = time.perf_counter()
    model = ClientLM(client, client.tokenizer, options, loaded.task.name)
    with quiet_engine():
        samples = evaluate_items(loaded, items, model, _prompt_options(options))
        # A task with several filters logs a row once for each; the first one is the task's own order.
        records = [_record(loaded, item, samples[loaded.places[item.key]][0], model) for item in items]
    _add_timings(loaded.timings, start, model.spans, time.perf_counter())
    return records


def render_prompts(loaded: LoadedTask, count: int, tokenizer: Any, options: RunOptions) -> list[str]:
    """Return, for the first ``count`` items, the context and below it every continuation that is scored.

    The right one is marked ``*``. ``tokenizer`` is needed only where ``options`` ask for a chat template.
    """
    from distill_eval.protocols.lmeval_model import ClientLM
    from distill_eval.protocols.lmeval_tasks import gold_indices, quiet_engine

    model = ClientLM(None, tokenizer, options, loaded.task.name)
    texts, items = [], loaded.items[:count]
    with quiet_engine():
        instances = build_instances(loaded, items, model, _prompt_options(options))
        for item in items:
            place = loaded.places[item.key]
            engine, group = loaded.engine_tasks[place[0]].engine, instances[place]
            doc, gold = group[0].doc, (0,)
            if engine.OUTPUT_TYPE == "multiple_choice":
                gold = gold_indices(engine, doc, engine.doc_to_choice(doc))
            texts.append(_shown([instance.args for instance in group], gold))
    return texts


def _prompt_options(options: RunOptions) -> dict[str, Any]:
    templated = options.apply_chat_template
    return prompt_options(templated, options.system_prompt if templated else None)


def _record(loaded: LoadedTask, item: Item, sample: Mapping[str, Any], model: Any) -> Record:
    spec, checkpoint = loaded.task.loglikelihood, model.client.checkpoint
    assert spec is not None
    part = loaded.engine_tasks[loaded.places[item.key][0]]
    arguments, scores = sample["arguments"], sample_scores(sample)
    answer = _answer(part.engine, item, sample, spec.metric)
    sent = [model.sent[tuple(texts)] for texts in arguments]
    metadata = {"lm_eval_task": part.name, "doc_id": str(sample["doc_id"])}
    num_truncated = sum(one.truncated for one in sent)
    if num_truncated:
        metadata["truncated_requests"] = str(num_truncated)
    return Record(
        checkpoint=checkpoint.label,
        fingerprint=checkpoint.fingerprint,
        task=loaded.task.name,
        protocol=LOGLIKELIHOOD,
        item_key=item.key,
        subset=item.subset,
        cluster=item.cluster,
        seed=None,
        prompt=arguments[0][0] if len(arguments[0]) > 1 else "",
        output=answer.output,
        target=answer.target,
        extracted=answer.extracted,
        score=scores.get(spec.metric),
        chance=item.chance,
        num_prompt_tokens=sent[0].num_context_tokens,
        num_output_tokens=sent[answer.index].num_continuation_tokens,
        finish_reason="scored",
        scores=scores,
        choice_logprobs=answer.logprobs,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the model preferred: the item's request number ``index``, as scored and as the option."""

    index: int
    output: str
    target: str
    extracted: str | None
    logprobs: tuple[float, ...]


def _answer(engine: Any, item: Item, sample: Mapping[str, Any], metric: str) -> _Answer:
    from distill_eval.protocols.lmeval_tasks import gold_indices

    doc, responses = sample["doc"], sample["filtered_resps"]
    if engine.OUTPUT_TYPE == "loglikelihood_rolling":
        return _Answer(0, "", engine.doc_to_target(doc), None, (float(responses[0]),))
    if engine.OUTPUT_TYPE == "loglikelihood":
        # All that is known of an open answer is whether the model would have given it greedily.
        (logprob, is_greedy), target = responses[0], engine.doc_to_target(doc)
        said = target if is_greedy else ""
        return _Answer(0, said, target.strip(), said.strip() or None, (float(logprob),))
    choices = engine.doc_to_choice(doc)
    # Conditional scores come first; acc_mutual_info appends unconditional ones.
    logprobs = tuple(float(logprob) for logprob, _ in responses[: len(choices)])
    lengths = [choice_length(choice, metric) for choice in choices]
    best = max(range(len(choices)), key=lambda i: logprobs[i] / lengths[i])
    options = item.options if len(item.options) == len(choices) else tuple(choices)
    output = options[best] if engine.multiple_input else choices[best]
    gold = gold_indices(engine, doc, choices)
    return _Answer(best, output, " | ".join(options[i] for i in gold), options[best], logprobs)


def choice_length(choice: str, metric: str) -> float:
    """Return what lm-eval divides a choice's log-likelihood by under ``metric``."""
    if metric == "acc_norm":
        return float(len(choice))
    return float(len(choice.encode())) if metric == "acc_bytes" else 1.0


def _check_metric(task: TaskSpec, part: Any) -> None:
    spec, given = task.loglikelihood, part.engine.aggregation()
    assert spec is not None
    for metric in dict.fromkeys((spec.metric, *spec.metrics)):
        if metric not in given:
            raise TaskError(
                f"task '{task.name}': lm-eval's '{part.name}' has no metric '{metric}'"
                f"{did_you_mean(metric, given)} ({task.source_file})"
            )


def _add_timings(
    timings: dict[str, float], start: float, spans: Sequence[tuple[float, float]], end: float
) -> None:
    first, last = (spans[0][0], spans[-1][1]) if spans else (end, end)
    timings["prompts"] += first - start
    timings["scorer"] += end - last


def _shown(arguments: Sequence[tuple[str, ...]], gold: Sequence[int]) -> str:
    lines = []
    if len({texts[0] for texts in arguments}) == 1:
        lines.append(arguments[0][0])
        texts = [repr(texts[-1]) for texts in arguments]
    else:  # the choices are in the contexts
        texts = [f"{context!r} -> {continuation!r}" for context, continuation in arguments]
    lines += [f"{'*' if i in gold else ' '} {text}" for i, text in enumerate(texts)]
    return "\n".join(lines)
