"""What may not be compared is refused, with the difference named; what may differ is a warning."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.gate import read_policy, run_gate
from distill_eval.schema.requests import GREEDY, Sampling


def refusals(left: Path, right: Path | str) -> dict[str, list[str]]:
    result = run_gate(str(left), str(right), read_policy())
    found: dict[str, list[str]] = {}
    for difference in result.differences:
        if difference.severity == "refusal":
            found.setdefault(difference.subject, []).append(difference.text)
    assert (result.outcome == "refused") == bool(found)
    assert not (found and result.checks)
    return found


def test_the_same_run_is_not_refused(baseline: Path) -> None:
    result = run_gate(str(baseline), str(baseline), read_policy())
    assert result.outcome == "pass"
    assert result.differences == ()
    assert "same weights" in result.notes[-1]


def test_a_changed_prompt(world, baseline: Path) -> None:
    text = (world.folder / "tasks/sums.yaml").read_text().replace("Answer with one of", "Choose one of")
    found = refusals(baseline, world.run("prompt", world.task("prompt_tasks", text)))
    assert list(found) == ["task definition", "prompts"]
    assert "generative.options.prompt is {question} Answer with" in found["task definition"][0]
    [line] = found["prompts"]
    assert line.startswith("prompts of sums (generation) differ on 12 of 12 items; first: sums/default/")
    assert "'Answer with one of: A" in line
    assert "'Choose one of: A" in line


def test_a_changed_question(world, baseline: Path, rows: Callable) -> None:
    """Another revision of the data: one question reads differently, so it is another item."""
    changed = rows()
    changed[3]["question"] = "What is three plus 1?"
    found = refusals(baseline, world.run("question", world.task("question_tasks", rows=changed)))
    assert list(found) == ["items"]
    assert "12 in the baseline, 12 in the candidate, 11 common" in found["items"][0]
    assert "the data is another" in found["items"][0]


def test_a_changed_gold_answer(world, baseline: Path, rows: Callable) -> None:
    changed = rows()
    changed[3]["answer"] = changed[3]["options"][1]
    found = refusals(baseline, world.run("gold", world.task("gold_tasks", rows=changed)))
    assert list(found) == ["data revision"]
    assert "gold answers of sums (generation) differ on 1 of 12 items" in "".join(found["data revision"])


def test_a_data_revision_that_the_mirror_knows(baseline: Path, change_provenance, tmp_path: Path) -> None:
    sides = []
    for commit in ("abc1", "def2"):
        folder = shutil.copytree(baseline, tmp_path / commit)

        def edit(facts: dict, commit: str = commit) -> None:
            facts["tasks"][0]["generative"]["dataset"] = "made/up"
            facts["data_revisions"] = {"made/up": commit}

        change_provenance(folder, edit)
        sides.append(folder)
    assert refusals(*sides) == {
        "data revision": ["data set made/up is at abc1 in the baseline, def2 in the candidate"]
    }


def test_a_pinned_revision_in_the_task_file(baseline: Path, change_provenance, tmp_path: Path) -> None:
    other = shutil.copytree(baseline, tmp_path / "other")
    change_provenance(other, lambda facts: facts["tasks"][0]["loglikelihood"].update(revision="v2"))
    assert refusals(baseline, other) == {
        "task definition": ["task sums: loglikelihood.revision is none in the baseline, v2 in the candidate"]
    }


def test_a_changed_seed(world, baseline: Path, tasks: Path) -> None:
    found = refusals(baseline, world.run("seed", tasks, seeds=(43,)))
    assert found == {"decoding": ["seeds is [42] in the baseline, [43] in the candidate"]}


def test_more_seeds(world, baseline: Path, tasks: Path) -> None:
    found = refusals(baseline, world.run("seeds", tasks, seeds=(42, 43)))
    assert found == {"decoding": ["seeds is [42] in the baseline, [42, 43] in the candidate"]}


def test_stopping_in_loops(baseline: Path, change_provenance, tmp_path: Path) -> None:
    """A run from before there was the option did not stop, which is no difference."""
    before, stopped = (shutil.copytree(baseline, tmp_path / name) for name in ("before", "stopped"))
    change_provenance(before, lambda facts: facts["options"].pop("stop_loops"))
    change_provenance(stopped, lambda facts: facts["options"].update(stop_loops=True))
    assert refusals(before, baseline) == {}
    assert refusals(baseline, stopped) == {
        "decoding": ["stop_loops is False in the baseline, True in the candidate"]
    }


@pytest.mark.parametrize(
    ("options", "subject", "words"),
    [
        ({"sampling": Sampling(temperature=0.5)}, "decoding", "temperature is 0.7"),
        ({"sampling": Sampling(top_p=0.9)}, "decoding", "top_p is 0.8"),
        ({"sampling": Sampling(top_k=5)}, "decoding", "top_k is 20"),
        ({"max_new_tokens": 9}, "decoding", "max_new_tokens is 8"),
        ({"limit": 6}, "items", "6 common (limit none against 6)"),
        ({"system_prompt": "Be brief."}, "prompts", "system_prompt is none"),
        ({"apply_chat_template": True}, "prompts", "apply_chat_template is False"),
        (
            {"template": "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"},
            "prompts",
            "chat templates differ from character",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_changed_settings(world, baseline: Path, tasks: Path, options, subject, words, request) -> None:
    name = f"changed-{request.node.callspec.id.strip('-')}"
    found = refusals(baseline, world.run(name, tasks, **options))
    assert subject in found
    assert words in " ".join(found[subject])


def test_another_draw_of_items(world, tasks: Path) -> None:
    first, second = (world.run(f"draw{seed}", tasks, limit=6, limit_seed=seed) for seed in (0, 1))
    [line] = set(refusals(first, second)["items"][:1])
    assert "limit_seed 0 against 1" in line


def test_what_has_no_effect_is_no_difference(world, baseline: Path, tasks: Path) -> None:
    """A limit that takes every item; and under greedy decoding, seeds."""
    assert refusals(baseline, world.run("all", tasks, limit=500, limit_seed=3)) == {}
    greedy = [world.run(f"greedy{seed}", tasks, sampling=GREEDY, seeds=(seed,)) for seed in (1, 2)]
    assert refusals(*greedy) == {}


def test_another_engine_is_refused_another_machine_is_not(
    baseline: Path, change_provenance, tmp_path: Path
) -> None:
    other = shutil.copytree(baseline, tmp_path / "other")

    def edit(facts: dict) -> None:
        facts["versions"] |= {"torch": "1.0", "transformers": "1.0"}
        facts["hardware"]["processor"] = "abacus"
        facts["runs"][0]["numerics"]["dtype"] = "int2"

    change_provenance(other, edit)
    result = run_gate(str(baseline), str(other), read_policy())
    assert result.outcome == "pass"
    texts = [difference.text for difference in result.differences]
    assert {difference.severity for difference in result.differences} == {"warning"}
    assert any("dtype" in text and "int2" in text for text in texts)
    assert any("torch" in text and "transformers" in text for text in texts)
    assert any("abacus" in text for text in texts)
    change_provenance(other, lambda facts: facts["versions"].update({"lm-eval": "0.1"}))
    assert "lm-eval is" in refusals(baseline, other)["engine"][0]


def test_a_task_that_the_candidate_dropped(baseline: Path, change_provenance, tmp_path: Path) -> None:
    other = shutil.copytree(baseline, tmp_path / "other")
    change_provenance(
        other,
        lambda facts: facts.update(tasks=[facts["tasks"][0] | {"name": "others", "namespace": "others"}]),
    )
    found = refusals(baseline, other)
    assert found["tasks"] == ["task sums is in the baseline but not in the candidate"]


def test_a_protocol_that_was_not_run(stored: Callable, tmp_path: Path) -> None:
    both = stored(tmp_path / "both", 300)
    one = stored(tmp_path / "one", 300, protocols=("loglikelihood",))
    assert refusals(both, one) == {"items": ["sums (generation): the candidate has no records"]}
