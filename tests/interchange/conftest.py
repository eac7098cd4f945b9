"""Miniature result folders of both engines over invented items, and what importing them gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.interchange.import_run import import_results
from distill_eval.runs import load_run
from distill_eval.schema.records import Record

DATE = "2026-01-02T03-04-05.678901"


@pytest.fixture(scope="session")
def catalog():
    return load_catalog()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A copy to read or to damage: lmeval/{teacher,student} and evalscope/{teacher,student}."""
    return Path(shutil.copytree(Path(__file__).parent / "data", tmp_path / "logs"))


@pytest.fixture
def arguments(logs: Path) -> list[str]:
    """Both engines' folders of both checkpoints, as on the command line."""
    return [
        f"{label}={logs / engine / label}"
        for label in ("teacher", "student")
        for engine in ("lmeval", "evalscope")
    ]


@pytest.fixture
def run_import(tmp_path: Path, catalog) -> Callable[..., list[Record]]:
    """Import result folders into ``tmp_path/run`` and return the records that lie there."""

    def run(*arguments: object, **options) -> list[Record]:
        import_results([str(a) for a in arguments], catalog, tmp_path / "run", **options)
        return load_run(tmp_path / "run")[0]

    return run


@pytest.fixture
def edit_lines() -> Callable[[Path, Callable], None]:
    """Rewrite a JSONL file: every row goes through a function, and a row that becomes None goes."""

    def edit(path: Path, change: Callable) -> None:
        rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))

    return edit


@pytest.fixture
def edit_json() -> Callable[[Path, Callable], None]:
    """Rewrite a JSON file after a function changed its value in place."""

    def edit(path: Path, change: Callable) -> None:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit
