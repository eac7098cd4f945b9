"""lm-eval's tasks over our data: find a task's file, build it, refuse what cannot be scored."""

import functools
import logging
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import lm_eval.utils
import numpy as np
from lm_eval.tasks._yaml_loader import load_yaml

from distill_eval import generators
from distill_eval.errors import DataError, TaskError, did_you_mean
from distill_eval.protocols.lmeval_data import (
    config_note,
    decoded_rows,
    load_dataset,
    one_line,
    prepare,
    task_source,
    unreadable,
)
from distill_eval.protocols.model_code import sandboxed_code_eval, use_sandbox
from distill_eval.schema.records import GENERATE_UNTIL
from distill_eval.schema.tasks import LoglikelihoodSpec, TaskSpec

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
ACCURACIES = ("acc", "acc_norm", "acc_bytes")
# What lm-eval's own command line seeds with, so that shots and shuffles are the ones its users get.
PYTHON_SEED, OTHER_SEED = 0, 1234
# lm-eval's name at the start of a line of its YAML files, quoted or not.
_TASK_LINE = re.compile(rb"""^["']?task["']?[ \t]*:[ \t]*["']?([^\s"'\[\]]+)["']?[ \t]*(?:#.*)?\r?$""", re.M)


@dataclass(frozen=True, slots=True)
class BuiltTask:
    """One lm-eval task ready to run: ``rows`` as the data set has them, ``docs`` as lm-eval prepared them."""

    name: str
    subset: str | None
    engine: Any
    rows: list[dict[str, Any]]
    docs: list[dict[str, Any]]


def build_tasks(task: TaskSpec, spec: LoglikelihoodSpec, data_dir: Path | None) -> tuple[BuiltTask, ...]:
    """Build every lm-eval task of ``spec``, one of the lm-eval sides of ``task``, own items included.

    Raises TaskError for what the task file asks wrongly, DataError for a data set or split that is missing or
    empty and for a row without a gold answer.
    """
    with quiet_engine(), engine_seeds():
        if task.items is not None:
            return (_build_own(task, spec),)
        return tuple(_build(name, task, spec, data_dir) for name in spec.tasks)


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Silence lm-eval's log and bars, and compile each of its prompt templates once instead of once a row."""
    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level, tqdm, environment = logger.level, lm_eval.api.task.tqdm, lm_eval.utils.env
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)
    vars(environment)["from_string"] = functools.lru_cache(maxsize=256)(environment.from_string)
    try:
        yield
    finally:
        vars(environment).pop("from_string", None)  # the class keeps its own
        lm_eval.api.task.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()
        logger.setLevel(level)


@contextmanager
def engine_seeds() -> Iterator[None]:
    """Seed what lm-eval's command line seeds, and put the caller's random state back afterwards.

    Some scorers draw too: IFEval's for instructions without parameters, and the language detector it asks.
    """
    state, array_state = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(OTHER_SEED)
    if "langdetect" in sys.modules:
        sys.modules["langdetect"].DetectorFactory.seed = PYTHON_SEED
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(array_state)


def task_file(name: str) -> Path:
    """Return an lm-eval task's YAML file without the 7 s of lm-eval's index; TaskError if there is none."""
    root = Path(lm_eval.tasks.__file__).parent
    families = [path for path in sorted(root.iterdir()) if path.is_dir() and name.startswith(path.name)]
    near: list[str] = []
    for folder in [*reversed(families), root]:
        names = _task_names(folder)
        if name in names:
            return names[name]
        near.extend(names)
    raise TaskError(f"lm-eval has no task '{name}'{did_you_mean(name, near)}")


@functools.cache
def _task_names(folder: Path) -> dict[str, Path]:
    names: dict[str, Path] = {}
    for path in sorted(folder.glob("**/*.yaml"), key=Path.as_posix):
        for match in _TASK_LINE.findall(path.read_bytes()):
            # As in lm-eval's own index, the first file of a name wins.
            names.setdefault(match.decode(), path)
    return names


def gold_indices(engine: Any, doc: Mapping[str, Any], choices: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the right choices of one multiple-choice document; empty if it has none."""
    gold = engine.doc_to_text(doc) if engine.multiple_input else engine.doc_to_target(doc)
    found = []
    for value in gold if isinstance(gold, list) else [gold]:
        if isinstance(value, str) and value in choices:
            found.append(choices.index(value))
        elif isinstance(value, int) and 0 <= value < len(choices):
            found.append(value)
    return tuple(found)


def _build(name: str, task: TaskSpec, spec: LoglikelihoodSpec, data_dir: Path | None) -> BuiltTask:
    try:
        path = task_file(name)
    except TaskError as error:
        raise TaskError(f"task '{task.name}': {error} ({task_source(task)})") from None
    config = {**_config(name, path, task), **spec.options.get("config", {})}
    dataset_id = spec.dataset or config["dataset_path"]
    protocol = "generate_until" if spec is task.generate_until else "log-likelihood protocol"
    known = (GENERATE_UNTIL,) if spec is task.generate_until else OUTPUT_TYPES
    if config.get("output_type") not in known:
        raise TaskError(
            f"task '{task.name}': lm-eval's '{name}' has output_type {config.get('output_type')}; the "
            f"{protocol} runs {', '.join(known)} ({task_source(task)})"
        )
    if config.get("num_fewshot") == 0 and spec.num_fewshot:
        raise TaskError(
            f"task '{task.name}': lm-eval's '{name}' fixes num_fewshot at 0, got {spec.num_fewshot} "
            f"({task_source(task)})"
        )
    split = _evaluated_split(config)
    dataset = load_dataset(dataset_id, config, split, task, data_dir, spec.revision)
    where = f"task '{task.name}': dataset '{dataset_id}'{config_note(config)}, split '{split}'"
    for key in ("training_split", "validation_split", "fewshot_split"):
        # lm-eval looks these up when it builds a task, shots or not.
        if config.get(key) not in dataset or (key == "fewshot_split" and not spec.num_fewshot):
            config[key] = None
    if spec.num_fewshot:
        _refuse_own_shots(config, split, dataset, task, name, spec.num_fewshot)
    prepared = prepare(config.get("process_docs"), dataset[split], where)
    given: Mapping[str, Any] = dataset
    if not spec.num_fewshot:
        # lm-eval would prepare the rows again wherever it looks at them, and read them all as possible shots.
        given, config["process_docs"] = {split: prepared}, None
        config["fewshot_config"] = {"samples": []}
    config["metric_list"] = _with_metrics(config, spec)
    # lm-eval would load the data a second time; a callable is its own way to be given it.
    config.update(num_fewshot=spec.num_fewshot, custom_dataset=lambda **_: given, dataset_kwargs=None)
    return _checked(_construct(config, where), config, dataset[split], prepared, where)


def _config(name: str, path: Path, task: TaskSpec) -> dict[str, Any]:
    if not load_yaml(path, resolve_func=False).get("unsafe_code"):
        return load_yaml(path, resolve_func=True)
    with sandboxed_code_eval():
        config = load_yaml(path, resolve_func=True)
    use_sandbox(config, f"task '{task.name}': lm-eval's '{name}' ({task_source(task)})")
    return config


def _evaluated_split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config["validation_split"]


def _with_metrics(config: Mapping[str, Any], spec: LoglikelihoodSpec) -> list[dict[str, Any]] | None:
    """Ask lm-eval for the accuracies a task file lists beyond those of lm-eval's own file."""
    given = config.get("metric_list")
    if given is None or config["output_type"] != "multiple_choice" or config.get("process_results"):
        return given
    known = [metric["metric"] for metric in given]
    return [*given, *(_metric(name) for name in spec.metrics if name in ACCURACIES and name not in known)]


def _construct(config: dict[str, Any], where: str) -> Any:
    try:
        (engine,) = lm_eval.tasks.TaskManager(include_defaults=False).load([config])["tasks"].values()
    except Exception as error:  # lm-eval tries a task's templates and functions on its first row
        raise DataError(f"{where}, row 0: {unreadable(error)}") from error
    return engine


def _checked(engine: Any, config: dict[str, Any], raw: Any, prepared: Any, where: str) -> BuiltTask:
    docs = decoded_rows(prepared)
    for row, doc in enumerate(docs):
        problem = _gold_problem(engine, doc)
        if problem:
            raise DataError(f"{where}, row {row}: {problem}; every row needs a gold answer")
    # From here on lm-eval reads prepared rows from memory: it goes through all of them twice a run, and
    # would decode and prepare them each time. Shots lie in its sampler by now.
    split = _evaluated_split(config)
    engine.dataset, engine.config.process_docs = {split: docs}, None
    # Rows that were filtered or multiplied on the way no longer match one to one.
    rows = docs if raw is prepared or len(raw) != len(docs) else decoded_rows(raw)
    return BuiltTask(config["task"], config.get("dataset_name"), engine, rows, docs)


def _gold_problem(engine: Any, doc: Mapping[str, Any]) -> str:
    try:
        if engine.OUTPUT_TYPE == GENERATE_UNTIL and engine.config.process_results is not None:
            return ""  # a scorer of its own, which need not use a target (IFEval)
        if engine.OUTPUT_TYPE != "multiple_choice":
            target = engine.doc_to_target(doc)
            return "" if isinstance(target, str) and target.strip() else f"the target is {target!r}"
        choices = engine.doc_to_choice(doc)
        if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices) or not choices:
            return f"the choices are {choices!r}"
        return (
            "" if gold_indices(engine, doc, choices) else f"no gold answer among its {len(choices)} choices"
        )
    except Exception as error:  # templates and functions of any lm-eval task run here
        return f"lm-eval finds none ({one_line(error)})"


def _refuse_own_shots(
    config: dict[str, Any], split: str, dataset: Mapping[str, Any], task: TaskSpec, name: str, shots: int
) -> None:
    """Refuse few-shot examples from the evaluated split: lm-eval would show an item its own answer."""
    own = config.get("fewshot_config") or {}
    source = own.get("split") or config.get("fewshot_split")
    if source is None and own.get("samples") is not None:
        return
    source = source or config.get("training_split") or config.get("validation_split") or split
    if source == split:
        raise TaskError(
            f"task '{task.name}': the {shots} shots of lm-eval's '{name}' would come from the evaluated "
            f"split '{split}', as its data has {', '.join(map(str, dataset))} only; set num_fewshot: 0 "
            f"({task_source(task)})"
        )


def _build_own(task: TaskSpec, spec: LoglikelihoodSpec) -> BuiltTask:
    """Build an lm-eval task over items of this project's or the user's own (``task.items``)."""
    rows = list(generators.load_questions(task.items or "", task.source_file))
    where = f"task '{task.name}': items '{task.items}'"
    if spec.num_fewshot:
        raise TaskError(
            f"task '{task.name}': own items have one split, so num_fewshot must be 0, got {spec.num_fewshot} "
            f"({task_source(task)})"
        )
    # load_questions sees to it that there are rows, and that all or none have options.
    multiple_choice, letters = bool(rows[0]["options"]), spec.options.get("target") == "letter"
    dataset = datasets.Dataset.from_list(rows)
    config = {
        "task": spec.tasks[0] if spec.tasks else task.name,
        "custom_dataset": lambda **_: {"test": dataset},
        "test_split": "test",
        "doc_to_text": functools.partial(_own_prompt, spec.options["prompt"]),
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if multiple_choice:
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": functools.partial(_own_choices, letters),
            "doc_to_target": _own_gold,
            "metric_list": [_metric("acc"), _metric("acc_norm")],
        }
    else:
        config |= {
            "output_type": "loglikelihood",
            "doc_to_target": _own_answer,
            "metric_list": [_metric("acc"), _metric("perplexity")],
        }
    return _checked(_construct(config, where), config, dataset, dataset, where)


def _own_prompt(prompt: str, doc: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f"{letter}. {option}" for letter, option in zip(_letters(doc), doc["options"], strict=True)
    )
    return prompt.format(question=doc["question"], choices=lines)


def _own_choices(letters: bool, doc: Mapping[str, Any]) -> list[str]:
    return _letters(doc) if letters else list(doc["options"])


def _own_gold(doc: Mapping[str, Any]) -> int:
    return list(doc["options"]).index(doc["answer"])


def _own_answer(doc: Mapping[str, Any]) -> str:
    # lm-eval puts no delimiter before the target of this output type.
    return f" {doc['answer']}"


def _letters(doc: Mapping[str, Any]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(doc["options"]))]


def _metric(name: str) -> dict[str, Any]:
    # lm-eval's own aggregate functions; the numbers that count are computed from records.
    aggregation = "perplexity" if name == "perplexity" else "mean"
    return {"metric": name, "aggregation": aggregation, "higher_is_better": name != "perplexity"}
