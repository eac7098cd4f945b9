"""The report's numbers come from the records alone: ten lines of pandas give them again."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from distill_eval.backends import fake
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.compare import run_comparison
from distill_eval.schema.records import PROTOCOLS
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

LIMIT = 400


@pytest.fixture(scope="module")
def run_folder(
    tiny_model_folder: Callable[..., Path], data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """ARC-Challenge and GSM8K by two made-up models whose answers are sometimes right."""
    folder = tmp_path_factory.mktemp("recompute")
    options = RunOptions(
        backend="fake", limit=LIMIT, sampling=GREEDY, data_dir=data_dir, cache_dir=folder / "cache"
    )
    tasks = select_tasks(load_catalog(), names=["arc_challenge", "gsm8k"])
    names = [f"{label}={tiny_model_folder(label, seed=seed)}" for seed, label in enumerate("ab")]
    with pytest.MonkeyPatch.context() as patch:
        answers = [f"ANSWER: {letter}" for letter in "ABCD"] + [
            rf"So it is \boxed{{{n}}}" for n in range(2, 26)
        ]
        patch.setattr(fake, "CANNED", tuple(answers[:4] * 3 + answers[4:]))
        run_comparison(names, tasks, options, folder / "out")
    return folder / "out"


def recompute(folder: Path) -> tuple[dict, dict, dict]:
    """(task, protocol, checkpoint) -> accuracy, (task, protocol) -> delta, task -> gap; from the records."""
    frame = pd.read_parquet(folder / "records.parquet")
    scored = frame.loc[frame["protocol"].isin(PROTOCOLS)].dropna(subset=["score"])
    accuracy = scored.groupby(["task", "protocol", "checkpoint"])["score"].mean()
    items = scored.groupby(["task", "protocol", "item_key", "checkpoint"])["score"].mean().unstack()
    difference = (items["b"] - items["a"]).dropna()
    delta = difference.groupby(["task", "protocol"]).mean()
    sides = difference.unstack("protocol").dropna()
    gap = (sides["loglikelihood"] - sides["generative"]).groupby("task").mean()
    return accuracy.to_dict(), delta.to_dict(), gap.to_dict()


@pytest.mark.mirror
def test_results_agree_with_the_records(run_folder: Path) -> None:
    accuracy, delta, gap = recompute(run_folder)
    results = json.loads((run_folder / "results.json").read_text())
    shown = {task["task"]: task for task in results["tasks"]}
    assert set(shown) == {"arc_challenge", "gsm8k"}
    for name, task in shown.items():
        for cell in task["cells"]:
            key = (name, cell["protocol"], cell["checkpoint"])
            assert cell["estimate"]["value"] == pytest.approx(accuracy.pop(key))
            assert cell["estimate"]["num_items"] == LIMIT
        for entry in task["deltas"]:
            assert entry["estimate"]["value"] == pytest.approx(delta[name, entry["protocol"]])
    assert not accuracy  # nothing in the records that the results leave out
    [entry] = shown["arc_challenge"]["gaps"]
    assert entry["estimate"]["value"] == pytest.approx(gap["arc_challenge"])


@pytest.mark.mirror
def test_the_report_shows_them(run_folder: Path) -> None:
    accuracy, _, gap = recompute(run_folder)
    assert 0 < accuracy["gsm8k", "generative", "a"] < 1  # else this would prove little
    assert 0 < accuracy["arc_challenge", "generative", "a"] < 1
    page = (run_folder / "report.html").read_text()
    for value in accuracy.values():
        assert f">{100 * value:.1f}<" in page
    assert f">{100 * gap['arc_challenge']:+.1f}<" in page
    table = (run_folder / "tables" / "table1.tex").read_text()
    for value in accuracy.values():
        assert f"{100 * value:.1f}" in table


@pytest.mark.mirror
def test_a_second_run_asks_no_model_and_changes_nothing(
    run_folder: Path, tiny_model_folder: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    options = RunOptions(
        backend="fake", limit=LIMIT, sampling=GREEDY, data_dir=data_dir, cache_dir=run_folder.parent / "cache"
    )
    tasks = select_tasks(load_catalog(), names=["arc_challenge", "gsm8k"])
    names = [f"{label}={tiny_model_folder(label, seed=seed)}" for seed, label in enumerate("ab")]
    again = run_comparison(names, tasks, options, tmp_path / "out")
    for run in again.provenance["runs"]:
        assert run["counts"]["score_computed"] == run["counts"]["generate_computed"] == 0
    for name in ("records.parquet", "results.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run_folder / name).read_bytes()
