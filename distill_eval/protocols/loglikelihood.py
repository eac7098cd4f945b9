"""The log-likelihood protocol: lm-eval's own tasks, prompts and metrics, scored through the cached client."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, TaskError, did_you_mean
from distill_eval.items import Item, identify, is_kept
from distill_eval.schema.records import LOGLIKELIHOOD, Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec

# lm_eval is imported inside functions, so that its start-up can be timed apart (LoadedLoglikelihood.timings).


@dataclass(frozen=True, slots=True)
class LoadedLoglikelihood:
    """A task with its rows, ready for any number of checkpoints.

    ``items``: every scorable row in data set order. ``places``: item key -> (index into ``engine_tasks``,
    row). ``timings`` (seconds, summed over runs): ``import`` and ``build`` are lm-eval's start-up,
    ``prompts`` the building and tokenising of requests, ``scorer`` lm-eval's metrics and our records. The
    client's own time is not among them.
    """

    task: TaskSpec
    items: tuple[Item, ...]
    places: dict[str, tuple[int, int]]
    engine_tasks: tuple[Any, ...]
    timings: dict[str, float] = field(default_factory=dict)


def load(task: TaskSpec, data_dir: Path | None) -> LoadedLoglikelihood:
    """Build lm-eval's tasks and identify every row, before any model is loaded.

    ``data_dir``: a mirror of data sets, or None for the hub. Raises TaskError for what the task file asks
    wrongly, DataError for data that is missing, empty or without gold answers.
    """
    timings: dict[str, float] = dict.fromkeys(("import", "build", "prompts", "scorer"), 0.0)
    start = time.perf_counter()
    from distill_eval.protocols.lmeval_tasks import build_tasks

    timings["import"] = time.perf_counter() - start
    start = time.perf_counter()
    built = build_tasks(task, data_dir)
    assert task.loglikelihood is not None
    spec = task.loglikelihood
    items: list[Item] = []
    places: dict[str, tuple[int, int]] = {}
    seen: Counter[str] = Counter()
    for index, part in enumerate(built):
        _check_metric(task, part)
        for row, fields in enumerate(part.rows):
            item = identify(fields, spec.item_key, task, part.subset, seen)
            if is_kept(fields, spec, task):
                items.append(item)
                places[item.key] = (index, row)
    if not items:
        raise DataError(
            f"task '{task.name}': no row passes keep: {spec.options['keep']} ({task.source_file})"
        )
    timings["build"] = time.perf_counter() - start
    return LoadedLoglikelihood(task, tuple(items), places, built, timings)


def run(
    loaded: LoadedLoglikelihood, selected: frozenset[str], client: Any, options: RunOptions
) -> list[Record]:
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
        samples = _evaluate(loaded, items, model, options)
        records = [_record(loaded, item, samples[loaded.places[item.key]], model) for item in items]
    _add_timings(loaded.timings, start, model.spans, time.perf_counter())
    return records


def render_prompts(loaded: LoadedLoglikelihood, count: int, tokenizer: Any, options: RunOptions) -> list[str]:
    """Return, for the first ``count`` items, the context and below it every continuation that is scored.

    The right one is marked ``*``. ``tokenizer`` is needed only where ``options`` ask for a chat template.
    """
    from distill_eval.protocols.lmeval_model import ClientLM
    from distill_eval.protocols.lmeval_tasks import gold_indices, quiet_engine

    model = ClientLM(None, tokenizer, options, loaded.task.name)
    texts = []
    for index, rows in _rows_by_task(loaded, loaded.items[:count]).items():
        engine = loaded.engine_tasks[index].engine
        with quiet_engine():
            engine.build_all_requests(
                samples=rows, chat_template=model.apply_chat_template, **_prompt_options(options)
            )
            instances: dict[int, list[Any]] = {}
            for instance in engine.instances:
                instances.setdefault(instance.doc_id, []).append(instance)
            for group in instances.values():
                doc, gold = group[0].doc, (0,)
                if engine.OUTPUT_TYPE == "multiple_choice":
                    gold = gold_indices(engine, doc, engine.doc_to_choice(doc))
                texts.append(_shown([instance.args for instance in group], gold))
    return texts


class _Rows(list[int]):
    """Row numbers for lm-eval, which asks ``row in samples`` of every row: quadratic on a plain list."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(rows)
        self._set = frozenset(rows)

    def __contains__(self, row: object) -> bool:
        return row in self._set


def _rows_by_task(loaded: LoadedLoglikelihood, items: Sequence[Item]) -> dict[int, _Rows]:
    rows: dict[int, list[int]] = {}
    for item in items:
        index, row = loaded.places[item.key]
        rows.setdefault(index, []).append(row)
    # Ascending: lm-eval walks its rows in order and numbers what it keeps by the list's order.
    return {index: _Rows(sorted(numbers)) for index, numbers in rows.items()}


def _prompt_options(options: RunOptions) -> dict[str, Any]:
    templated = options.apply_chat_template
    return {
        "apply_chat_template": templated,
        # lm-eval's command line makes shots turns whenever it applies a template.
        "fewshot_as_multiturn": templated,
        "system_instruction": options.system_prompt if templated else None,
    }


def _evaluate(
    loaded: LoadedLoglikelihood, items: Sequence[Item], model: Any, options: RunOptions
) -> dict[tuple[int, int], dict[str, Any]]:
    """Run lm-eval over the chosen rows of all tasks at once; its logged samples by (task index, row)."""
    from lm_eval.evaluator import evaluate

    from distill_eval.protocols.lmeval_tasks import OTHER_SEED

    rows = _rows_by_task(loaded, items)
    names = {loaded.engine_tasks[index].name: index for index in rows}
    for index in rows:
        # The same shots for every checkpoint.
        loaded.engine_tasks[index].engine.set_fewshot_seed(seed=OTHER_SEED)
    results: Any = evaluate(
        lm=model,
        task_dict={"tasks": {name: loaded.engine_tasks[index].engine for name, index in names.items()}},
        samples={name: rows[index] for name, index in names.items()},
        bootstrap_iters=0,
        log_samples=True,
        **_prompt_options(options),
    )
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name, index in names.items():
        for sample in results["samples"][name]:
            # A task with several filters logs a row once for each; the first one is the task's own order.
            found.setdefault((index, sample["doc_id"]), sample)
    return found


def _record(loaded: LoadedLoglikelihood, item: Item, sample: Mapping[str, Any], model: Any) -> Record:
    spec, checkpoint = loaded.task.loglikelihood, model.client.checkpoint
    assert spec is not None
    part = loaded.engine_tasks[loaded.places[item.key][0]]
    arguments, scores = sample["arguments"], _scores(sample)
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
    lengths = [_length(choice, metric) for choice in choices]
    best = max(range(len(choices)), key=lambda i: logprobs[i] / lengths[i])
    options = item.options if len(item.options) == len(choices) else tuple(choices)
    output = options[best] if engine.multiple_input else choices[best]
    gold = gold_indices(engine, doc, choices)
    return _Answer(best, output, " | ".join(options[i] for i in gold), options[best], logprobs)


def _length(choice: str, metric: str) -> float:
    """By what lm-eval divides a choice's log-likelihood under ``metric``."""
    if metric == "acc_norm":
        return float(len(choice))
    return float(len(choice.encode())) if metric == "acc_bytes" else 1.0


def _scores(sample: Mapping[str, Any]) -> dict[str, float]:
    """Keep lm-eval's metrics that are numbers per item; of a (log-likelihood, length) pair the former."""
    scores = {}
    for name in sample["metrics"]:
        value = sample[name]
        if isinstance(value, tuple) and name.endswith(("perplexity", "bits_per_byte")):
            scores[f"{name}_length"] = float(value[1])
            value = value[0]
        if isinstance(value, int | float) and math.isfinite(value):
            scores[name] = float(value)
    return scores


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
