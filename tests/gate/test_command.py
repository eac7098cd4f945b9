"""``distill-eval gate``: exit codes, outputs, and every mistake as one line."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill_eval.runs import MANIFEST


@pytest.fixture
def gate(stored: Callable, tmp_path: Path, command: Callable, monkeypatch) -> Callable:
    """``gate(right answers of the baseline, of the candidate, items, *flags)`` on runs of made-up answers."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    policy = tmp_path / "gate.yaml"
    policy.write_text("generation: {task: 5, average: 5}\nloglikelihood: {task: 5}\n")

    def run(left: int, right: int, num_items: int = 400, *flags: object):
        sides = [stored(tmp_path / name, count, num_items) for name, count in (("a", left), ("b", right))]
        return command("gate", "--baseline", sides[0], "--candidate", sides[1], "--policy", policy, *flags)

    return run


@pytest.mark.parametrize(
    ("right", "num_items", "code", "word"),
    [(300, 400, 0, "PASS"), (200, 400, 1, "FAIL"), (290, 305, 3, "INCONCLUSIVE")],
)
def test_exit_codes_and_the_verdict_last(gate: Callable, right, num_items, code, word) -> None:
    result = gate(300, right, num_items)
    assert result.code == code, result.err
    assert result.out.splitlines()[-1].startswith(f"{word}: student against student: ")


def test_refused_is_2_and_says_why_line_by_line(stored, tmp_path, command, monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    left = stored(tmp_path / "a", 300)

    def other(facts: dict) -> None:
        facts["options"]["seeds"] = [7]
        facts["options"]["max_new_tokens"] = 9

    right = stored(tmp_path / "b", 300, change=other)
    result = command("gate", "--baseline", left, "--candidate", right)
    assert result.code == 2
    assert result.out == ""
    assert result.error_lines == [
        "error: max_new_tokens is 8 in the baseline, 9 in the candidate",
        "error: seeds is [42] in the baseline, [7] in the candidate",
        "REFUSED: student against student: the runs do not compare because of the 2 differences named above.",
    ]


def test_failing_checks_come_first(stored, tmp_path, command) -> None:
    policy = tmp_path / "gate.yaml"
    policy.write_text("loglikelihood: {task: 50}\ngeneration: {task: 5}\n")
    sides = [stored(tmp_path / name, count) for name, count in (("a", 300), ("b", 250))]
    result = command("gate", "--baseline", sides[0], "--candidate", sides[1], "--policy", policy)
    rows = [line for line in result.out.splitlines() if line.startswith(("FAIL ", "pass "))]
    assert [row.split()[0] for row in rows] == ["FAIL", "pass"]
    assert "generation, sums" in rows[0]
    assert "-12.5" in rows[0]
    assert "-5.0" in rows[0]
    assert len({line.index("sums") for line in rows}) <= 2  # names differ in length, columns do not


def test_json(gate: Callable) -> None:
    result = gate(300, 200, 400, "--json")
    found = json.loads(result.out)
    assert (result.code, found["exit_code"], found["outcome"]) == (1, 1, "fail")
    assert found["policy"]["generation"]["task"] == 5.0
    assert {check["outcome"] for check in found["checks"]} == {"fail"}
    assert found["checks"][0]["difference"] == pytest.approx(-25.0)


def test_junit(gate: Callable, tmp_path: Path) -> None:
    gate(300, 290, 305, "--junit", tmp_path / "gate.xml")
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.tag, suite.get("tests"), suite.get("failures"), suite.get("skipped")) == (
        "testsuite", "3", "0", "3",
    )  # fmt: skip
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [
        "generation, average of 1", "generation, sums", "loglikelihood, sums",
    ]  # fmt: skip
    assert "items would settle it" in cases[0].find("skipped").get("message")
    gate(300, 200, 400, "--junit", tmp_path / "gate.xml")
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert suite.get("failures") == "3"
    assert "is certain" in suite.find("testcase/failure").get("message")


def test_markdown(gate: Callable, tmp_path: Path) -> None:
    gate(300, 200, 400, "--markdown", tmp_path / "gate.md")
    text = (tmp_path / "gate.md").read_text()
    assert text.startswith("### Gate: fail\n")
    assert "| **FAIL** | generation, sums | 75.0 | 50.0 | -25.0 |" in text


def test_github_is_told_where_it_asks(gate: Callable, tmp_path: Path, monkeypatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert "::error" not in gate(300, 200).out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::error" not in gate(300, 200, 400, "--no-github").out
    assert summary.read_text() == "before\n"
    result = gate(300, 200)
    lines = [line for line in result.out.splitlines() if line.startswith("::")]
    assert lines[0].startswith(
        "::error title=gate%3A generation%2C average of 1::a loss of more than 5.0 points"
    )
    assert lines[-1].startswith("::notice title=gate::FAIL: ")
    assert summary.read_text().startswith("before\n### Gate: fail\n")
    result = gate(300, 200, 400, "--json")
    json.loads(result.out)
    assert "::error" in result.err


# Each case returns the command's flags and words its one line must contain.
Case = Callable[[Path, Path, Path], tuple[list[object], tuple[str, ...]]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def missing_run(run, other, folder):
    return ["--baseline", folder / "none", "--candidate", other], ("none", "there is no such folder")


@case
def missing_candidate(run, other, folder):
    return ["--baseline", run, "--candidate", folder / "none"], ("none", "no folder")


@case
def neither_run_nor_checkpoint(run, other, folder):
    (folder / "empty").mkdir()
    return ["--baseline", run, "--candidate", folder / "empty"], ("neither a run", "nor a checkpoint")


@case
def damaged_manifest(run, other, folder):
    (other / MANIFEST).write_text("{")
    return ["--baseline", run, "--candidate", other], (MANIFEST, "damaged")


@case
def changed_records(run, other, folder):
    (other / "records.parquet").write_bytes(b"")
    return ["--baseline", run, "--candidate", other], ("records.parquet", "is not the file this run wrote")


@case
def unknown_policy_key(run, other, folder):
    (folder / "p.yaml").write_text("generations: {task: 1}")
    return ["--baseline", run, "--candidate", other, "--policy", folder / "p.yaml"], (
        "p.yaml",
        "did you mean 'generation'",
    )


@case
def unknown_task_in_policy(run, other, folder):
    (folder / "p.yaml").write_text("generation: {tasks: {sum: 1}}")
    return ["--baseline", run, "--candidate", other, "--policy", folder / "p.yaml"], (
        "'sum'",
        "did you mean 'sums'",
    )


@case
def negative_margin(run, other, folder):
    (folder / "p.yaml").write_text("generation: {task: -1}")
    return ["--baseline", run, "--candidate", other, "--policy", folder / "p.yaml"], ("generation.task", "-1")


@case
def alpha_out_of_range(run, other, folder):
    (folder / "p.yaml").write_text("generation: {task: 1}\nalpha: 5")
    return ["--baseline", run, "--candidate", other, "--policy", folder / "p.yaml"], (
        "alpha",
        "at most 0.5",
        "got 5",
    )


@case
def missing_policy(run, other, folder):
    return ["--baseline", run, "--candidate", other, "--policy", folder / "no.yaml"], ("no.yaml",)


@case
def policy_is_a_folder(run, other, folder):
    return ["--baseline", run, "--candidate", other, "--policy", folder], (str(folder.name),)


@case
def label_not_in_run(run, other, folder):
    return ["--baseline", f"{run}:studnt", "--candidate", other], ("'studnt'", "did you mean 'student'")


@case
def no_baseline(run, other, folder):
    return ["--candidate", other], ("--baseline",)


@case
def unwritable_report(run, other, folder):
    return ["--baseline", run, "--candidate", other, "--junit", folder / "no/such/gate.xml"], ("gate.xml",)


@case
def checkpoint_as_baseline(run, other, folder):
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    return ["--baseline", folder / "model", "--candidate", other], ("no manifest.json",)


@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, stored, tmp_path: Path, command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = (stored(tmp_path / side, 300) for side in "ab")
    flags, words = CASES[name](run, other, tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    result = command("gate", *flags)
    assert result.code == 2, result.err
    assert len(result.error_lines) == 1, result.err
    [line] = result.error_lines
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert sorted(path for path in tmp_path.rglob("*")) == before
