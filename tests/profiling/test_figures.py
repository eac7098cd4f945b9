"""What a profile hands to the gate and to JSON."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import OptionError
from distill_eval.profiling.accuracies import read_accuracies
from distill_eval.profiling.figures import efficiency, median_interval, summary
from distill_eval.runs import write_run
from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.longcontext import LongCell, LongResults
from distill_eval.schema.profile import (
    OK,
    OUT_OF_MEMORY,
    Bounds,
    CacheSize,
    CheckpointProfile,
    Loaded,
    Memory,
    Point,
    Profile,
    ProfileOptions,
    Search,
    Target,
    Timing,
)
from distill_eval.schema.results import Average, Cell, Estimate, Results, TaskResult

LOADED = Loaded(10, 20, "engine", "bfloat16", "cuda:0", "sdpa", "dynamic")
GIB = 2**30


def timing(median: float, spread: float = 0.01, count: int = 11) -> Timing:
    return Timing(tuple(median * (1 + spread * (k - count // 2)) for k in range(count)))


def profile(*factors: float) -> Profile:
    """Two contexts, the second out of memory, and a search; times are those of the first checkpoint times a factor."""
    checkpoints = []
    for number, factor in enumerate(factors):
        bounds = Bounds(CacheSize(GIB, 0), 1, 1, 1, 1, prefill_s=0.5, decode_s=0.01)
        points = (
            Point(
                2048, 1, OK, ttft=timing(2.0 * factor), step=timing(0.02 * factor), bounds=bounds,
                cache=CacheSize(GIB, GIB), memory=Memory(4 * GIB, 5 * GIB),
            ),
            Point(8192, 1, OUT_OF_MEMORY, "too long"),
        )  # fmt: skip
        searched = tuple(Point(8192, batch, OK, step=timing(0.1 * factor)) for batch in (1, 2, 4))
        search = Search(8192, (*searched, Point(8192, 8, OUT_OF_MEMORY, "too many")))
        target = Target(f"model{number}", "folder", f"weights {number}", "qwen3")
        checkpoints.append(CheckpointProfile(target, LOADED, points, (search,)))
    return Profile(ProfileOptions((2048, 8192), (8192,)), tuple(checkpoints), "card")


@pytest.mark.parametrize(
    ("count", "ranks"), [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15))]
)
def test_the_interval_of_a_median(count: int, ranks: tuple[float, float] | None) -> None:
    """Ranks as in tables of the sign test's interval."""
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert median_interval(values) == ranks


def test_its_coverage() -> None:
    draw, hits = random.Random(0), 0
    for _ in range(4000):
        interval = median_interval([draw.lognormvariate(0, 1) for _ in range(10)])
        assert interval is not None
        hits += interval[0] <= 1 <= interval[1]
    assert 0.97 < hits / 4000 < 0.99  # 97.9% by theory


def test_figures_of_a_profile() -> None:
    figures = {(figure.figure, figure.setting): figure for figure in efficiency(profile(1.0))}
    where = "context 2048, batch 1, bfloat16, transformers, cuda"
    peak = "context 8192, peak throughput, bfloat16, transformers, cuda"
    assert list(figures) == [
        ("ttft_s", where), ("tpot_s", where), ("cache_gib", where), ("peak_memory_gib", where),
        ("s_per_token_at_peak", peak),
    ]  # fmt: skip
    found = figures["ttft_s", where]
    assert (found.checkpoint, found.value, found.unit) == ("model0", 2.0, "s")
    assert (found.low, found.high) == pytest.approx((1.92, 2.08))
    assert figures["cache_gib", where] == Efficiency("model0", "cache_gib", 2.0, "GiB", 2.0, 2.0, where)
    assert figures["peak_memory_gib", where].value == 4.0
    assert figures["s_per_token_at_peak", peak].value == pytest.approx(0.1 / 4)


def test_few_samples_give_no_times() -> None:
    whole = profile(1.0)
    [found] = whole.checkpoints
    point = replace(found.points[0], ttft=timing(1.0, count=5))
    fewer = replace(whole, checkpoints=(replace(found, points=(point,)),))
    assert "ttft_s" not in {figure.figure for figure in efficiency(fewer)}
    assert "tpot_s" in {figure.figure for figure in efficiency(fewer)}


def test_summary() -> None:
    first, second = summary(profile(1.0, 0.25))["checkpoints"]
    point = second["points"][0]
    assert point["ttft"]["median_s"] == pytest.approx(0.5)
    assert point["ttft"]["quartiles_s"] == pytest.approx((0.4875, 0.5125))
    assert (point["ttft"]["ratio"], first["points"][0]["ttft"]["ratio"]) == (pytest.approx(0.25), 1.0)
    assert point["ttft"]["over_bound"] == pytest.approx(1.0)
    assert point["step"]["over_bound"] == pytest.approx(0.5)
    assert (point["cache_over_formula"], point["cache_ratio"]) == (2.0, 1.0)
    assert (second["points"][1]["status"], second["points"][1]["ttft"]) == (OUT_OF_MEMORY, None)
    [search] = second["searches"]
    assert (search["largest_batch"], search["best_batch"]) == (4, 4)
    assert search["peak_tokens_per_s"] == pytest.approx(160)
    assert search["peak_tokens_per_s_ratio"] == pytest.approx(4)


CHECKPOINTS = {
    "checkpoints": [
        {"label": label, "fingerprint": f"weights {number}"}
        for number, label in enumerate(("first", "second"))
    ]
}


def cell(checkpoint: str, value: float, protocol: str = "generative", headline: bool = True) -> Cell:
    return Cell(checkpoint, protocol, "acc", Estimate(value, 0.0, 1.0, 9, 9, "wilson"), headline=headline)


def run(folder: Path, averages: bool) -> Path:
    cells = (
        cell("first", 0.5),
        cell("second", 0.25),
        cell("first", 0.9, "loglikelihood"),
        cell("first", 0.1, headline=False),
    )
    tasks = tuple(TaskResult(name, name, "test", "higher", cells, (), ()) for name in ("a", "b"))
    mean = Average("generation (all)", ("a",), {}, (cell("first", 0.75), cell("second", 0.125)), (), ())
    write_run(
        folder,
        records=[],
        results=Results(("first", "second"), tasks, (mean,) if averages else ()),
        provenance=CHECKPOINTS,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(("averages", "found"), [(True, (0.75, 0.125)), (False, (0.5, 0.25))])
def test_accuracies_by_weights(tmp_path: Path, averages: bool, found: tuple[float, float]) -> None:
    """A label of the same name may be another model: weights decide."""
    targets = [
        Target("second", "", "weights 0", ""),
        Target("x", "", "weights 1", ""),
        Target("first", "", "others", ""),
    ]
    assert read_accuracies(run(tmp_path / "run", averages), targets) == {"second": found[0], "x": found[1]}
    with pytest.raises(OptionError, match="no generated answers of first"):
        read_accuracies(tmp_path / "run", targets[2:])


def test_accuracies_are_those_of_the_table(tmp_path: Path) -> None:
    """A task on the floor, which no average covers, changes nothing; nor does what is no accuracy."""
    covered, floor = ((cell("first", value), cell("second", value)) for value in (0.75, 0.0))
    plain = (replace(cell("first", 7.0), unit="plain"),)
    tasks = tuple(
        TaskResult(name, name, "test", direction, cells, (), ())
        for name, direction, cells in (
            ("a", "higher", covered),
            ("b", "higher", floor),
            ("c", "higher", plain),
            ("d", "lower", covered),
        )
    )
    targets = [Target("mine", "", "weights 0", "")]
    both = Average("both protocols", ("a",), {}, covered, (), ())
    for averages, found in (((both,), 0.75), ((), 0.375)):
        results = Results(("first", "second"), tasks, averages)
        write_run(tmp_path / f"{found}", records=[], results=results, provenance=CHECKPOINTS)
        assert read_accuracies(tmp_path / f"{found}", targets) == {"mine": found}


def test_accuracies_at_long_contexts(tmp_path: Path) -> None:
    """A task's lengths weigh the same, except where there is a cell over all its items."""
    cells = [
        LongCell("first", task, length, Estimate(value, 0.0, 1.0, 9, 9, "wilson"), 0, 0, 1, 2)
        for task, length, value in (
            ("niah", "4096", 1.0), ("niah", "8192", 0.5), ("qa", "0-4k", 0.9), ("qa", "4-8k", 0.1), ("qa", "all", 0.25),
            ("average", "all", 0.7),
        )
    ]  # fmt: skip
    results = LongResults(("first", "second"), ("niah", "qa"), {}, {}, tuple(cells))
    write_run(tmp_path / "run", records=[], results=results, provenance=CHECKPOINTS)
    targets = [Target("mine", "", "weights 0", ""), Target("other", "", "weights 1", "")]
    assert read_accuracies(tmp_path / "run", targets) == {"mine": (0.75 + 0.25) / 2}
