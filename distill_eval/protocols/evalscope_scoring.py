"""Let EvalScope score answers that are already there: its own run, with a model that looks them up."""

import copy
import gc
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval.errors import SandboxError
from distill_eval.protocols import sandbox
from distill_eval.protocols.evalscope_data import ITEM_KEY, Benchmark
from distill_eval.protocols.evalscope_engine import quiet_evalscope, registered, run_task, task_config
from distill_eval.protocols.evalscope_math import one_math_child
from distill_eval.protocols.prompts import Messages
from distill_eval.schema.requests import CUT_SHORT

CODE_TIMEOUT_S = 4.0  # EvalScope's own for HumanEval, unless a benchmark names another


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said; ``finish_reason`` as in GenerateResponse."""

    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Review:
    """What EvalScope made of one answer; without ``scores`` it did not score it and ``note`` says why.

    ``code``: how the answer's code ended, for tasks that run it.
    """

    scores: dict[str, float]
    extracted: str
    note: str
    code: str = ""


def plain_messages(sample: Any) -> Messages:
    """Return a sample's chat as (role, text) pairs."""
    return tuple((message.role, message.text) for message in sample.input)


def score_answers(
    benchmark: Benchmark, answers: Mapping[str, Answer], code_method: str | None = None
) -> dict[str, Review]:
    """Run EvalScope over the items of ``answers`` (item key -> answer) and return its review of each.

    ``code_method``: how model-written code is run (see ``sandbox.run_python``), None for tasks without code.
    Scoring starts processes, so nothing large should be in memory. A chat that is asked for and not among
    the answers raises KeyError: the model is never called.
    """
    samples = {
        subset: [sample for sample in part if sample.metadata[ITEM_KEY] in answers]
        for subset, part in benchmark.samples.items()
    }
    samples = {subset: part for subset, part in samples.items() if part}
    replies = {
        plain_messages(sample): answers[sample.metadata[ITEM_KEY]]
        for part in samples.values()
        for sample in part
    }
    with (
        quiet_evalscope() as errors,
        one_math_child(),
        tempfile.TemporaryDirectory(prefix="distill-eval-scoring-") as folder,
    ):
        meta = copy.deepcopy(benchmark.meta)
        meta.data_adapter = _scoring_adapter(benchmark.meta.data_adapter, samples, code_method)
        config = task_config(
            meta.name,
            {},
            model=_replay_model(replies),
            model_id="replay",
            eval_type="custom",
            work_dir=folder,
            # Scoring is the processor's work: threads only help where each waits for a process of its own.
            eval_batch_size=min(os.cpu_count() or 1, 16) if code_method else 1,
        )
        # EvalScope ends with a full garbage collection, and its scorers fork: what is alive now stays put.
        ours = gc.get_freeze_count() == 0
        if ours:
            gc.freeze()
        try:
            with registered(meta):
                reviews = read_reviews(run_task(config))
        finally:
            if ours:
                gc.unfreeze()
    missing = Review({}, "", _first_line(errors, "EvalScope gave no review"))
    return {
        key: _with_note(reviews.get(key, missing), errors)
        for part in samples.values()
        for key in (sample.metadata[ITEM_KEY] for sample in part)
    }


def read_reviews(folder: Path) -> dict[str, Review]:
    """Read EvalScope's review files below ``folder``: item key -> review."""
    reviews = {}
    for path in sorted(folder.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)["sample_score"]
                score = row["score"]
                reviews[row["sample_metadata"][ITEM_KEY]] = Review(
                    scores=_numbers(score["value"]),
                    extracted=score.get("extracted_prediction") or "",
                    note=score.get("explanation") or "",
                    code=_code_result((score.get("metadata") or {}).get("execution_result")),
                )
    return reviews


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(v) for name, v in values.items() if isinstance(v, bool | int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _with_note(review: Review, errors: list[str]) -> Review:
    if review.scores:
        return replace(review, note="")
    return replace(review, note=review.note or _first_line(errors, "EvalScope gave no score"))


def _code_result(result: Mapping[str, str] | None) -> str:
    return ": ".join(filter(None, (result.get("result"), result.get("error")))) if result else ""


def _first_line(errors: list[str], otherwise: str) -> str:
    return errors[0].strip().splitlines()[0] if errors and errors[0].strip() else otherwise


def _replay_model(replies: Mapping[Messages, Answer]) -> Any:
    from evalscope.api.model import ModelAPI, ModelOutput

    class Replay(ModelAPI):
        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            messages = tuple((message.role, message.text) for message in input)
            if messages not in replies:
                raise KeyError(f"EvalScope asks for a chat nobody answered: {messages[-1][1][:80]!r}")
            answer = replies[messages]
            reason = "max_tokens" if answer.finish_reason in CUT_SHORT else "stop"
            return ModelOutput.from_content(self.model_name, answer.text, stop_reason=reason)

    return Replay("replay")


def _scoring_adapter(base: Any, samples: Mapping[str, list[Any]], code_method: str | None) -> type:
    """Return a subclass of an adapter that holds its samples already and runs code as told."""
    from evalscope.api.dataset import DatasetDict, MemoryDataset

    class ScoringAdapter(base):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.save_metadata = True  # the item key travels there

        def load_dataset(self) -> Any:
            # Loaded, formatted and selected before; again would cost seconds for each checkpoint and seed.
            self.test_dataset = DatasetDict(
                {name: MemoryDataset(copy.deepcopy(part), name=name) for name, part in samples.items()}
            )
            for _, part in self.test_dataset.items():
                part.reindex()
            return self.test_dataset

    if code_method is None:
        return ScoringAdapter

    class CodeScoringAdapter(ScoringAdapter):
        use_sandbox = True

        def execute_code_in_sandbox(
            self, code: Any, timeout: float | None = None, language: str = "python"
        ) -> dict[str, str]:
            if language != "python" or not isinstance(code, str):
                raise ValueError(f"the sandbox runs Python only, got {language}")
            try:
                result = sandbox.run_python(code, timeout_s=timeout or CODE_TIMEOUT_S, method=code_method)
            except OSError as error:
                raise SandboxError(
                    f"the sandbox ({code_method}) cannot be entered any more: {error}"
                ) from error
            status = "success" if result.status == "passed" else "error"
            return {"status": status, "result": result.status, "error": result.detail}

    return CodeScoringAdapter
