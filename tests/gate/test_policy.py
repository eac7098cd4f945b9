"""Policy files: read whole, refused by name."""

from pathlib import Path

import pytest

from distill_eval.content import content_path
from distill_eval.errors import PolicyError
from distill_eval.gate.policy import DEFAULT, check_tasks, read_policy
from distill_eval.schema.failures import FAILURES
from distill_eval.schema.gate import EfficiencyLimit, Margins


def policy(folder: Path, text: str):
    path = folder / "gate.yaml"
    path.write_text(text)
    return read_policy(path)


def test_a_policy_says_what_it_says(tmp_path: Path) -> None:
    found = policy(
        tmp_path,
        """
        alpha: 0.01
        generation: {average: 1, task: 3, tasks: {gsm8k: 2.5, ifeval: null}}
        failures: {truncated: {average: 2}, loop: {task: 1}}
        efficiency: {ttft_s: {max_ratio: 1.2, max_increase: 0.5, optional: true}}
        tasks: [gsm8k, ifeval, arc_easy]
        """,
    )
    assert found.alpha == 0.01
    assert found.generation == Margins(1.0, 3.0, {"gsm8k": 2.5, "ifeval": None})
    assert [found.generation.of(task) for task in found.tasks] == [2.5, None, 3.0]
    assert found.loglikelihood == found.gap == Margins()
    assert found.failures == {"truncated": Margins(average=2.0), "loop": Margins(task=1.0)}
    assert found.efficiency == {"ttft_s": EfficiencyLimit(1.2, 0.5, optional=True)}


def test_the_default_is_the_documented_file() -> None:
    found = read_policy()
    assert found == read_policy(content_path(DEFAULT))
    assert found.source == DEFAULT
    assert (found.generation.average, found.generation.task) == (1.0, 3.0)
    assert set(found.failures) < set(FAILURES)
    assert all(limit.optional for limit in found.efficiency.values())


def test_the_wheel_holds_the_default() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included[DEFAULT] == f"distill_eval/_content/{DEFAULT}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("genration: {task: 3}", ["unknown key 'genration'", "did you mean 'generation'?"]),
        ("generation: {averge: 3}", ["unknown key 'generation.averge'", "'average'"]),
        ("generation: {task: -3}", ["generation.task must be a number above 0", "-3"]),
        ("generation: {task: 0}", ["above 0"]),
        ("generation: {tasks: {arc: many}}", ["generation.tasks.arc", "'many'"]),
        ("generation: {task: 3}\nalpha: 0.7", ["alpha", "at most 0.5", "0.7"]),
        ("generation: {task: 3}\nalpha: 0", ["alpha"]),
        ("generation: {task: 3}\nalpha: .nan", ["alpha"]),
        ("generation: 3", ["generation must be a mapping"]),
        ("failures: {trunkated: {task: 3}}", ["failures.trunkated", "did you mean 'truncated'?"]),
        ("failures: {truncated: {tsk: 3}}", ["failures.truncated.tsk"]),
        ("efficiency: {ttft_s: {max_ration: 1}}", ["efficiency.ttft_s.max_ration", "'max_ratio'"]),
        ("efficiency: {ttft_s: {optional: true}}", ["efficiency.ttft_s needs max_ratio or max_increase"]),
        ("efficiency: {ttft_s: {max_ratio: .inf}}", ["efficiency.ttft_s.max_ratio"]),
        ("efficiency: {ttft_s: {max_ratio: 1, optional: 7}}", ["optional must be true or false"]),
        ("tasks: gsm8k\ngap: {task: 1}", ["tasks must be a list"]),
        ("alpha: 0.05", ["it asks nothing"]),
        ("generation: {task: 3}\ngeneration: {task: 4}", ["gate.yaml:2", "given twice"]),
        ("generation: [", ["gate.yaml", "YAML"]),
        ("[]", ["gate.yaml", "mapping"]),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(tmp_path, text)
    for word in ["gate.yaml", *words]:
        assert word in str(caught.value)


def test_a_missing_file() -> None:
    with pytest.raises(PolicyError, match=r"no/such\.yaml"):
        read_policy(Path("no/such.yaml"))


@pytest.mark.parametrize(
    "text",
    ["gap: {task: 1}\ntasks: [gsm8]", "gap: {tasks: {gsm8: 1}}", "failures: {loop: {tasks: {gsm8: 1}}}"],
)
def test_tasks_that_the_baseline_lacks(tmp_path: Path, text: str) -> None:
    found = policy(tmp_path, text)
    with pytest.raises(PolicyError, match="names 'gsm8', no task of runs/main; did you mean 'gsm8k'"):
        check_tasks(found, ["gsm8k", "ifeval"], "runs/main")
