"""lm-eval run over chosen rows: what the log-likelihood protocol and the arm ``generate_until`` share."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError
from distill_eval.items import Item, identify, is_kept
from distill_eval.schema.tasks import LoglikelihoodSpec, TaskSpec

# lm_eval is imported inside functions, so that its start-up can be timed apart (LoadedTask.timings).

Place = tuple[int, int]
"""Index into ``LoadedTask.engine_tasks``, row."""


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """One lm-eval side (``spec``) of a task with its rows, ready for any number of checkpoints.

    ``items``: every scorable row in data set order. ``places``: item key -> (index into ``engine_tasks``,
    row). ``timings`` (seconds, summed over runs): ``import`` and ``build`` are lm-eval's start-up,
    ``prompts`` the building and tokenising of requests, ``scorer`` lm-eval's metrics and our records. The
    client's own time is not among them.
    """

    task: TaskSpec
    spec: LoglikelihoodSpec
    items: tuple[Item, ...]
    places: dict[str, Place]
    engine_tasks: tuple[Any, ...]
    timings: dict[str, float] = field(default_factory=dict)


def load_task(task: TaskSpec, spec: LoglikelihoodSpec, data_dir: Path | None) -> LoadedTask:
    """Build lm-eval's tasks and identify every row, before any model is loaded.

    ``data_dir``: a mirror of data sets, or None for the hub. Raises TaskError for what the task file asks
    wrongly, DataError for data that is missing, empty or without gold answers.
    """
    timings: dict[str, float] = dict.fromkeys(("import", "build", "prompts", "scorer"), 0.0)
    start = time.perf_counter()
    from distill_eval.protocols.lmeval_tasks import build_tasks

    timings["import"] = time.perf_counter() - start
    start = time.perf_counter()
    built = build_tasks(task, spec, data_dir)
    items: list[Item] = []
    places: dict[str, Place] = {}
    seen: Counter[str] = Counter()
    for index, part in enumerate(built):
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
    return LoadedTask(task, spec, tuple(items), places, built, timings)


class _Rows(list[int]):
    """Row numbers for lm-eval, which asks ``row in samples`` of every row: quadratic on a plain list."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(rows)
        self._set = frozenset(rows)

    def __contains__(self, row: object) -> bool:
        return row in self._set


def rows_by_task(loaded: LoadedTask, items: Iterable[Item]) -> dict[int, list[int]]:
    """Return the rows of ``items`` for each index of ``loaded.engine_tasks`` that has any."""
    rows: dict[int, list[int]] = {}
    for item in items:
        index, row = loaded.places[item.key]
        rows.setdefault(index, []).append(row)
    # Ascending: lm-eval walks its rows in order and numbers what it keeps by the list's order.
    return {index: _Rows(sorted(numbers)) for index, numbers in rows.items()}


def prompt_options(templated: bool, system_prompt: str | None) -> dict[str, Any]:
    """Return lm-eval's arguments for prompts with or without a chat template."""
    return {
        "apply_chat_template": templated,
        # lm-eval's command line makes shots turns whenever it applies a template.
        "fewshot_as_multiturn": templated,
        "system_instruction": system_prompt,
    }


def build_instances(
    loaded: LoadedTask, items: Iterable[Item], model: Any, prompting: Mapping[str, Any]
) -> dict[Place, list[Any]]:
    """Let lm-eval build the requests of ``items`` without running them; its instances by place."""
    found: dict[Place, list[Any]] = {}
    for index, rows in rows_by_task(loaded, items).items():
        engine = loaded.engine_tasks[index].engine
        _seed_shots(engine)
        engine.build_all_requests(samples=rows, chat_template=model.apply_chat_template, **prompting)
        for instance in engine.instances:
            # It numbers the rows it was given, not those of the data set.
            found.setdefault((index, rows[instance.doc_id]), []).append(instance)
    return found


def evaluate_items(
    loaded: LoadedTask, items: Iterable[Item], model: Any, prompting: Mapping[str, Any]
) -> dict[Place, list[dict[str, Any]]]:
    """Run lm-eval over the chosen rows of all tasks at once; its logged samples by place, one for each filter."""
    from lm_eval.evaluator import evaluate

    rows = rows_by_task(loaded, items)
    names = {loaded.engine_tasks[index].name: index for index in rows}
    for index in rows:
        _seed_shots(loaded.engine_tasks[index].engine)
    results: Any = evaluate(
        lm=model,
        task_dict={"tasks": {name: loaded.engine_tasks[index].engine for name, index in names.items()}},
        samples={name: rows[index] for name, index in names.items()},
        bootstrap_iters=0,
        log_samples=True,
        # Code is not run by lm-eval but in the sandbox (model_code.py).
        confirm_run_unsafe_code=True,
        **prompting,
    )
    found: dict[Place, list[dict[str, Any]]] = {}
    for name, index in names.items():
        for sample in results["samples"][name]:
            found.setdefault((index, sample["doc_id"]), []).append(sample)
    return found


def _seed_shots(engine: Any) -> None:
    from distill_eval.protocols.lmeval_tasks import OTHER_SEED

    # The same shots for every checkpoint.
    engine.set_fewshot_seed(seed=OTHER_SEED)


def sample_scores(sample: Mapping[str, Any]) -> dict[str, float]:
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
