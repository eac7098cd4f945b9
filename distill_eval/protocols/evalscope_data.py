"""Load a benchmark through EvalScope's own adapter and give every sample the key both protocols share."""

import copy
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
# What a benchmark is scored against, where that is not the sample's target.
_GOLD_FIELDS = {"ifeval": "instruction_id_list", "humaneval": "test"}
_LABEL_FIELDS = ("label", "answer", "answerKey")
_HIDDEN_LABELS = ("", "-1", "None")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What one task's data is on EvalScope's side, ready to be scored any number of times.

    ``meta``: the benchmark's entry for EvalScope's registry; ``samples``: subset name -> samples whose input is
    the finished list of chat messages and whose metadata holds the item key; ``items``: key -> item, in data
    set order; ``targets``: key -> the gold answer as text.
    """

    meta: Any
    samples: dict[str, list[Any]]
    items: dict[str, Item]
    targets: dict[str, str]


def load_benchmark(task: TaskSpec, data_dir: Path | None) -> Benchmark:
    """Load every item of ``task`` as EvalScope would send it.

    Raises DataError for a data set that is missing, empty or without gold answers, TaskError for a benchmark,
    subset or number of examples that EvalScope does not have.
    """
    spec = _spec(task)
    with quiet_evalscope():
        known = _known_benchmark(task)
        subsets = _known_subsets(task, known)
        dataset_args = {"subset_list": list(subsets), "few_shot_num": spec.num_fewshot}
        dataset_args |= {"extra_params": spec.options["extra_params"]} if spec.options.get("extra_params") else {}
        source, hub = _source(task, known, subsets, data_dir)
        meta = copy.deepcopy(known)
        meta.name = f"distill_eval-{task.name}"
        keyed = _keyed_adapter(known.data_adapter, task)
        meta.data_adapter = keyed
        config = task_config(meta.name, dataset_args | source, model="none", eval_type="mock_llm", dataset_hub=hub)
        with registered(meta):
            adapter = _load(task, meta.name, config, data_dir)
        benchmark = collect(task, adapter.test_dataset, adapter.kept_items, _settled(adapter, known))
    return benchmark


def collect(task: TaskSpec, dataset: Any, kept: Mapping[str, Item], meta: Any) -> Benchmark:
    """Check a loaded data set and keep of it what the task keeps; ``kept``: key -> item."""
    spec = _spec(task)
    samples: dict[str, list[Any]] = {}
    targets: dict[str, str] = {}
    for subset, part in dataset.items():
        for sample in part:
            key = (sample.metadata or {}).get(ITEM_KEY)
            if key is None:
                raise TaskError(
                    f"task '{task.name}': EvalScope's benchmark '{spec.benchmark}' reads its rows in a way of its "
                    f"own, so items cannot be identified ({task.source_file})"
                )
            if key not in kept:
                continue
            if key in targets:
                raise TaskError(
                    f"task '{task.name}': EvalScope's benchmark '{spec.benchmark}' makes several samples of one "
                    f"row, which cannot be joined with one item ({task.source_file})"
                )
            targets[key] = _target(sample)
            gold = _GOLD_FIELDS.get(spec.benchmark)
            if not (sample.metadata.get(gold) if gold else targets[key]):
                raise _no_gold(task, subset, kept[key])
            samples.setdefault(subset, []).append(sample)
    if not targets:
        what = "no row is left of" if spec.options.get("keep") else "there are no rows in"
        raise DataError(f"task '{task.name}': {what} dataset '{spec.dataset}' ({task.source_file})")
    return Benchmark(meta, samples, {key: kept[key] for key in targets}, targets)


def _spec(task: TaskSpec) -> GenerativeSpec:
    assert task.generative is not None
    return task.generative


def _known_benchmark(task: TaskSpec) -> Any:
    from evalscope.api.registry import BENCHMARK_REGISTRY

    name = _spec(task).benchmark
    if name not in BENCHMARK_REGISTRY:
        hint = did_you_mean(name, BENCHMARK_REGISTRY.keys()).split("; known")[0]
        raise TaskError(f"task '{task.name}': EvalScope has no benchmark '{name}'{hint} ({task.source_file})")
    return BENCHMARK_REGISTRY[name]


def _known_subsets(task: TaskSpec, meta: Any) -> Sequence[str]:
    spec = _spec(task)
    for subset in spec.subsets:
        if subset not in meta.subset_list:
            hint = did_you_mean(subset, meta.subset_list)
            raise TaskError(
                f"task '{task.name}': EvalScope's benchmark '{spec.benchmark}' has no subset '{subset}'{hint} "
                f"({task.source_file})"
            )
    return spec.subsets or tuple(meta.subset_list)


def _source(task: TaskSpec, meta: Any, subsets: Sequence[str], data_dir: Path | None) -> tuple[dict, str]:
    """Return the dataset_args that say where the rows are, and the hub to take them from."""
    spec = _spec(task)
    # A benchmark that cuts one config into subsets by a field has no config of a subset's name.
    config = subsets[0] if len(subsets) == 1 and subsets[0] != meta.default_subset else None
    place = dataset_location(
        spec.dataset, data_dir, task=task.name, config=None, split=None, revision=spec.revision
    )
    del config
    if Path(place).is_absolute():
        return {"local_path": place}, "modelscope"
    if place == meta.dataset_id and not meta.hf_dataset_id:
        return {"dataset_revision": spec.revision} if spec.revision else {}, "modelscope"
    if place == meta.dataset_id:
        place = meta.hf_dataset_id
    return {"dataset_id": place, "hf_dataset_id": place, "hf_dataset_revision": spec.revision}, "huggingface"


def _load(task: TaskSpec, name: str, config: Any, data_dir: Path | None) -> Any:
    from evalscope.api.registry import get_benchmark

    spec = _spec(task)
    try:
        adapter = get_benchmark(name, config)
        adapter.validate_judge_strategy()
    except (ValueError, KeyError, AssertionError) as error:
        message = str(error).replace(name, spec.benchmark)
        raise TaskError(f"task '{task.name}': EvalScope refuses it: {message} ({task.source_file})") from error
    except ImportError as error:
        raise DataError(f"task '{task.name}': EvalScope's '{spec.benchmark}' needs more: {error}") from error
    try:
        adapter.load_dataset()
    except DataError:
        raise
    except (FileNotFoundError, ConnectionError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = first if data_dir else ""
        raise missing_dataset(spec.dataset, data_dir, task=task.name, found=found) from error
    except (ValueError, AssertionError) as error:
        # An unknown split or config, or fewer rows to draw examples from than were asked for.
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"task '{task.name}': dataset '{spec.dataset}' cannot be used: {first} ({task.source_file})"
        ) from error
    return adapter


def _settled(adapter: Any, original: Any) -> Any:
    """Return the benchmark's entry as the adapter ended up using it, with EvalScope's own adapter class."""
    meta = copy.deepcopy(adapter.benchmark_meta)
    meta.data_adapter = original.data_adapter
    return meta


def _keyed_adapter(base: type, task: TaskSpec) -> type:
    """Return a subclass of an adapter that identifies each row it turns into a sample."""
    spec = _spec(task)
    keep = spec.options.get("keep") or {}

    class KeyedAdapter(base):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.kept_items: dict[str, Item] = {}
            self._seen: Counter[str] = Counter()
            self._examples = False

        def load_fewshot_subset(self, *arguments: Any, **named: Any) -> Any:
            self._examples = True
            try:
                return super().load_fewshot_subset(*arguments, **named)
            finally:
                self._examples = False

        def record_to_sample(self, record: dict[str, Any]) -> Any:
            if self._examples:
                return super().record_to_sample(record)
            # Some adapters change the row they are given (MMLU-Redux its choices).
            raw = copy.deepcopy(record)
            try:
                sample = super().record_to_sample(record)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise DataError(
                    f"task '{task.name}': a row of dataset '{spec.dataset}' cannot be used, is its answer "
                    f"missing? EvalScope says {type(error).__name__}: {error}; the row begins {str(raw)[:80]}"
                ) from error
            if isinstance(sample, list):
                raise TaskError(
                    f"task '{task.name}': EvalScope's benchmark '{spec.benchmark}' makes several samples of one "
                    f"row, which cannot be joined with one item ({task.source_file})"
                )
            subset = sample.subset_key or self.current_subset_name or None
            item = items.identify(raw, spec.item_key, task, subset, self._seen)
            # A copy: IFEval's metadata is the row itself.
            sample.metadata = {**(sample.metadata or {}), ITEM_KEY: item.key}
            if all(_matches(raw.get(field), wanted) for field, wanted in keep.items()):
                if sample.choices and any(str(raw.get(f, "?")).strip() in _HIDDEN_LABELS for f in _LABEL_FIELDS):
                    raise _no_gold(task, subset or "", item)
                self.kept_items[item.key] = item
            return sample

    return KeyedAdapter


def _matches(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def _target(sample: Any) -> str:
    return ",".join(sample.target) if isinstance(sample.target, list) else str(sample.target or "")


def _no_gold(task: TaskSpec, subset: str, item: Item) -> DataError:
    spec = _spec(task)
    where = f" (subset '{subset}')" if subset and subset != items.NO_SUBSET else ""
    return DataError(
        f"task '{task.name}': dataset '{spec.dataset}'{where} lacks gold answers: the item "
        f"'{item.question[:60]}' has none; use a split that has them ({task.source_file})"
    )
