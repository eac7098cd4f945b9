"""Long-context tables and figures."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest

from distill_eval.render.longcontext import length_name, result_tables
from distill_eval.render.longcontext_plots import longcontext_figures
from distill_eval.schema.longcontext import DepthCell, LongCell, LongDelta, LongResults
from distill_eval.schema.results import Estimate


def cell(label, task, length, value, beyond=0, truncated=0):
    estimate = Estimate(value, value - 0.1, value + 0.05, 50, 50, "wilson")
    return LongCell(label, task, length, estimate, beyond, truncated, 100, 120)


@pytest.fixture
def results():
    cells = (
        cell("teacher", "niah_single_1", "4096", 0.9),
        cell("teacher", "niah_single_1", "8192", 0.5, beyond=3),
        cell("teacher", "longbench_trec", "all", 0.4, truncated=2),
        cell("my student", "niah_single_1", "4096", 0.6),
    )
    down = Estimate(-0.3, -0.4, -0.1, 50, 50, "tango")
    return LongResults(
        checkpoints=("teacher", "my student"),
        tasks=("niah_single_1", "longbench_trec"),
        lengths={"niah_single_1": ("4096", "8192"), "longbench_trec": ("all", "0-4k")},
        max_positions={"teacher": 5000, "my student": 5000},
        cells=cells,
        deltas=(
            LongDelta("my student", "niah_single_1", "4096", down, "exact McNemar", 0.001, 0.001, 1, True),
        ),
        depths=(
            DepthCell("teacher", "niah_single_1", "4096", 0, 20, 1.0, 4),
            DepthCell("teacher", "niah_single_1", "8192", 80, 100, 0.25, 8),
        ),
    )


def test_tables(results):
    teacher, student, delta, longbench = result_tables(results)
    assert teacher.title == "teacher: score in percent [95% interval] by tokens, 50 items a cell"
    assert [column.heading for column in teacher.columns] == ["task", "4K", "8K"]
    assert teacher.rows == (("niah_single_1", "90.0 [80, 95]", "50.0* [40, 55]"),)
    assert teacher.notes == ("* holds texts of more tokens than the 5000 positions of teacher",)
    assert student.rows == (("niah_single_1", "60.0 [50, 65]", ""),)
    assert student.notes == ()
    assert delta.title == "my student minus teacher: percentage points, paired on items"
    assert delta.rows == (("niah_single_1", "-30.0 [-40, -10]", ""),)
    assert delta.strong == {(0, 1)}
    assert longbench.rows == (("longbench_trec", "40.0† [30, 45]", ""),)
    assert longbench.notes == (
        "† holds prompts that were cut in the middle, to the positions of teacher or to --max-length",
    )
    assert len({table.name for table in (teacher, student, delta, longbench)}) == 4


def words(figure):
    return list(ElementTree.fromstring(figure.svg).itertext())


def test_figures(results):
    lines, heat_map = longcontext_figures(results)
    assert (lines.name, heat_map.name) == ("accuracy-by-length", "heatmap-niah_single_1")
    assert {lines.section, heat_map.section} == {"longcontext"}
    assert {"4K", "8K", "teacher", "my student", "beyond the checkpoint's positions"} <= set(words(lines))
    assert (
        "niah_single_1, teacher: 4K 90.0 [80.0, 95.0], 8K 50.0 [40.0, 55.0] (beyond its positions)."
        in lines.text
    )
    assert lines.csv.decode().splitlines() == [
        "task,checkpoint,length_tokens,score_percent,low_percent,high_percent,num_items,num_beyond_positions,num_truncated",
        "niah_single_1,teacher,4096,90,80,95,50,0,0",
        "niah_single_1,teacher,8192,50,40,55,50,3,0",
        "niah_single_1,my student,4096,60,50,65,50,0,0",
    ]
    assert longcontext_figures(results) == [lines, heat_map]


def test_heat_maps(results):
    heat_map = longcontext_figures(results)[1]
    key = "niah_single_1: score in percent (needles); hatched: none; * dashed: beyond the checkpoint's positions"
    assert {"100 (4)", "25 (8)", "4K", "8K*", "0-20", "80-100", "teacher", key} <= set(words(heat_map))
    assert b"<pattern" in heat_map.svg  # the hatching of empty cells
    assert b"<image" not in heat_map.svg  # which the page's content policy would not load
    assert heat_map.csv.decode().splitlines()[1:] == [
        "niah_single_1,teacher,4096,0,20,100,4",
        "niah_single_1,teacher,8192,80,100,25,8",
    ]
    assert "teacher: 25.0 (8K, 80 to 100% deep) to 100.0 (4K, 0 to 20% deep)." in heat_map.text


def test_coarse_and_fine_depths_stand_at_their_depths(results):
    """A length with few needles has fifths beside tenths: they fill the rows that they cover."""
    fine = tuple(
        DepthCell("teacher", "niah_single_1", "4096", n * 10, n * 10 + 10, 1.0, 5) for n in range(10)
    )
    coarse = tuple(
        DepthCell("teacher", "niah_single_1", "8192", n * 20, n * 20 + 20, 0.5, 7) for n in range(5)
    )
    heat_map = longcontext_figures(dataclasses.replace(results, depths=(*fine, *coarse)))[1]
    assert words(heat_map).count("50 (7)") == 5
    assert b"<pattern" not in heat_map.svg  # no depth is without a needle


def test_an_end_that_rounds_to_nothing_has_no_sign(results):
    (delta,) = results.deltas
    ends = ((-0.2, -0.002, "[-20, 0]"), (-0.004, 0.2, "[0, 20]"), (-0.2, -0.104, "[-20, -10]"))
    for low, high, written in ends:
        shown = dataclasses.replace(delta, estimate=dataclasses.replace(delta.estimate, low=low, high=high))
        (table,) = (
            t for t in result_tables(dataclasses.replace(results, deltas=(shown,))) if "minus" in t.title
        )
        assert table.rows[0][1] == f"-30.0 {written}"


def test_one_length_and_no_needles_draw_nothing(results):
    cells = tuple(cell for cell in results.cells if cell.length != "8192")
    assert longcontext_figures(dataclasses.replace(results, cells=cells, depths=())) == []


def test_names_of_lengths():
    assert [length_name(label) for label in ("131072", "1000", "4-8k", "all")] == [
        "128K",
        "1000",
        "4-8k",
        "all",
    ]
