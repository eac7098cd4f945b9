"""Tasks and suites as YAML files: find, read, validate, select."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval.content import content_path
from distill_eval.errors import OptionError, TaskError, did_you_mean
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, Suite, TaskSpec
from distill_eval.yaml_files import Check, flag, mapping, one_of, read_yaml, shown_path, text, texts

CLUSTERS = ("subset", "options", "question")
DIRECTIONS = ("higher", "lower")
TARGETS = ("option", "letter")
PER_OPTION = "1/options"
# What a task of one's own items needs no telling: the rows of generators/ have these fields.
OWN_ITEM_KEY = ItemKey(question=("question",), options=("options",), subset="subset")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every task and suite known to this process, by name."""

    tasks: dict[str, TaskSpec]
    suites: dict[str, Suite]


def load_catalog(extra_dirs: Iterable[Path | str] = ()) -> Catalog:
    """Read the shipped tasks and suites, and those of ``extra_dirs`` (suites lie in ``DIR/suites``).

    Raises TaskError for a folder that does not exist, a malformed file, or a name that two files claim.
    """
    shipped = content_path("tasks")
    folders = [shipped]
    for extra in map(Path, extra_dirs):
        if not extra.is_dir():
            raise TaskError(f"tasks folder '{extra}' does not exist or is not a folder (--tasks-dir)")
        if extra.resolve() not in [folder.resolve() for folder in folders]:
            folders.append(extra)
    tasks: dict[str, TaskSpec] = {}
    suites: dict[str, Suite] = {}
    for folder in folders:
        for path in _yaml_files(folder):
            task = read_task(path)
            _refuse_duplicate("task", task.name, path, tasks)
            tasks[task.name] = task
    for folder in folders:
        for path in _yaml_files(folder / "suites"):
            suite = read_suite(path, tasks)
            _refuse_duplicate("suite", suite.name, path, suites)
            suites[suite.name] = suite
    return Catalog(tasks, suites)


def select_tasks(
    catalog: Catalog, suite: str | None = None, names: Sequence[str] = ()
) -> tuple[TaskSpec, ...]:
    """Return the tasks of a suite, or those named, in that order and each once.

    Raises OptionError when both or neither are given, TaskError for an unknown name.
    """
    if suite and names:
        raise OptionError("--suite and --tasks exclude each other: name the tasks, or a suite of them")
    if suite:
        if suite not in catalog.suites:
            raise TaskError(f"unknown suite '{suite}'{did_you_mean(suite, catalog.suites)}")
        names = catalog.suites[suite].tasks
    if not names:
        raise OptionError("no task given: use --suite NAME or --tasks a,b (see `distill-eval tasks list`)")
    for name in names:
        if name not in catalog.tasks:
            raise TaskError(f"unknown task '{name}'{did_you_mean(name, catalog.tasks)}")
    return tuple(catalog.tasks[name] for name in dict.fromkeys(names))


def read_task(path: Path) -> TaskSpec:
    """Read and validate one task file; TaskError names the file, the key and what would be right."""
    raw = read_yaml(path, TaskError)
    where = _Where("task", raw, path)
    where.known_keys(raw, _TASK_KEYS)
    own_items = where.get(raw, "items", text, None)
    name = where.name
    loglikelihood = where.get(raw, "loglikelihood", mapping, None)
    generative = where.get(raw, "generative", mapping, None)
    generate_until = where.get(raw, "generate_until", mapping, None)
    if loglikelihood is None and generative is None:
        raise where.error("loglikelihood and generative are both null; a task needs at least one protocol")
    return TaskSpec(
        name=name,
        title=where.get(raw, "title", text),
        category=where.get(raw, "category", text),
        loglikelihood=None
        if loglikelihood is None
        else _lm_eval(where, LOGLIKELIHOOD, loglikelihood, own_items),
        generative=None if generative is None else _generative(where, generative, own_items),
        chance=where.get(raw, "chance", _chance, None),
        cluster=where.get(raw, "cluster", one_of(CLUSTERS), None),
        direction=where.get(raw, "direction", one_of(DIRECTIONS), "higher"),
        language=where.get(raw, "language", text, "en"),
        namespace=where.get(raw, "namespace", text, name),
        items=own_items,
        max_new_tokens=where.get(raw, "max_new_tokens", _at_least(1), None),
        differs=where.get(raw, "differs", texts, ()),
        source_file=str(path),
        generate_until=None
        if generate_until is None
        else _lm_eval(where, GENERATE_UNTIL, generate_until, own_items),
    )


def read_suite(path: Path, tasks: Mapping[str, TaskSpec]) -> Suite:
    """Read and validate one suite file; every task it names must be known."""
    raw = read_yaml(path, TaskError)
    where = _Where("suite", raw, path)
    where.known_keys(raw, ("name", "title", "tasks", "greedy", "max_new_tokens", "seeds"))
    names = where.get(raw, "tasks", texts)
    for name in names:
        if name not in tasks:
            raise where.error(f"unknown task '{name}'{did_you_mean(name, tasks)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise where.error(f"task '{twice}' is listed twice")
    return Suite(
        name=where.name,
        title=where.get(raw, "title", text),
        tasks=names,
        greedy=where.get(raw, "greedy", flag, False),
        max_new_tokens=where.get(raw, "max_new_tokens", _at_least(1), None),
        seeds=where.get(raw, "seeds", _integers, ()),
        source_file=str(path),
    )


_TASK_KEYS = (
    "name", "title", "category", "loglikelihood", "generative", "chance", "cluster", "direction", "language",
    "namespace", "items", "max_new_tokens", "differs", "generate_until",
)  # fmt: skip
_LM_EVAL_KEYS = (
    "tasks", "dataset", "metric", "metrics", "item_key", "num_fewshot", "revision", "options",
)  # fmt: skip
_GENERATIVE_KEYS = (
    "benchmark", "dataset", "metric", "item_key", "num_fewshot", "subsets", "revision", "runs_code",
    "options", "letters",
)  # fmt: skip
_ITEM_KEY_KEYS = ("question", "options", "option_skip", "subset")
# Of engine tasks: lm-eval config keys to override; EvalScope's own extra parameters; raw rows to keep.
_ENGINE_OPTIONS = {
    LOGLIKELIHOOD: ("config", "keep"),
    GENERATIVE: ("extra_params", "keep"),
    GENERATE_UNTIL: ("config", "keep"),
}
_OWN_OPTIONS = ("prompt", "target")


def _lm_eval(where: "_Where", protocol: str, raw: dict[str, Any], own_items: str | None) -> LoglikelihoodSpec:
    at = where.inside(protocol)
    if own_items and protocol == GENERATE_UNTIL:
        raise where.error("generate_until needs a task of lm-eval's; items of your own have none")
    at.known_keys(raw, _LM_EVAL_KEYS)
    metric = at.get(raw, "metric", text)
    metrics = at.get(raw, "metrics", texts, (metric,))
    if metric not in metrics:
        raise at.error(f"{at.prefix}metric '{metric}' is not among metrics {list(metrics)}")
    return LoglikelihoodSpec(
        tasks=at.get(raw, "tasks", texts, (at.name,) if own_items else _REQUIRED),
        dataset=at.get(raw, "dataset", text, "" if own_items else _REQUIRED),
        metric=metric,
        item_key=_item_key(at, raw, own_items),
        num_fewshot=at.get(raw, "num_fewshot", _at_least(0), 0),
        metrics=metrics,
        revision=at.get(raw, "revision", text, None),
        options=_options(at, raw, own_items, protocol),
    )


def _generative(where: "_Where", raw: dict[str, Any], own_items: str | None) -> GenerativeSpec:
    at = where.inside("generative")
    at.known_keys(raw, _GENERATIVE_KEYS)
    item_key = _item_key(at, raw, own_items)
    options = _options(at, raw, own_items, GENERATIVE)
    has_letters = options.get("target") == "letter" if own_items else bool(item_key.options)
    return GenerativeSpec(
        benchmark=at.get(raw, "benchmark", text, at.name if own_items else _REQUIRED),
        dataset=at.get(raw, "dataset", text, "" if own_items else _REQUIRED),
        metric=at.get(raw, "metric", text),
        item_key=item_key,
        num_fewshot=at.get(raw, "num_fewshot", _at_least(0), 0),
        subsets=at.get(raw, "subsets", texts, ()),
        revision=at.get(raw, "revision", text, None),
        runs_code=at.get(raw, "runs_code", flag, False),
        options=options,
        letters=_letters(at, raw, has_letters),
    )


def _letters(at: "_Where", raw: dict[str, Any], has_letters: bool) -> str | None:
    form = at.get(raw, "letters", text, None)
    if form is None:
        return None
    if form.count("{letter}") != 1:
        raise at.error(
            f"{at.prefix}letters must contain {{letter}} once, as in 'ANSWER: {{letter}}', got {form!r}"
        )
    if not has_letters:
        raise at.error(
            f"{at.prefix}letters needs a task whose prompt shows options by letter "
            f"(item_key.options; target: letter for items of your own)"
        )
    return form


def _item_key(at: "_Where", raw: dict[str, Any], own_items: str | None) -> ItemKey:
    if own_items and raw.get("item_key") is None:
        return OWN_ITEM_KEY
    key = at.get(raw, "item_key", mapping)
    at = at.inside("item_key")
    at.known_keys(key, _ITEM_KEY_KEYS)
    return ItemKey(
        question=at.get(key, "question", texts),
        options=at.get(key, "options", texts, ()),
        option_skip=at.get(key, "option_skip", _at_least(0), 0),
        subset=at.get(key, "subset", _maybe_empty, None),
    )


def _options(at: "_Where", raw: dict[str, Any], own_items: str | None, protocol: str) -> dict[str, Any]:
    options = at.get(raw, "options", mapping, {})
    at = at.inside("options")
    if not own_items:
        at.known_keys(options, _ENGINE_OPTIONS[protocol])
        for key in options:
            at.get(options, key, mapping)
        return options
    at.known_keys(options, _OWN_OPTIONS)
    prompt = at.get(options, "prompt", text)
    if "{question}" not in prompt:
        raise at.error(f"{at.prefix}prompt must contain {{question}}, got {prompt!r}")
    try:
        prompt.format(question="", choices="")
    except (KeyError, IndexError, ValueError) as error:
        raise at.error(
            f"{at.prefix}prompt may use {{question}} and {{choices}} only, got {prompt!r} ({error!r})"
        ) from None
    at.get(options, "target", one_of(TARGETS), "option")
    return options


_REQUIRED = object()


class _Where:
    """The place in a file that an error message names."""

    def __init__(self, kind: str, raw: dict[str, Any], path: Path, name: str = "", prefix: str = "") -> None:
        self.kind, self.path, self.prefix = kind, path, prefix
        self.name = name or path.stem
        if not name and raw.get("name") is not None:
            self.name = self.get(raw, "name", text)

    def inside(self, key: str) -> "_Where":
        return _Where(self.kind, {}, self.path, self.name, f"{self.prefix}{key}.")

    def error(self, text: str) -> TaskError:
        return TaskError(f"{self.kind} '{self.name}': {text} ({shown_path(self.path)})")

    def known_keys(self, raw: dict[str, Any], known: Sequence[str]) -> None:
        for key in raw:
            if key not in known:
                raise self.error(f"unknown key '{self.prefix}{key}'{did_you_mean(str(key), known)}")

    def get(self, raw: dict[str, Any], key: str, check: Check, default: Any = _REQUIRED) -> Any:
        """Return the checked value of ``key``; null or missing: the default, or an error without one."""
        value = raw.get(key)
        if value is None:
            if default is not _REQUIRED:
                return default
            raise self.error(f"{self.prefix}{key} is required")
        checked, wanted = check(value)
        if wanted:
            raise self.error(f"{self.prefix}{key} must be {wanted}, got {value!r}")
        return checked


def _maybe_empty(value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, str) else "a field path or ''"


def _integers(value: Any) -> tuple[Any, str]:
    good = isinstance(value, list) and value and all(type(v) is int for v in value)
    return (tuple(value), "") if good else (value, "a list of whole numbers")


def _at_least(low: int) -> Check:
    def check(value: Any) -> tuple[Any, str]:
        if isinstance(value, bool) or not isinstance(value, int):
            return value, "a whole number"
        return value, "" if value >= low else f">= {low}"

    return check


def _chance(value: Any) -> tuple[Any, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    return value, "" if number or value == PER_OPTION else f"a number in [0, 1), '{PER_OPTION}' or null"


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in (".yaml", ".yml"))


def _refuse_duplicate(kind: str, name: str, path: Path, known: Mapping[str, TaskSpec | Suite]) -> None:
    if name in known:
        other = shown_path(known[name].source_file)
        raise TaskError(f"{kind} '{name}' is defined twice: in {other} and in {shown_path(path)}; rename one")
