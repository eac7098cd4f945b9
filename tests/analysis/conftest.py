"""Made-up tasks and records."""

from collections.abc import Callable, Iterable, Sequence

import pytest

from distill_eval.schema.records import Record
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec


def _task(
    name: str = "arc",
    protocols: Sequence[str] = ("loglikelihood", "generative"),
    metric: str = "acc",
    metrics: Sequence[str] = (),
    **settings,
) -> TaskSpec:
    key = ItemKey(("question",))
    loglikelihood = LoglikelihoodSpec((name,), "made/up", metric, key, metrics=tuple(metrics))
    generative = GenerativeSpec(name, "made/up", "exact", key)
    return TaskSpec(
        name=name,
        title=name.upper(),
        category="made",
        loglikelihood=loglikelihood if "loglikelihood" in protocols else None,
        generative=generative if "generative" in protocols else None,
        **settings,
    )


def _records(
    checkpoint: str,
    protocol: str,
    scores: Iterable[float | None],
    task: str = "arc",
    clusters: Sequence[str] | None = None,
    seed: int | None = None,
    chance: float | None = None,
    extra: Sequence[dict[str, float]] | None = None,
    start: int = 0,
) -> list[Record]:
    records = []
    for number, score in enumerate(scores):
        records.append(
            Record(
                checkpoint=checkpoint,
                fingerprint=f"weights of {checkpoint}",
                task=task,
                protocol=protocol,
                item_key=f"{task}/all/{number + start:05d}#0",
                subset="all",
                cluster=clusters[number] if clusters else "",
                seed=(42 if seed is None else seed) if protocol == "generative" else None,
                prompt="",
                output="",
                target="A",
                extracted=None,
                score=score,
                chance=chance,
                num_prompt_tokens=3,
                num_output_tokens=1,
                finish_reason="stop",
                scores=extra[number] if extra else {},
            )
        )
    return records


@pytest.fixture(scope="session")
def make_task() -> Callable[..., TaskSpec]:
    return _task


@pytest.fixture(scope="session")
def make_records() -> Callable[..., list[Record]]:
    """``make_records(checkpoint, protocol, scores, ...)``: item ``i`` of every call has the same key."""
    return _records
