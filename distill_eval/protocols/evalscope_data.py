"""Load a benchmark through EvalScope's own adapter and give every sample the key both protocols share."""

import copy
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval import items
from distill_eval.data import dataset_location, missing_dataset
from distill_eval.errors import DataError, TaskError, did_you_mean
from distill_eval.items import Item
from distill_eval.protocols.evalscope_engine import quiet_evalscope, registered, task_config
from distill_eval.schema.tasks import GenerativeSpec, TaskSpec

ITEM_KEY = "item_key"
# EvalScope renamed some metrics in reports but not in every scorer.
METRIC_ALIASES = {"acc": "accuracy", "accuracy": "acc"}
# What a benchmark is scored against, where that is not the sample's target.
_GOLD_FIELDS = {"ifeval": "instruction_id_list", "humaneval": "test"}
_LABEL_FIELDS = ("label", "answer", "answerKey")
_HIDDEN_LABELS = ("", "-1", "None")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What one task's data is on EvalScope's side, ready to be scored any number of times.

    ``meta``: the benchmark's entry for EvalScope's registry; ``samples``: subset name -> samples whose input
    is the finished list of chat messages and whose metadata holds the item key; ``items``: key -> item, in
    data set order; ``targets``: key -> the gold answer as text.
    """

    meta: Any
    samples: dict[str, list[Any]]
    items: dict[str, Item]
    targets: dict[str, str]


def load_benchmark(task: TaskSpec, data_dir: Path | None) -> Benchmark:
    """Load every item of ``task`` as EvalScope would send it.

    Raises DataError for a data set that is missing, empty or without gold answers, TaskError for a
    benchmark, subset, metric or number of examples that EvalScope does not have.
    """
    spec = _spec(task)
    with quiet_evalscope():
        from evalscope.api.registry import get_benchmark

        known = _known_benchmark(task)
        _check_resources(task)
        dataset_args: dict[str, Any] = {"few_shot_num": spec.num_fewshot}
        if spec.subsets:
            dataset_args["subset_list"] = list(spec.subsets)
        if spec.options.get("extra_params"):
            dataset_args["extra_params"] = spec.options["extra_params"]
        meta = copy.deepcopy(known)
        meta.name = f"distill_eval-{task.name}"
        meta.data_adapter = _keyed_adapter(known.data_adapter, task)
        config = task_config(meta.name, dataset_args, model="none", eval_type="mock_llm")
        with registered(meta):
            try:
                adapter: Any = get_benchmark(meta.name, config)
                adapter.validate_judge_strategy()
            except (ValueError, KeyError) as error:
                message = str(error).replace(meta.name, spec.benchmark)
                raise TaskError(
                    f"task '{task.name}': EvalScope refuses it: {message} ({task.source_file})"
                ) from error
        _check_metric(task, adapter)
        _place(task, adapter, data_dir)
        _load(task, adapter, data_dir)
        meta = copy.deepcopy(adapter.benchmark_meta)
        meta.data_adapter = known.data_adapter
        return collect_samples(task, meta, adapter.test_dataset, adapter.kept_items)


def collect_samples(task: TaskSpec, meta: Any, dataset: Any, kept: Mapping[str, Item]) -> Benchmark:
    """Take from a loaded data set the samples of the items in ``kept``; DataError without gold answers."""
    spec = _spec(task)
    samples: dict[str, list[Any]] = {}
    targets: dict[str, str] = {}
    for subset, part in dataset.items():
        for sample in part:
            key = (sample.metadata or {}).get(ITEM_KEY)
            if key is None:
                raise TaskError(
                    f"task '{task.name}': EvalScope's '{spec.benchmark}' reads its rows in a way of "
                    f"its own, so items cannot be identified ({task.source_file})"
                )
            if key not in kept:
                continue
            targets[key] = _text(sample.target)
            if spec.benchmark in _GOLD_FIELDS:
                gold = _text(sample.metadata.get(_GOLD_FIELDS[spec.benchmark]))
                targets[key] = targets[key] or gold
            else:
                gold = targets[key]
            if not gold.strip():
                raise _no_gold(task, subset, kept[key])
            samples.setdefault(subset, []).append(sample)
    if not targets:
        what = "no row is left of" if spec.options.get("keep") else "there are no rows in"
        raise DataError(
            f"task '{task.name}': {what} dataset '{spec.dataset or task.items}' ({task.source_file})"
        )
    return Benchmark(meta, samples, {key: kept[key] for key in targets}, targets)


def _spec(task: TaskSpec) -> GenerativeSpec:
    assert task.generative is not None
    return task.generative


def _known_benchmark(task: TaskSpec) -> Any:
    from evalscope.api.registry import BENCHMARK_REGISTRY

    name = _spec(task).benchmark
    if name not in BENCHMARK_REGISTRY:
        hint = did_you_mean(name, BENCHMARK_REGISTRY.keys())
        # EvalScope has some 200 of them: a list is no help.
        hint = "" if hint.startswith("; known") else hint
        raise TaskError(f"task '{task.name}': EvalScope has no benchmark '{name}'{hint} ({task.source_file})")
    meta = BENCHMARK_REGISTRY[name]
    for subset in _spec(task).subsets:
        if subset not in meta.subset_list:
            hint = did_you_mean(subset, meta.subset_list)
            raise TaskError(
                f"task '{task.name}': EvalScope's benchmark '{name}' has no subset '{subset}'{hint} "
                f"({task.source_file})"
            )
    return meta


def _check_resources(task: TaskSpec) -> None:
    """Raise DataError for what EvalScope's scorer would look for on the network, or crash without."""
    if _spec(task).benchmark != "ifeval":
        return
    for module in ("langdetect", "nltk"):
        if importlib.util.find_spec(module) is None:
            raise DataError(
                f"task '{task.name}': IFEval needs the Python package {module}: pip install {module}"
            )
    import langdetect
    import nltk

    # It draws random numbers; EvalScope seeds it too, but only once it has been used.
    langdetect.DetectorFactory.seed = 0
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        raise DataError(
            f"task '{task.name}': IFEval needs NLTK's punkt_tab, which is not there: run "
            f"`python -m nltk.downloader punkt_tab`, or set NLTK_DATA to a folder with tokenizers/punkt_tab"
        ) from None


def _check_metric(task: TaskSpec, adapter: Any) -> None:
    spec = _spec(task)
    known = adapter.benchmark_meta._metric_names()
    if known and not {spec.metric, METRIC_ALIASES.get(spec.metric)} & set(known):
        hint = did_you_mean(spec.metric, known)
        raise TaskError(
            f"task '{task.name}': EvalScope's '{spec.benchmark}' has no metric '{spec.metric}'{hint} "
            f"({task.source_file})"
        )


def _place(task: TaskSpec, adapter: Any, data_dir: Path | None) -> None:
    """Tell the adapter where its rows are: a folder that is known to hold them, or a hub."""
    spec, meta = _spec(task), adapter.benchmark_meta
    splits = [adapter.eval_split, *([adapter.train_split] if adapter._should_load_fewshot() else [])]
    # Some benchmarks load one config and cut it into subsets by a field.
    configs: Sequence[str] = [adapter.default_subset] if adapter.reformat_subset else adapter.subset_list
    if adapter.split_as_subset:
        configs, splits = [adapter.default_subset], list(adapter.subset_list)
    place = ""
    for config in configs:
        for split in splits:
            place = dataset_location(
                spec.dataset,
                data_dir,
                task=task.name,
                config=None if config == "default" else config,
                split=split,
                revision=spec.revision,
            )
    if Path(place).is_dir():
        meta._update({"local_path": str(Path(place).resolve())})
    elif place == meta.dataset_id and not meta.hf_dataset_id:
        meta._update({"dataset_revision": spec.revision} if spec.revision else {})
    else:
        hub_id = meta.hf_dataset_id if place == meta.dataset_id else place
        meta._update({"dataset_id": hub_id, "hf_dataset_id": hub_id, "hf_dataset_revision": spec.revision})
        adapter.dataset_hub = "huggingface"


def _load(task: TaskSpec, adapter: Any, data_dir: Path | None) -> None:
    from datasets.exceptions import DatasetsError

    spec = _spec(task)
    try:
        adapter.load_dataset()
    except (DataError, TaskError):
        raise
    except (OSError, ValueError, AssertionError, DatasetsError, StopIteration) as error:
        # Unreachable, damaged, an unknown split or config, or fewer rows to draw examples from than wanted.
        if data_dir is None and isinstance(error, OSError):
            raise missing_dataset(spec.dataset, data_dir, task=task.name) from error
        empty = isinstance(error, StopIteration)  # what ``datasets`` makes of a file without rows
        said = "it has no rows" if empty else str(error.__cause__ or error).strip() or type(error).__name__
        raise DataError(
            f"task '{task.name}': dataset '{spec.dataset}' cannot be used: {said.splitlines()[0]} "
            f"({task.source_file})"
        ) from error


def _keyed_adapter(base: Any, task: TaskSpec) -> type:
    """Return a subclass of an adapter that identifies each row it turns into a sample."""
    spec = _spec(task)

    class KeyedAdapter(base):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.kept_items: dict[str, Item] = {}
            self._seen: Counter[str] = Counter()
            self._loads_examples = False

        def load_fewshot_subset(self, *arguments: Any, **named: Any) -> Any:
            self._loads_examples = True
            try:
                return super().load_fewshot_subset(*arguments, **named)
            finally:
                self._loads_examples = False

        def record_to_sample(self, record: dict[str, Any]) -> Any:
            if self._loads_examples:
                return super().record_to_sample(record)
            # Some adapters change the row they are given (MMLU-Redux its choices).
            raw = copy.deepcopy(record)
            try:
                sample = super().record_to_sample(record)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"task '{task.name}': EvalScope cannot read a row of dataset '{spec.dataset}' (is its "
                    f"gold answer missing?): {type(error).__name__}: {error}; the row begins {str(raw)[:80]}"
                ) from error
            if isinstance(sample, list):
                raise TaskError(
                    f"task '{task.name}': EvalScope's '{spec.benchmark}' makes several samples of "
                    f"one row, which cannot be joined with one item ({task.source_file})"
                )
            subset = sample.subset_key or self.current_subset_name or None
            item = items.identify(raw, spec.item_key, task, subset, self._seen)
            # A copy: IFEval's metadata is the row itself.
            sample.metadata = {**(sample.metadata or {}), ITEM_KEY: item.key}
            if items.is_kept(raw, spec, task):
                hidden = [f for f in _LABEL_FIELDS if str(raw.get(f, "?")).strip() in _HIDDEN_LABELS]
                if sample.choices and hidden:
                    raise _no_gold(task, subset or "", item)
                self.kept_items[item.key] = item
            return sample

    return KeyedAdapter


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _no_gold(task: TaskSpec, subset: str, item: Item) -> DataError:
    where = f" (subset '{subset}')" if subset and subset != items.NO_SUBSET else ""
    return DataError(
        f"task '{task.name}': dataset '{_spec(task).dataset or task.items}'{where} lacks gold answers: item "
        f"'{item.question[:60]}' has none; use a split that has them ({task.source_file})"
    )
