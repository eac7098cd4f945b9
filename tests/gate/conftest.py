"""Tiny runs to hold against each other: a fake backend over items of one's own, and made-up scores on top of it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.compare import run_comparison
from distill_eval.runs import MANIFEST, PROVENANCE, RESULTS, load_run, to_json, write_run
from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.records import Record
from distill_eval.schema.requests import Sampling
from distill_eval.schema.results import Results
from distill_eval.schema.run import RunOptions
from tests.cli.conftest import command

__all__ = ["command"]

TASK = """\
title: Sums
category: test
chance: 1/options
items: sums.jsonl
loglikelihood:
  metric: acc
  options: {prompt: "Question: {question}\\nAnswer:", target: option}
generative:
  metric: exact_match
  options: {prompt: "{question} Answer with one of: {choices}", target: option}
max_new_tokens: 8
"""
NUM_ITEMS = 12


def _rows(count: int = NUM_ITEMS) -> list[dict]:
    return [
        {"subset": "default", "question": f"What is {n} plus one?", "options": [str(n + 1), str(n)],
         "answer": str(n + 1)}
        for n in range(count)
    ]  # fmt: skip


@dataclass(frozen=True)
class World:
    """A folder with two tiny checkpoints, a task and a response cache; ``run`` evaluates, as a user would."""

    folder: Path
    teacher: Path
    student: Path

    def task(self, name: str, text: str = TASK, rows: Sequence[dict] | None = None) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "sums.yaml").write_text(text)
        lines = [json.dumps(row) for row in (rows or _rows())]
        (folder / "sums.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return folder

    def run(self, name: str, tasks: Path, labels: Sequence[str] = ("student",), **options) -> Path:
        settings = RunOptions(
            backend="fake", sampling=Sampling(), max_new_tokens=8, cache_dir=self.folder / "cache"
        )
        models = {"teacher": self.teacher, "student": self.student}
        template = options.pop("template", "auto")
        run_comparison(
            [f"{label}={models.get(label, self.student)}" for label in labels],
            select_tasks(load_catalog([tasks]), names=["sums"]),
            replace(settings, **options),
            self.folder / name,
            template=template,
        )
        return self.folder / name


@pytest.fixture(scope="session")
def world(tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> World:
    models = [tiny_model_folder(name, seed=seed) for seed, name in enumerate(("teacher", "student"))]
    return World(tmp_path_factory.mktemp("gate"), *models)


@pytest.fixture(scope="session")
def tasks(world: World) -> Path:
    return world.task("tasks")


@pytest.fixture(scope="session")
def baseline(world: World, tasks: Path) -> Path:
    """One checkpoint, twelve items, sampled with seed 42."""
    return world.run("baseline", tasks)


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict]]:
    return _rows


def _stored(
    source: Path,
    folder: Path,
    num_right: int,
    num_items: int = 400,
    *,
    labels: Sequence[str] = ("student",),
    protocols: Sequence[str] = ("generative", "loglikelihood"),
    efficiency: Sequence[Efficiency] = (),
    weights: str = "",
    change: Callable[[dict], None] | None = None,
) -> Path:
    """Write a run like ``source`` with ``num_items`` made-up items, the first ``num_right`` of them right."""
    records, _, facts = load_run(source)
    made: list[Record] = []
    for label in labels:
        for protocol in protocols:
            model = next(record for record in records if record.protocol == protocol)
            for number in range(num_items):
                right = number < num_right
                key = f"sums/default/{hashlib.sha256(str(number).encode()).hexdigest()[:16]}#0"
                made.append(
                    replace(
                        model, checkpoint=label, fingerprint=weights or f"weights {folder.name} {label}", item_key=key,
                        cluster=key, score=float(right), chance=0.0, target="1", prompt=f"question {number}",
                        output="1" if right else "0", extracted="1" if right else "0", finish_reason="stop",
                        num_output_tokens=1 if protocol == "generative" else model.num_output_tokens,
                    )
                )  # fmt: skip
    described = facts["checkpoints"][0]
    facts["checkpoints"] = [{**described, "label": label} for label in labels]
    facts["runs"] = [{**facts["runs"][0], "checkpoint": label} for label in labels]
    facts["tasks"][0] |= {"num_joined": 5000, "chance": None}
    if change:
        change(facts)
    write_run(folder, records=made, results=Results(tuple(labels), (), ()), provenance=facts)
    if efficiency:
        _rewrite(folder, RESULTS, lambda found: found | {"efficiency": [asdict(e) for e in efficiency]})
    return folder


def _rewrite(folder: Path, name: str, change: Callable[[dict], dict]) -> None:
    """Change a JSON file of a run as another version of this program might have written it."""
    content = to_json(change(json.loads((folder / name).read_text())))
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def stored(baseline: Path) -> Callable[..., Path]:
    """``stored(folder, num_right, ...)``: a run of made-up answers that compares with every other such run."""

    def make(folder: Path, num_right: int, num_items: int = 400, **settings) -> Path:
        return _stored(baseline, folder, num_right, num_items, **settings)

    return make


@pytest.fixture
def change_provenance() -> Callable[[Path, Callable[[dict], None]], None]:
    def change(folder: Path, edit: Callable[[dict], None]) -> None:
        def edited(found: dict) -> dict:
            edit(found)
            return found

        _rewrite(folder, PROVENANCE, edited)

    return change
