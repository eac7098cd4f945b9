"""Every mirrored task, joined completely from the raw rows of both engines' data sets."""

import functools
from collections import Counter
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.data import dataset_location, folder_configs, folder_splits, mirror_folder
from distill_eval.items import identify, is_kept

pytestmark = pytest.mark.mirror

# task -> (lm-eval config and split, EvalScope config and split, items on each side, joined items).
# "*": one config per subject. The counts are those of this mirror's README and MANIFEST.
EXPECTED = {
    "arc_easy": (("ARC-Easy", "test"), ("ARC-Easy", "test"), 2376, 2376, 2376),
    "arc_challenge": (("ARC-Challenge", "test"), ("ARC-Challenge", "test"), 1172, 1172, 1172),
    "hellaswag": (("default", "validation"), ("default", "validation"), 10042, 10042, 10042),
    "winogrande": (("winogrande_xl", "validation"), ("default", "validation"), 1267, 1267, 1267),
    "piqa": (("default", "validation"), ("default", "validation"), 1838, 1838, 1838),
    "mmlu": (("*", "test"), ("all", "test"), 14042, 14042, 14042),
    "mmlu_redux": (("*", "test"), ("*", "test"), 14042, 5700, 5693),
    "cmmlu": (("*", "test"), ("default", "test"), 11582, 11582, 11582),
    "lambada_openai": (("default", "test"), None, 5153, 0, 0),
    "gsm8k": (None, ("main", "test"), 0, 1319, 0),
    "bbh": (None, ("*", "test"), 0, 6511, 0),
    "humaneval": (None, ("openai_humaneval", "test"), 0, 164, 0),
    "ifeval": (None, ("default", "train"), 0, 541, 0),
}
# task -> lm-eval config and split of the arm generate_until, whose items are all of the generative protocol's.
GENERATE_UNTIL = {
    "gsm8k": ("main", "test"),
    "bbh": ("*", "test"),
    "humaneval": ("openai_humaneval", "test"),
    "ifeval": ("default", "train"),
}
NOT_MIRRORED = ("ceval", "truthfulqa")


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def rows(dataset_id, where, data_dir):
    """Yield (config, raw row) of one split, straight from the Parquet files."""
    import pyarrow.parquet

    config, split = where
    folder = mirror_folder(dataset_id, data_dir)
    assert folder is not None, dataset_id
    configs = [name for name in folder_configs(folder) if name != "all"] if config == "*" else [config]
    for name in configs:
        dataset_location(dataset_id, data_dir, task="test", config=name, split=split)
        paths = sorted(Path(folder, name if config == "*" else "").rglob(f"{split}-*.parquet"))
        if config != "*" and (folder / name).is_dir():
            paths = sorted((folder / name).glob(f"{split}-*.parquet"))
        assert paths, (folder, name, split)
        for path in paths:
            for row in pyarrow.parquet.read_table(path).to_pylist():
                yield name, row


@pytest.fixture(scope="module")
def items_of(catalog, data_dir):
    """Return a function (task name, 0 for lm-eval or 1 for EvalScope) -> [(item, raw row)]; reads once."""

    @functools.cache
    def read(name, side):
        task, where = catalog.tasks[name], EXPECTED[name][side]
        spec = (task.loglikelihood, task.generative)[side]
        if where is None:
            return []
        assert spec is not None
        seen = Counter()
        pairs = rows(spec.dataset, where, data_dir)
        return [(identify(row, spec.item_key, task, config, seen), row) for config, row in pairs]

    return read


@pytest.mark.parametrize("name", EXPECTED)
def test_join(name, items_of, record_property):
    _, _, num_here, num_there, num_joined = EXPECTED[name]
    here, there = items_of(name, 0), items_of(name, 1)
    assert (len(here), len(there)) == (num_here, num_there)
    here_by, there_by = ({item.key: item for item, _ in side} for side in (here, there))
    assert len(here_by) == len(here), "a key stands for one item"
    assert len(there_by) == len(there), "a key stands for one item"
    joined = here_by.keys() & there_by.keys()
    if here and there:
        lost = sorted(there_by.keys() - joined)
        record_property("not joined", lost)
        print(f"{name}: {len(joined)} joined, {len(lost)} of EvalScope's not: {lost[:10]}")
    assert len(joined) == num_joined
    for key in joined:
        assert here_by[key].chance == there_by[key].chance
        assert here_by[key].cluster == there_by[key].cluster


@pytest.mark.parametrize("name", GENERATE_UNTIL)
def test_the_arm_of_lm_evals_generative_tasks_joins_completely(name, catalog, items_of, data_dir):
    spec = catalog.tasks[name].generate_until
    seen = Counter()
    pairs = rows(spec.dataset, GENERATE_UNTIL[name], data_dir)
    arm = [identify(row, spec.item_key, catalog.tasks[name], config, seen) for config, row in pairs]
    there = [item for item, _ in items_of(name, 1)]
    assert {(item.key, item.cluster) for item in arm} == {(item.key, item.cluster) for item in there}
    assert len(arm) == len(there) == EXPECTED[name][3]


def test_redux_uses_the_questions_it_finds_correct(catalog, items_of):
    task = catalog.tasks["mmlu_redux"]
    kept = {item.key: row for item, row in items_of("mmlu_redux", 1) if is_kept(row, task.generative, task)}
    here = {item.key: row for item, row in items_of("mmlu_redux", 0)}
    joined = kept.keys() & here.keys()
    assert (len(kept), len(joined)) == (5330, 5324)
    wrong = [key for key in joined if int(kept[key]["answer"]) != int(here[key]["answer"])]
    assert not wrong, "what MMLU-Redux marks as correct has MMLU's answer"


def test_clusters(items_of):
    assert len({item.cluster for item, _ in items_of("winogrande", 0)}) == 823
    assert len({item.cluster for item, _ in items_of("mmlu_redux", 0)}) == 57


def test_rows_that_repeat_are_kept_apart(items_of):
    again = [item.key for item, _ in items_of("mmlu_redux", 0) if not item.key.endswith("#0")]
    assert len(again) == 27


def test_every_task_is_accounted_for(catalog, data_dir):
    from_engines = {name for name, task in catalog.tasks.items() if task.items is None}
    assert from_engines == set(EXPECTED) | set(NOT_MIRRORED)
    assert {name for name, task in catalog.tasks.items() if task.generate_until} == set(GENERATE_UNTIL)
    for name in NOT_MIRRORED:
        assert mirror_folder(catalog.tasks[name].loglikelihood.dataset, data_dir) is None
    folder = mirror_folder(catalog.tasks["gsm8k"].generative.dataset, data_dir)
    assert "train" in folder_splits(folder, "main"), "the four examples come from there"
