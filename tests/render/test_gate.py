"""A gate's verdict as text, Markdown, JUnit and workflow commands, also when names are hostile."""

import io
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from distill_eval.render.gate import gate_table, markdown, print_gate, sentence, title_of
from distill_eval.render.github import annotations
from distill_eval.render.junit import render_junit
from distill_eval.schema.gate import Check, Difference, GateResult, Margins, Policy, Side

HOSTILE = "a\x1b[2J|b\n::error::x,y:z%0A <b>@team"
BASELINE, CANDIDATE = (Side(f"runs/{name}", name, name, name) for name in ("main", "branch"))
POLICY = Policy(generation=Margins(task=3), source="gate.yaml")
FAILED = Check(
    "generation", "gsm8k", "", "higher", "points", 3.0, "fail", "a loss of more than 3.0 points is certain", 60.0, 50.0,
    -10.0, -12.0, -8.0, 1319, 1319, "tango",
)  # fmt: skip
OPEN = Check(
    "failure", "average", "truncated", "lower", "points", 2.0, "inconclusive", "about 5,000 items would settle it", 1.0,
    2.0, 1.0, -1.0, 3.0, 500, 500, "t", 5000, ("a", "b"),
)  # fmt: skip
PASSED = Check(
    "efficiency",
    "prompt 1024",
    "ttft_s",
    "lower",
    "ratio",
    1.1,
    "pass",
    "at most 1.05",
    0.5,
    0.51,
    1.02,
    1.0,
    1.05,
)
RESULT = GateResult("fail", BASELINE, CANDIDATE, POLICY, (PASSED, OPEN, FAILED), notes=("a note",))
REFUSED = GateResult(
    "refused", BASELINE, CANDIDATE, POLICY,
    differences=(Difference("refusal", "prompts", HOSTILE), Difference("warning", "versions", "versions differ")),
)  # fmt: skip


def printed(result: GateResult, width: int = 120) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_gate(result, console)
    return console.file.getvalue().splitlines()


def test_terminal() -> None:
    lines = printed(RESULT)
    starts = [line.split()[0] for line in lines if line.startswith(("FAIL ", "inconclusive ", "pass "))]
    assert starts == ["FAIL", "inconclusive", "pass"]
    assert lines[-1] == (
        "FAIL: branch against main: 1 of 3 checks certainly beyond the margin (generation, gsm8k); "
        "1 more cannot be told."
    )
    assert "note: a note" in lines


def test_rows() -> None:
    rows = gate_table(RESULT).rows
    assert rows[0] == (
        "FAIL", "generation, gsm8k", "60.0", "50.0", "-10.0", "[-12.0, -8.0]", "-3.0", "1,319", "",
    )  # fmt: skip
    assert rows[1][1:] == (
        "rate of truncated, average of 2", "1.0", "2.0", "+1.0", "[-1.0, +3.0]", "+2.0", "500", "5,000",
    )  # fmt: skip
    assert rows[2][1:] == (
        "ttft_s prompt 1024", "0.5", "0.51", "x1.02", "[x1.00, x1.05]", "x1.10", "", "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("result", "start"),
    [
        (replace(RESULT, outcome="pass", checks=(PASSED,)), "PASS: branch against main: every loss"),
        (
            replace(RESULT, outcome="inconclusive", checks=(OPEN, PASSED)),
            "INCONCLUSIVE: branch against main: no loss",
        ),
        (
            replace(RESULT, outcome="inconclusive", checks=()),
            "INCONCLUSIVE: branch against main: the policy's",
        ),
        (REFUSED, "REFUSED: branch against main: the runs do not compare because of the difference"),
    ],
)
def test_sentences(result: GateResult, start: str) -> None:
    assert sentence(result).startswith(start)
    assert printed(result)[-1] == sentence(result)


def test_differences_take_a_line_each() -> None:
    lines = [line for line in printed(REFUSED, width=20) if line]
    assert lines[0] == "error: a\\x1b[2J|b ::error::x,y:z%0A <b>@team"
    assert lines[1] == "warning: versions differ"


def test_annotations_hold_no_command_of_their_own() -> None:
    first, *_ = annotations(REFUSED)
    assert first == "::error title=gate refused::a\\x1b[2J|b ::error::x,y:z%250A <b>@team"
    hostile = replace(RESULT, checks=(replace(FAILED, name=HOSTILE),))
    [error, _] = annotations(hostile)
    assert error.startswith("::error title=gate%3A generation%2C a\\x1b[2J|b %3A%3Aerror%3A%3Ax%2Cy%3Az%250A")
    assert "\n" not in error


def test_many_failures_are_counted_not_shown() -> None:
    lines = annotations(replace(RESULT, checks=(FAILED,) * 30))
    assert sum(line.startswith("::error") for line in lines) == 10
    assert "and 21 more" in lines[9]


def test_junit_is_xml_whatever_names_hold() -> None:
    hostile = replace(
        RESULT, checks=(replace(FAILED, name=HOSTILE, why=HOSTILE), OPEN, PASSED), notes=(HOSTILE,)
    )
    root = ElementTree.fromstring(render_junit(hostile))
    [suite] = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "1",
    }  # fmt: skip
    assert [child.tag for case in suite.iter("testcase") for child in case] == ["failure", "skipped"]
    assert suite.find("testcase").get("classname") == "gate.generation"
    refused = ElementTree.fromstring(render_junit(REFUSED))
    assert refused.get("errors") == "1"
    assert "\\x1b[2J|b" in refused.find("testsuite/testcase/error").get("message")


def test_markdown_holds_no_markup_of_names() -> None:
    text = markdown(replace(REFUSED, checks=(replace(FAILED, name=HOSTILE),)))
    assert "<b>" not in text
    assert "@team" not in text
    assert "\n::error" not in text
    assert text.startswith("### Gate: refused\n")
    assert "- versions differ" in text


def test_titles() -> None:
    assert [title_of(check) for check in (FAILED, OPEN, PASSED)] == [
        "generation, gsm8k", "rate of truncated, average of 2", "ttft_s prompt 1024",
    ]  # fmt: skip
