"""The GitHub action and the GitLab job, their steps run in bash as the CI system would."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github/actions/gate/action.yml"
GITHUB = ROOT / "reports/ci/github.yml"
GITLAB = ROOT / "reports/ci/gitlab.yml"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a script as a CI step: bash -e, in a folder of its own, with ``distill-eval`` and ``python`` on the PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, line in (
        ("distill-eval", f'exec "{sys.executable}" -m distill_eval.cli.main "$@"'),
        ("python", f'exec "{sys.executable}" "$@"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()

    def run(script: str, variables: dict[str, str]) -> subprocess.CompletedProcess:
        environment = {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1", **variables,
        }  # fmt: skip
        # GitHub's `shell: bash` is exactly this.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def action(shell: Callable, tmp_path: Path) -> Callable:
    """Run the action with inputs; returns (exit code, outputs, step summary, log) of its steps."""

    def run(**inputs: str):
        described = yaml.safe_load(ACTION.read_text())
        values = {name: str(entry.get("default", "")) for name, entry in described["inputs"].items()}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        summary, output = tmp_path / "summary.md", tmp_path / "output"
        summary.write_text("")
        output.write_text("")
        log, code = "", 0
        for step in described["runs"]["steps"]:
            if "if" in step and not condition(step["if"], values):
                continue
            variables = {name: expanded(text, values) for name, text in step.get("env", {}).items()}
            variables |= {
                "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output),
            }  # fmt: skip
            done = shell(step["run"], variables)
            log += done.stdout + done.stderr
            code = done.returncode
            if code:
                break
        outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return code, outputs, summary.read_text(), log

    return run


def expanded(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match.group(1)], text)


def condition(text: str, values: dict[str, str]) -> bool:
    name, wanted = re.fullmatch(r"inputs\.([\w-]+) != '(.*)'", text).groups()
    return values[name] != wanted


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "gate.yaml"
    path.write_text("generation: {task: 5}\n")
    return path


@pytest.mark.parametrize(
    ("right", "num_items", "strict", "code", "outcome", "gate_code"),
    [
        (300, 400, "false", 0, "pass", "0"),
        (200, 400, "false", 1, "fail", "1"),
        (290, 305, "false", 0, "inconclusive", "3"),
        (290, 305, "true", 3, "inconclusive", "3"),
    ],
)
def test_action(
    action, stored, policy, tmp_path: Path, right, num_items, strict, code, outcome, gate_code
) -> None:
    left, candidate = (
        stored(tmp_path / name, count, num_items) for name, count in (("a", 300), ("b", right))
    )
    done = action(
        baseline=str(left), candidate=str(candidate), policy=str(policy), fail_on_inconclusive=strict
    )
    assert done[0] == code, done[3]
    assert done[1] == {"outcome": outcome, "exit-code": gate_code, "reports": "gate-reports"}
    assert done[2].startswith(f"### Gate: {outcome}\n")
    assert ("::error" in done[3]) == (outcome == "fail")
    reports = tmp_path / "work/gate-reports"
    assert json.loads((reports / "gate.json").read_text())["outcome"] == outcome
    assert ElementTree.parse(reports / "gate.xml").getroot().tag == "testsuites"
    assert (reports / "gate.md").read_text() == done[2]


def test_action_with_the_default_policy_and_a_refusal(action, stored, tmp_path: Path) -> None:
    left = stored(tmp_path / "a", 300)
    right = stored(tmp_path / "b", 300, change=lambda facts: facts["options"].update(seeds=[7]))
    code, outputs, summary, log = action(baseline=str(left), candidate=str(right))
    assert (code, outputs["outcome"], outputs["exit-code"]) == (2, "refused", "2")
    assert "- seeds is \\[42\\] in the baseline, \\[7\\] in the candidate" in summary
    assert "::error title=gate refused::seeds is [42]" in log


def test_action_says_what_is_wrong_with_its_inputs(action, tmp_path: Path) -> None:
    code, outputs, _, log = action(baseline="no/such/run", candidate="also/none")
    assert (code, outputs["outcome"], outputs["exit-code"]) == (2, "", "2")
    assert "::error title=gate::run folder no/such/run" in log


def test_inputs_cannot_become_commands(action, stored, tmp_path: Path) -> None:
    run = stored(tmp_path / "a", 300)
    evil = '$(touch pwned)"; touch pwned; #\n::error::made up'
    code, _, _, log = action(baseline=str(run), candidate=evil, reports="r $(touch pwned)")
    assert code == 2
    assert not list(tmp_path.rglob("pwned"))
    assert "\n::error::made up" not in log


def test_no_step_holds_an_expression() -> None:
    """Expressions are pasted into scripts before bash sees them; they belong in ``env``."""
    workflow = yaml.safe_load(GITHUB.read_text())
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"] + workflow["jobs"]["gate"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps)


def test_the_workflow_gives_the_action_what_it_takes() -> None:
    [step] = [
        step
        for step in yaml.safe_load(GITHUB.read_text())["jobs"]["gate"]["steps"]
        if "distill-eval/" in step.get("uses", "")
    ]
    assert (ROOT / step["uses"].split("/", 2)[2].split("@")[0] / "action.yml").samefile(ACTION)
    inputs = yaml.safe_load(ACTION.read_text())["inputs"]
    assert set(step["with"]) <= set(inputs)
    assert {name for name, entry in inputs.items() if entry.get("required")} <= set(step["with"])


@pytest.mark.parametrize(("right", "num_items", "code"), [(300, 400, 0), (200, 400, 1), (290, 305, 3)])
def test_gitlab(shell, stored, policy, tmp_path: Path, right, num_items, code) -> None:
    job = yaml.safe_load(GITLAB.read_text())["gate"]
    left, candidate = (
        stored(tmp_path / name, count, num_items) for name, count in (("a", 300), ("b", right))
    )
    variables = {name: str(value) for name, value in job["variables"].items()}
    variables |= {
        "GATE_INSTALL": "", "GATE_BASELINE": str(left), "GATE_CANDIDATE": str(candidate), "GATE_POLICY": str(policy),
    }  # fmt: skip
    done = shell("\n".join(job["script"]), variables)
    assert done.returncode == code, done.stderr
    assert job["allow_failure"]["exit_codes"] == 3
    report = tmp_path / "work" / job["artifacts"]["reports"]["junit"]
    assert ElementTree.parse(report).getroot().tag == "testsuites"
