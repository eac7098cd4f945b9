"""Tables and figures of a made-up profile: the paper's four architectures on a made-up H200."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from distill_eval.render.latex import render_latex
from distill_eval.render.profile import profile_figures, tables
from distill_eval.render.profile_plane import Cost, front
from distill_eval.render.profile_style import round_ticks
from distill_eval.render.profile_values import context_name, digits, share, size, times
from distill_eval.render.report.model_tables import efficiency_table
from distill_eval.render.tables import print_table, render_markdown
from distill_eval.schema.profile import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    Bounds,
    CacheSize,
    CheckpointProfile,
    DeviceState,
    Loaded,
    Memory,
    Point,
    Profile,
    ProfileOptions,
    Search,
    Target,
    Timing,
)
from distill_eval.schema.report import ReportFigure

CONTEXTS = (2048, 8192, 32768, 131072)
# Layers with attention, with a state; share of its bounds that each reaches in first token and decoding; batches that
# fit at the two searched contexts.
MADE = {
    "qwen3-0.6b": (28, 0, 0.55, 0.30, (512, 9)),
    "hybrid-kda": (7, 21, 0.45, 0.24, (1400, 38)),
    "hybrid-mamba2": (7, 21, 0.40, 0.23, (1400, 38)),
    "pure-kda": (0, 28, 0.35, 0.20, (4096, 3000)),
}
ACCURACIES = {"qwen3-0.6b": 0.701, "hybrid-kda": 0.634, "hybrid-mamba2": 0.587, "pure-kda": 0.412}
CALM = DeviceState(1980, 2619, "P0", 412.4, 58, (), 0)
HOT = DeviceState(1755, 2619, "P0", 699.1, 84, ("power cap",), 2)


def timing(median: float, spread: float = 0.02, repeated: int = 0) -> Timing:
    return Timing(tuple(median * (1 + spread * (k - 2) / 2) for k in range(5)), repeated)


def made_bounds(name: str, context: int, batch: int) -> Bounds:
    with_keys, with_state, *_ = MADE[name]
    cache = CacheSize(batch * with_keys * 4096 * context, batch * with_state * 1_081_344)
    flops = 0.9e9 * context + with_keys * 4096.0 * context**2
    moved = 1.2e9 + cache.kv + 2 * cache.state
    return Bounds(cache, flops, moved, batch * flops / context, moved, flops / 989.4e12, moved / 4.8e12)


def made_point(name: str, context: int, batch: int = 1) -> Point:
    found = made_bounds(name, context, batch)
    *_, first, decode, _ = MADE[name]
    noisy = (name, context) == ("pure-kda", 8192)
    step = timing(found.decode_s / (decode if batch == 1 else 0.7), 0.5 if noisy else 0.02, 3 if noisy else 0)
    weights, hot = 1_200_000_000, name == "pure-kda" and batch > 1
    memory = Memory(weights + found.cache.total + 300_000_000, weights + found.cache.total + 900_000_000)
    return Point(context, batch, OK, "", timing(found.prefill_s / first), step, found.cache, memory, 1.5, CALM,
                 HOT if hot else CALM, found)  # fmt: skip


def made_search(name: str, context: int, largest: int) -> Search:
    points = [made_point(name, context, max(1, largest // 2)), made_point(name, context, largest)]
    return Search(context, (*points, Point(context, largest + 1, OUT_OF_MEMORY, "142.1 GiB needed")))


def made_checkpoint(name: str, num_parameters: int) -> CheckpointProfile:
    target = Target(name, f"/made/{name}", "ab" * 32, "qwen3", True, name)
    loaded = Loaded(num_parameters, 2 * num_parameters, "transformers 5.17.0", "bfloat16", "cuda", "sdpa",
                    "StaticCache", load_s=3.21)  # fmt: skip
    points = tuple(made_point(name, context) for context in CONTEXTS)
    searches = tuple(
        made_search(name, context, largest)
        for context, largest in zip((2048, 131072), MADE[name][-1], strict=True)
    )
    return CheckpointProfile(
        target, loaded, points, searches, ("theory: NVIDIA H200 datasheet, SXM (dense)",)
    )


@pytest.fixture(scope="module")
def profile() -> Profile:
    options = ProfileOptions(CONTEXTS, (2048, 131072), repeats=5)
    sizes = (596_049_920, 613_334_096, 640_816_880, 619_095_488)
    made = [made_checkpoint(name, size) for name, size in zip(MADE, sizes, strict=True)]
    return Profile(options, tuple(made), "NVIDIA H200")


def replace_point(profile: Profile, number: int, place: int, point: Point) -> Profile:
    """The profile with one checkpoint's point at batch 1 put in place of another."""
    checkpoints = list(profile.checkpoints)
    points = list(checkpoints[number].points)
    points[place] = point
    checkpoints[number] = dataclasses.replace(checkpoints[number], points=tuple(points))
    return dataclasses.replace(profile, checkpoints=tuple(checkpoints))


def printed(profile: Profile, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for table in tables(profile):
        print_table(table, console)
        console.print()
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def table(profile: Profile, name: str):
    return next(table for table in tables(profile) if table.name == f"profile-{name}")


def test_at_100_columns(profile, check_golden):
    text = printed(profile)
    assert max(map(len, text.splitlines())) <= 100
    check_golden("profile.txt", text)


def test_what_did_not_run_is_marked_and_explained(profile, check_golden):
    lost = replace_point(profile, 0, 3, Point(131072, 1, OUT_OF_MEMORY, "needs 15.6 GiB, 12.0 are free"))
    lost = replace_point(lost, 1, 3, Point(131072, 1, FAILED, "ValueError: a\nlong story"))
    nothing = Search(131072, (Point(131072, 1, OUT_OF_MEMORY, "needs 15.6 GiB"),))
    checkpoints = list(lost.checkpoints)
    checkpoints[0] = dataclasses.replace(checkpoints[0], searches=(checkpoints[0].searches[0], nothing))
    checkpoints[2] = dataclasses.replace(checkpoints[2], loaded=None, points=(), searches=(), notes=("gone",))
    check_golden("profile_lost.txt", printed(dataclasses.replace(lost, checkpoints=tuple(checkpoints))))


def test_numbers_of_one_row(profile):
    columns = [column.heading for column in table(profile, "ttft").columns]
    row = dict(zip(columns, table(profile, "ttft").rows[-3], strict=True))  # hybrid-kda at 128K
    teacher, hybrid = (profile.checkpoints[index].points[-1] for index in (0, 1))
    assert row["ms"] == f"{1e3 * hybrid.ttft.median_s:,.0f}"
    assert row["speed"] == f"{teacher.ttft.median_s / hybrid.ttft.median_s:.2f}x" == "2.80x"
    assert row["reached"] == "45%"
    memory = table(profile, "memory")
    assert [row[7] for row in memory.rows if row[1] == "hybrid-kda"] == ["65.3%", "72.6%", "74.4%", "74.8%"]
    assert {row[6] for row in memory.rows} == {"0.0%"}
    throughput = table(profile, "throughput").rows[-3]
    assert throughput[2:5] == ("38", "39", "38")
    assert throughput[7] == "3.95x"
    assert throughput[8] == "3,360"  # 70% of 4.8 TB/s


def test_measured_and_formula_may_differ(profile):
    point = profile.checkpoints[1].points[0]
    off = dataclasses.replace(point, cache=CacheSize(point.cache.kv, point.cache.state * 2))
    row = table(replace_point(profile, 1, 0, off), "memory").rows[1]
    assert row[6] == "+27.9%"


def test_without_theory_or_searches_there_are_dashes(profile):
    points = tuple(dataclasses.replace(point, bounds=None) for point in profile.checkpoints[0].points)
    bare = dataclasses.replace(profile.checkpoints[0], points=points, searches=())
    bare = dataclasses.replace(profile, checkpoints=(bare,))
    assert [table.name for table in tables(bare)][-1] == "profile-memory"
    assert table(bare, "ttft").rows[0][-2:] == ("-", "-")
    assert table(bare, "memory").rows[0][5:7] == ("-", "-")


def test_noise_and_heat_are_said(profile):
    text = printed(profile)
    assert "~ noisy: interquartile range above 10% of the median, even when repeated (up to 3 times)" in text
    assert "SM clock 1755 to 1980 MHz" in text


def test_other_forms(profile):
    for made in tables(profile):
        assert made.rows[0][0] in render_markdown(made)
        assert r"\begin{tabular}" in render_latex(made)


def test_how_numbers_are_written():
    assert [context_name(n) for n in (2048, 131072, 1000, 1536)] == ["2K", "128K", "1,000", "1,536"]
    assert [digits(x) for x in (0.29812, 28.06, 359.44, 4043.6)] == ["0.298", "28.1", "359", "4,044"]
    assert [times(x) for x in (0.978, 3.05, 11.27, 248.8)] == ["0.98x", "3.05x", "11.3x", "249x"]
    assert [size(x) for x in (512, 81_428_480, 15_032_385_536, None)] == [
        "512 B",
        "77.7 MiB",
        "14.0 GiB",
        "-",
    ]
    assert [share(x) for x in (0.384, 0.0213, 1.02, None)] == ["38%", "2.1%", "102%", "-"]


def drawn(profile: Profile, accuracies=None) -> dict[str, ReportFigure]:
    return {figure.name: figure for figure in profile_figures(profile, accuracies)}


def words(figure: ReportFigure) -> list[str]:
    return [text for text in ElementTree.fromstring(figure.svg).itertext() if text.strip()]


def data(figure: ReportFigure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv.decode())))


def test_figures_are_the_same_bytes_every_time(profile):
    first, second = (profile_figures(profile, ACCURACIES) for _ in range(2))
    assert [figure.name for figure in first] == ["curves", "throughput", "accuracy-efficiency"]
    assert {figure.section for figure in first} == {"efficiency"}
    assert first == second


def test_figures_say_what_they_show(profile):
    lost = replace_point(profile, 0, 3, Point(131072, 1, OUT_OF_MEMORY, "too little"))
    figures = drawn(lost, ACCURACIES)
    curves = words(figures["curves"])
    for text in (
        *MADE,
        "2 GiB",
        "100 ms",
        "Decoding, tokens/s",
        "2K",
        "128K",
        "bound by theory",
        "out of memory",
        "noisy",
    ):
        assert text in curves
    # The largest context that both have is 32K: 74.4% less cache.
    assert "◆ −74.4% at 32K" in curves
    assert "qwen3-0.6b at 128K: out of memory." in figures["curves"].text
    for figure, said in (
        ("curves", "x: speed, %: cache, against qwen3-0.6b"),
        ("throughput", "x: speed against"),
    ):
        assert any(text.startswith(said) for text in words(figures[figure]))
    assert {"3.95x", "38", "2K context", "128K context"} <= set(words(figures["throughput"]))
    plane = words(figures["accuracy-efficiency"])
    assert {"generation accuracy (%)", *MADE} <= set(plane)
    assert any("time to first token at 32K" in text for text in plane)


def test_figures_have_their_data(profile):
    figures = drawn(profile, ACCURACIES)
    curves = data(figures["curves"])
    assert len(curves) == len(MADE) * len(CONTEXTS)
    point = profile.checkpoints[3].points[1]
    assert point.ttft
    assert point.cache
    [row] = [r for r in curves if (r["checkpoint"], r["context_tokens"]) == ("pure-kda", "8192")]
    assert float(row["first_token_s"]) == pytest.approx(point.ttft.median_s, rel=1e-5)
    assert (row["cache_bytes"], row["status"], row["noisy"]) == (str(point.cache.total), "ok", "step")
    best = profile.checkpoints[1].searches[1].best
    [row] = [
        r
        for r in data(figures["throughput"])
        if (r["checkpoint"], r["context_tokens"]) == ("hybrid-kda", "131072")
    ]
    assert row["batch"] == "38"
    assert float(row["tokens_per_s"]) == pytest.approx(best.tokens_per_s, rel=1e-5)
    assert (
        f"hybrid-kda at 128K: {digits(best.tokens_per_s)} tokens/s with a batch of 38, 3.95x that "
        "of qwen3-0.6b." in figures["throughput"].text
    )
    plane = data(figures["accuracy-efficiency"])
    assert {row["checkpoint"]: row["generation_accuracy_percent"] for row in plane} == {
        label: f"{100 * value:.6g}" for label, value in ACCURACIES.items()
    }


def test_one_context_has_round_ticks(profile):
    one = dataclasses.replace(profile.checkpoints[0], points=profile.checkpoints[0].points[:1], searches=())
    curves = profile_figures(dataclasses.replace(profile, checkpoints=(one,)))[0]
    ticks = {text for text in ("128 MiB", "256 MiB") if f">{text}<" in curves.svg.decode()}
    assert ticks == {"128 MiB", "256 MiB"}


def test_words_have_the_ratios_that_are_drawn(profile):
    """A time to first token is compared as a speed, which its curve alone does not tell."""
    figures = drawn(profile)
    of, own = (checkpoint.points[-1].ttft.median_s for checkpoint in profile.checkpoints[:2])
    said = f"first token {times(of / own)} at 128K"
    (sentence,) = (
        s for s in figures["curves"].text.split(". ") if s.startswith("hybrid-kda against qwen3-0.6b")
    )
    assert said in sentence
    assert f"◆ {times(of / own)}" in words(figures["curves"])


def with_bests(profile: Profile, *points: Point) -> Profile:
    checkpoints = tuple(
        dataclasses.replace(checkpoint, searches=(Search(2048, (point,)),))
        for checkpoint, point in zip(profile.checkpoints, points, strict=True)
    )
    return dataclasses.replace(profile, checkpoints=checkpoints)


def test_what_failed_is_neither_drawn_over_nor_out_of_memory(profile):
    failed = Point(8192, 1, FAILED, "ValueError")
    lost = drawn(replace_point(profile, 0, 1, failed))["curves"]
    assert "failed" in words(lost)
    assert "out of memory" not in words(lost)
    whole = drawn(profile)["curves"]
    lines = [figure.svg.decode().count("M ") for figure in (lost, whole)]
    assert lines[0] > lines[1]  # a path that starts anew behind the gap
    search = with_bests(profile, Point(2048, 1, FAILED, "ValueError"), *[made_point("pure-kda", 2048, 8)] * 3)
    assert "qwen3-0.6b at 2K: failed." in drawn(search)["throughput"].text


def test_a_noisy_peak_is_marked_wherever_it_is_shown(profile):
    noisy = dataclasses.replace(made_point("qwen3-0.6b", 2048, 8), step=timing(0.1, 0.5))
    calm = made_point("qwen3-0.6b", 2048, 8)
    for first, marked in ((noisy, True), (calm, False)):
        shown = with_bests(profile, first, calm, calm, calm)
        figure = drawn(shown)["throughput"]
        assert ("noisy" in words(figure)) is marked
        assert [bool(row["noisy"]) for row in data(figure)] == [marked, False, False, False]
        assert ("with a batch of 8 (noisy)." in figure.text) is marked
        made = table(shown, "throughput")
        assert made.rows[0][5].startswith("~") is marked
        assert any(note.startswith("~ noisy") for note in made.notes) is marked
    # Of a search only its best point is shown: the noise of another one is no news.
    both = Search(2048, (dataclasses.replace(noisy, step=timing(9.0, 0.5)), calm))
    checkpoints = (dataclasses.replace(profile.checkpoints[0], searches=(both,)),)
    shown = dataclasses.replace(profile, checkpoints=checkpoints)
    assert not any(note.startswith("~ noisy") for note in table(shown, "throughput").notes)


def test_the_paper_s_table_marks_what_is_noisy_and_what_failed(profile):
    made = efficiency_table(profile)
    assert not any("FAILED" in note or "OOM" in note for note in made.notes)
    (decoding,) = (
        n for n, c in enumerate(made.columns) if (c.group, c.heading) == ("Decoding, tokens/s ↑", "8K")
    )
    (row,) = (row for row in made.rows if row[0] == "pure-kda")
    assert row[decoding] == f"~{digits(profile.checkpoints[3].points[1].tokens_per_s)}"
    assert "~ noisy: interquartile range above 10% of the median." in made.notes
    failed = efficiency_table(replace_point(profile, 1, 1, Point(8192, 1, FAILED, "ValueError")))
    assert "FAILED: could not be measured." in failed.notes


def test_only_what_there_is_is_drawn(profile):
    checkpoints = tuple(dataclasses.replace(checkpoint, searches=()) for checkpoint in profile.checkpoints)
    bare = dataclasses.replace(profile, checkpoints=checkpoints)
    assert list(drawn(bare, {"hybrid-kda": 0.5, "somebody else": 0.9})) == ["curves"]
    two = drawn(bare, {"hybrid-kda": 0.5, "pure-kda": 0.4})
    assert list(two) == ["curves", "accuracy-efficiency"]
    assert any("decoding at 128K" in text for text in words(two["accuracy-efficiency"]))


def test_the_front_leaves_out_who_is_beaten_in_both():
    accuracies = {"a": 0.7, "b": 0.6, "c": 0.65, "d": 0.5}
    cost = Cost("seconds", {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
    assert front(cost, accuracies) == [(1, 50), (2, 50), (2, 65), (4, 65), (4, 70)]
    yields = Cost("tokens/s", cost.values, less_is_better=False)
    assert front(yields, accuracies) == [(4, 70)]


def test_ticks_are_round_and_few():
    assert round_ticks(0.3, 40, 10) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert round_ticks(0.003, 400, 10) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert round_ticks(3e7, 1.6e10, 2) == [2.0**power for power in range(25, 34, 2)]
    assert round_ticks(60, 70, 10) == [60, 62.5, 65, 67.5, 70]


def test_nothing_to_draw(profile):
    empty = dataclasses.replace(profile.checkpoints[0], points=(), searches=())
    nothing = dataclasses.replace(profile, checkpoints=(empty,))
    assert profile_figures(nothing, {"qwen3-0.6b": 0.7}) == []
    assert [table.name for table in tables(nothing)] == ["profile-checkpoints"]
