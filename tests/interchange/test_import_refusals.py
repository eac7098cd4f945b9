"""What is wrong with a result folder is said in one line, with file and line, and nothing is written."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from distill_eval.errors import OptionError, StoreError, TaskError

DATE = "2026-01-02T03-04-05.678901"


@dataclass(frozen=True)
class Places:
    logs: Path

    @property
    def teacher(self) -> Path:
        return self.logs / "lmeval" / "teacher"

    @property
    def work(self) -> Path:
        return self.logs / "evalscope" / "teacher"

    @property
    def results(self) -> Path:
        return self.teacher / f"results_{DATE}.json"

    @property
    def arc(self) -> Path:
        return self.teacher / f"samples_arc_easy_{DATE}.jsonl"

    @property
    def review(self) -> Path:
        return self.work / "reviews" / "teacher-1b" / "gsm8k_main.jsonl"

    @property
    def config(self) -> Path:
        return self.work / "configs" / "task_config.yaml"


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def remove_samples(at: Places) -> None:
    for path in at.teacher.glob("samples_*"):
        path.unlink()


def rename_task(at: Places) -> None:
    at.arc.rename(at.teacher / f"samples_arc_eazy_{DATE}.jsonl")
    at.results.write_text(at.results.read_text().replace("arc_easy", "arc_eazy"))


# What is damaged, the message, the error.
LM_EVAL: dict[str, tuple[Callable[[Places], object], str, type[Exception]]] = {
    "no samples": (remove_samples, "run lm_eval again with --log_samples", StoreError),
    "damaged line": (lambda at: append(at.arc, '{"doc_id": 4, '), r"arc_easy.*, line 5: damaged", StoreError),
    "a list": (lambda at: append(at.arc, "[4]"), r"arc_easy.*, line 5: must be a JSON object", StoreError),
    "no sample": (lambda at: append(at.arc, '{"doc_id": 4}'), r"arc_easy.*, line 5: not a line", StoreError),
    "another doc": (
        lambda at: at.arc.write_text(at.arc.read_text().replace('"question"', '"query"')),
        r"arc_easy.*, line 1: not a line .*no field 'question'", StoreError,
    ),
    "no responses": (
        lambda at: at.arc.write_text(at.arc.read_text().replace('"filtered_resps"', '"other"')),
        r"arc_easy.*, line 1: not a line .*no 'filtered_resps'", StoreError,
    ),
    "empty log": (lambda at: at.arc.write_text(""), "arc_easy.*: the file is empty", StoreError),
    "not text": (lambda at: at.arc.write_bytes(b"\xff\xfe"), "arc_easy.*: damaged: not UTF-8", StoreError),
    "damaged results": (lambda at: at.results.write_text("{"), "results_.*: damaged", StoreError),
    "results of nothing": (lambda at: at.results.write_text("{}"), "no config of task", StoreError),
    "no results": (lambda at: at.results.unlink(), "no results_2026.*json beside it", StoreError),
    "unknown task": (
        rename_task,
        r"no task file covers lm-eval's 'arc_eazy'; did you mean 'arc_easy'\?.*--skip-unknown", TaskError,
    ),
}  # fmt: skip
EVALSCOPE: dict[str, tuple[Callable[[Places], object], str]] = {
    "two models": (
        lambda at: shutil.copytree(at.review.parent, at.review.parent.with_name("other")),
        r"results of 2 models \(other, teacher-1b\).*teacher=.*reviews/other",
    ),
    "no reviews": (lambda at: (at.work / "reviews").rename(at.work / "predictions"), "without its reviews"),
    "empty review": (lambda at: at.review.write_text("\n"), "gsm8k_main.jsonl: the file is empty"),
    "damaged review": (lambda at: append(at.review, "nonsense\n"), "gsm8k_main.jsonl, line 3: damaged"),
    "no sample": (lambda at: append(at.review, '{"index": 2}\n'), "gsm8k_main.jsonl, line 3: not a line"),
    "no score": (
        lambda at: at.review.write_text(at.review.read_text().replace('"value"', '"worth"')),
        "gsm8k_main.jsonl, line 1: not a line .*no 'value'",
    ),
    "damaged settings": (lambda at: append(at.config, "\n  - ["), "task_config.yaml: damaged"),
}


@pytest.mark.parametrize("case", LM_EVAL)
def test_lm_eval(case, logs, refused):
    damage, text, error = LM_EVAL[case]
    damage(Places(logs))
    refused(error, text, Places(logs).teacher)


@pytest.mark.parametrize("case", EVALSCOPE)
def test_evalscope(case, logs, refused):
    damage, text = EVALSCOPE[case]
    damage(Places(logs))
    refused(StoreError, text, Places(logs).work)


def test_places(logs, refused):
    at = Places(logs)
    (logs / "empty").mkdir()
    refused(OptionError, "import needs a result folder")
    refused(StoreError, "does not exist", logs / "nowhere")
    refused(StoreError, "is a file, not a folder", at.arc)
    refused(StoreError, "no result folder: it has no lm-eval's results_.*EvalScope's reviews", logs / "empty")
    refused(StoreError, "results of 2 models .*teacher=.*student=", logs / "lmeval")
    refused(
        StoreError,
        "is there twice under loglikelihood",
        f"t={at.teacher}",
        f"t={logs / 'lmeval' / 'student'}",
    )


@pytest.fixture
def refused(run_import, tmp_path):
    def check(error: type[Exception], text: str, *arguments: object) -> None:
        with pytest.raises(error, match=text) as refusal:
            run_import(*arguments)
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "run").exists()

    return check
