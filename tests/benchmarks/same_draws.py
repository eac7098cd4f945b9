"""Are sampled texts the same whatever the batch size, the order and the restarts?

    python -m tests.benchmarks.same_draws CHECKPOINT [CHECKPOINT ...] --prompts 40 --new-tokens 48 --out FILE.json

Chat prompts of GSM8K (4 examples before each) and ARC-Challenge, or of the demo suite without benchmark data, are
continued on the CPU in float32, sampled as in the paper under several seeds, once for reference and once in every
other setting. Texts are compared token by token up to their first difference. That is a near-tie if the margin there
(how far log-probabilities would have to move for another token, noise included) is below 1e-4 in either run.
Log-likelihoods of the same items go through the same settings. Exit code 1 if any difference is not a near-tie, or
a log-likelihood moves by more than rounding explains.
"""

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from distill_eval.backends import open_backend
from distill_eval.backends.transformers import opening
from distill_eval.bench.agreement import FLOAT32_CHOICE, NEAR_TIE, first_difference
from distill_eval.bench.workload import Workload, load_workload
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.protocols.client import DEFAULT_MAX_LENGTH
from distill_eval.protocols.lmeval_model import ClientLM
from distill_eval.provenance import stamp
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

TASKS = ("gsm8k", "arc_challenge")
SEEDS = (1, 2, 3)
NEAR = NEAR_TIE["float32"]


@dataclass(frozen=True, slots=True)
class Setting:
    """How the requests are put: shuffled with the seed ``order``; in ``calls`` calls (0: one each), each to a backend
    just opened where ``fresh``; ``without`` the ways of reading that are turned off."""

    name: str
    batch_size: int | None = None
    order: int | None = None
    calls: int = 1
    fresh: bool = False
    without: tuple[str, ...] = ()


REFERENCE = Setting("by itself")
SETTINGS = (
    *(Setting(f"batch size {size}", batch_size=size) for size in (1, 3, 8, 32)),
    Setting("shuffled", order=1),
    Setting("shuffled, batch size 3", batch_size=3, order=2),
    Setting("one request at a time", calls=0),
    Setting("restart after half", order=3, calls=2, fresh=True),
    Setting("padded, batch size 8", batch_size=8, without=("open_ragged",)),
    Setting("padded, no shared prefixes", batch_size=3, order=4, without=("open_ragged", "open_cached")),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Are sampled texts the same in any batch, order and restart?"
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data_dir = resolve_data_dir(None)
    checkpoints = [resolve_checkpoint(name, cache_dir=default_cache_dir()) for name in arguments.checkpoints]
    tasks = select_tasks(load_catalog(), suite=None if data_dir else "demo", names=TASKS if data_dir else ())
    if data_dir is not None:
        go_offline(data_dir)
    workload = load_workload(tasks, -(-arguments.prompts // len(tasks)), data_dir)
    workload = workload.sample(arguments.prompts, arguments.prompts)
    settings = {
        "prompts": arguments.prompts,
        "new_tokens": arguments.new_tokens,
        "near_tie": NEAR,
        "seeds": SEEDS,
    }
    found: dict[str, Any] = {}
    for checkpoint in checkpoints:
        found[checkpoint.label] = figures = measure(checkpoint, workload, arguments.new_tokens)
        print(table(checkpoint.label, figures), flush=True)
        if arguments.out:
            whole = {"settings": settings, "checkpoints": found, "made": stamp()}
            arguments.out.write_text(json.dumps(whole, indent=2) + "\n")
    rows = [row for figures in found.values() for row in figures["settings"]]
    return any(row["other"] or not row["score_difference"] <= FLOAT32_CHOICE for row in rows)


def measure(checkpoint: Checkpoint, workload: Workload, new_tokens: int) -> dict[str, Any]:
    """Run every setting; return what the reference made and how the others differ from it."""
    options = RunOptions(device="cpu", dtype="float32", max_new_tokens=new_tokens, seeds=SEEDS[:1])
    tokenizer = load_tokenizer(checkpoint)
    max_length = checkpoint.max_positions or DEFAULT_MAX_LENGTH
    texts = [
        replace(request, sampling=replace(request.sampling, seed=SEEDS[index % len(SEEDS)]))
        for index, request in enumerate(workload.generate_requests(tokenizer, options, max_length))
    ]
    scores = build_scores(workload, tokenizer, options, max_length)
    first: tuple[list[GenerateResponse], list[ScoreResponse]] | None = None
    rows = []
    for setting in (REFERENCE, *SETTINGS):
        start = time.perf_counter()
        asked = replace(options, batch_size=setting.batch_size)
        with contextlib.ExitStack() as patches:
            for name in setting.without:
                patches.enter_context(mock.patch.object(opening, name, unread))
            made = (
                generate(lambda asked=asked: open_backend(asked, checkpoint, tokenizer), texts, setting),
                score(lambda asked=asked: open_backend(asked, checkpoint, tokenizer), scores, setting),
            )
        seconds = time.perf_counter() - start
        if first is None:
            first = made
        else:
            rows.append(compare(setting.name, first, made))
        said = f"{rows[-1]['equal']} of {rows[-1]['texts']} texts equal" if rows else "the reference"
        print(f"{setting.name}: {said}, {seconds:.0f} s", file=sys.stderr, flush=True)
    assert first is not None
    margins = [margin for response in first[0] for margin in response.margins]
    return {
        "texts": len(texts),
        "tokens": len(margins),
        "prompt_tokens": sum(len(request.prompt) for request in texts),
        "near_ties_met": sum(margin < NEAR for margin in margins),
        "scores": len(scores),
        "settings": rows,
    }


def unread(model: Any) -> tuple[None, str]:
    return None, "turned off"


def build_scores(
    workload: Workload, tokenizer: Any, options: RunOptions, max_length: int
) -> list[ScoreRequest]:
    """Return the log-likelihoods that lm-eval asks for on the workload's questions."""
    asked: list[ScoreRequest] = []

    def keep(requests: Sequence[ScoreRequest], *, label: str) -> list[ScoreResponse]:
        asked.extend(requests)
        return [ScoreResponse(0.0, False)] * len(requests)

    client: Any = SimpleNamespace(score=keep, max_length=max_length)
    ClientLM(client, tokenizer, options, "").loglikelihood(workload.instances)
    return list(dict.fromkeys(asked))


def generate(
    open_one: Callable[[], Any], requests: Sequence[GenerateRequest], setting: Setting
) -> list[GenerateResponse]:
    """Put the requests as ``setting`` says; return the responses in the requests' order."""
    order = ordered(len(requests), setting)
    size = -(-len(order) // (setting.calls or len(order)))
    responses: dict[int, GenerateResponse] = {}
    backend = open_one()
    for start in range(0, len(order), size):
        if start and setting.fresh:
            backend.close()
            backend = open_one()
        part = order[start : start + size]
        for place, response in backend.generate([requests[index] for index in part]):
            responses[part[place]] = response
    backend.close()
    return [responses[index] for index in range(len(requests))]


def score(
    open_one: Callable[[], Any], requests: Sequence[ScoreRequest], setting: Setting
) -> list[ScoreResponse]:
    """Do the same with log-likelihoods. A fresh backend plans all batches again and goes on with those left."""
    order = ordered(len(requests), setting)
    lists = [[index] for index in order] if setting.calls == 0 else [order]
    responses: dict[int, ScoreResponse] = {}
    backend = open_one()
    for part in lists:
        asked = [requests[index] for index in part]
        batches = backend.plan_score(asked)
        for number, batch in enumerate(batches):
            if setting.fresh and number == len(batches) // 2:
                backend.close()
                backend = open_one()
                assert backend.plan_score(asked) == batches
            answers = backend.score([asked[place] for place in batch])
            responses |= {part[place]: answer for place, answer in zip(batch, answers, strict=True)}
    backend.close()
    return [responses[index] for index in range(len(requests))]


def ordered(count: int, setting: Setting) -> list[int]:
    order = list(range(count))
    if setting.order is not None:
        random.Random(setting.order).shuffle(order)
    return order


def compare(
    name: str,
    first: tuple[list[GenerateResponse], list[ScoreResponse]],
    made: tuple[list[GenerateResponse], list[ScoreResponse]],
) -> dict[str, Any]:
    differences, tokens, moved = [], 0, 0.0
    for text, (one, other) in enumerate(zip(first[0], made[0], strict=True)):
        position = first_difference(one.tokens, other.tokens)
        same = len(one.tokens) if position is None else position
        tokens += same + (position is not None)
        moved = max([moved, *(abs(a - b) for a, b in zip(one.margins[:same], other.margins, strict=False))])
        if position is not None:
            margins = [
                part.margins[position] if position < len(part.margins) else None for part in (one, other)
            ]
            near = any(margin is not None and margin < NEAR for margin in margins)
            differences.append({"text": text, "position": position, "margins": margins, "near_tie": near})
        elif (one.text, one.finish_reason) != (other.text, other.finish_reason):
            differences.append({"text": text, "position": same, "margins": [], "near_tie": False})
    near = sum(difference["near_tie"] for difference in differences)
    pairs = list(zip(first[1], made[1], strict=True))
    return {
        "setting": name,
        "texts": len(first[0]),
        "tokens": tokens,
        "equal": len(first[0]) - len(differences),
        "near_ties": near,
        "other": len(differences) - near,
        "margin_difference": moved,
        "score_difference": max((abs(one.logprob - other.logprob) for one, other in pairs), default=0.0),
        "greedy_flips": sum(one.is_greedy != other.is_greedy for one, other in pairs),
        "differences": differences,
    }


def table(label: str, figures: dict[str, Any]) -> str:
    columns = ("setting", "tokens", "equal", "near_ties", "other", "margin_difference", "score_difference")
    columns = (*columns, "greedy_flips")
    head = (
        f"{label}: {figures['texts']} texts of {figures['tokens']} tokens, {figures['near_ties_met']} of them within"
        f" {NEAR:g} of another; {figures['scores']} log-likelihoods"
    )
    rows = [[shown(row[column]) for column in columns] for row in figures["settings"]]
    lines = [f"| {' | '.join(row)} |" for row in ([name.replace("_", " ") for name in columns], *rows)]
    return "\n".join([head, "", lines[0], "|---" + "|---:" * (len(columns) - 1) + "|", *lines[1:], ""])


def shown(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    sys.exit(main())
