"""Are texts and scores of RULER through this project those of lm-eval's own Hugging Face backend?

    python -m tests.benchmarks.longcontext_agreement CHECKPOINT --lengths 1024,2048,4096,8192 --items 50

The bar: every item's score equal, and so accuracies. lm-eval runs by itself (``simple_evaluate`` with ``HFLM``, its 500
samples made by itself from its own seed, of which ``limit`` takes the first); the essays alone are handed to it where a
mirror has them. HFLM's ``max_length`` is set to what the prompts need, as it would cut them otherwise. Texts may differ
where two tokens are nearly equal: each difference is listed with the lead of our token over the runner-up (nats).
``--out`` adds this checkpoint's figures to a JSON file. Exit code 1 when a score differs.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill_eval import backends, checkpoints, content, provenance
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.protocols import longcontext, ruler
from distill_eval.protocols.client import Client
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore
from tests.benchmarks.shown import add

COLUMNS = "{:<16} {:>7} {:>6} {:>12} {:>12} {:>11} {:>10} {:>9} {:>9}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--items", type=int, default=50, help="of each task at each length")
    parser.add_argument("--tasks", default=",".join(ruler.NIAH_SINGLE))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=1, help="of lm-eval's backend")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    checkpoint = checkpoints.resolve_checkpoint(arguments.checkpoint, cache_dir=content.default_cache_dir())
    found = measure(checkpoint, arguments)
    if arguments.out:
        add(arguments.out, f"{checkpoint.label} {arguments.device} {arguments.dtype}", found)
    return 0 if found["same_scores"] == found["items"] else 1


def measure(checkpoint: Checkpoint, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return figures by task and length, and every difference."""
    data_dir = resolve_data_dir(arguments.data_dir)
    if data_dir is not None:
        go_offline(data_dir)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    names = longcontext.expand_names(arguments.tasks.split(","))
    ours = _ours(checkpoint, names, lengths, arguments, data_dir)
    model = _load_theirs(checkpoint, lengths, arguments)
    rows, differences = [], []
    print(COLUMNS.format("task", "length", "items", "same scores", "same texts", "acc ours", "theirs", "s ours",
                         "s theirs"))  # fmt: skip
    for task in names:
        for length in lengths:
            start = time.perf_counter()
            samples = _theirs(model, checkpoint, task, length, arguments.items, data_dir)
            mine, seconds = ours[task, length]
            row, unlike = _compare(mine, samples, length)
            row |= {"task": task, "length": length, "s_ours": round(seconds, 2)}
            row["s_theirs"] = round(time.perf_counter() - start, 2)
            rows.append(row)
            differences += [{"task": task, "length": length, **one} for one in unlike]
            print(COLUMNS.format(task, length, row["items"], row["same_scores"], row["same_texts"],
                                 f"{row['accuracy_ours']:.3f}", f"{row['accuracy_theirs']:.3f}", row["s_ours"],
                                 row["s_theirs"]), flush=True)  # fmt: skip
    totals = {name: sum(row[name] for row in rows) for name in ("items", "same_scores", "same_texts")}
    for one in differences:
        print(f"{one['task']} {one['length']} item {one['doc_id']}: scores {one['scores']}, texts part at "
              f"character {one['character']}, our token's lead {one['margin']}")  # fmt: skip
    print(f"{totals['same_scores']} of {totals['items']} scores equal, {totals['same_texts']} texts")
    settings = {key: getattr(arguments, key) for key in ("device", "dtype", "batch_size", "items")}
    return {
        **totals,
        "settings": settings,
        "rows": rows,
        "differences": differences,
        "stamp": provenance.stamp(),
    }


def _ours(
    checkpoint: Checkpoint,
    names: tuple[str, ...],
    lengths: list[int],
    arguments: argparse.Namespace,
    data_dir: Any,
) -> dict[tuple[str, int], tuple[list[Any], float]]:
    """Return ([(item, response, score, tokenizer)], seconds) by task and length, through an empty cache."""
    tokenizer = checkpoints.load_tokenizer(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(
            limit=arguments.items,
            device=arguments.device,
            dtype=arguments.dtype,
            data_dir=data_dir,
            cache_dir=Path(folder),
            beyond_positions=True,
        )
        tasks = longcontext.load_tasks(names, tokenizer, options, lengths)
        backend = backends.open_backend(options, checkpoint, tokenizer)
        client = Client(checkpoint, tokenizer, backend, ResponseStore(Path(folder) / "responses.sqlite"))
        found = {}
        try:
            for task in tasks:
                for length in task.lengths:
                    start = time.perf_counter()
                    items = [item for item in task.items if item.length == length]
                    prompts = longcontext.build_prompts(task, items, tokenizer, client.max_length)
                    responses = client.generate(longcontext.build_requests(items, prompts))
                    records = longcontext.score(task, items, prompts, responses, checkpoint)
                    scored = [
                        (item, response, record.score, tokenizer)
                        for item, response, record in zip(items, responses, records, strict=True)
                    ]
                    found[task.name, int(length)] = scored, time.perf_counter() - start
        finally:
            backend.close()
            client.store.close()
    return found


def _load_theirs(checkpoint: Checkpoint, lengths: list[int], arguments: argparse.Namespace) -> Any:
    from lm_eval.models.huggingface import HFLM

    needed = max(lengths) + 512  # the prefix of the answer comes on top of a length
    return HFLM(
        pretrained=str(checkpoint.folder),
        dtype=arguments.dtype,
        device=arguments.device,
        batch_size=arguments.batch_size,
        max_length=max(needed, checkpoint.max_positions or 0),
    )


def _theirs(
    model: Any, checkpoint: Checkpoint, task: str, length: int, num_items: int, data_dir: Path | None
) -> list[dict[str, Any]]:
    import lm_eval
    import lm_eval.tasks
    from lm_eval.tasks.ruler import prepare_niah

    sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)  # its random numbers go on from call to call
    if data_dir is not None:
        prepare_niah.datasets = SimpleNamespace(load_dataset=lambda *_, **__: ruler._essays(task, data_dir))
    metadata = {"pretrained": str(checkpoint.folder), "max_seq_lengths": [length]}
    folder = Path(lm_eval.tasks.__file__).parent / "ruler"
    manager = lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=str(folder), metadata=metadata
    )  # one folder: the index of all takes 7 s
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=manager,
        metadata=metadata,
        limit=num_items,
        bootstrap_iters=0,
        log_samples=True,
    )
    return results["samples"][task]


def _compare(
    mine: list[Any], samples: list[dict[str, Any]], length: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    theirs = {_digest(sample["arguments"][0][0]): sample for sample in samples}
    assert len(theirs) == len(samples) == len(mine), (len(samples), len(mine))
    differences, scores = [], []
    same_scores = same_texts = 0
    for item, response, score, tokenizer in mine:
        sample = theirs[_digest(item.prompt)]  # another prompt is an error, not a difference
        text, their_score = sample["resps"][0][0], sample[str(length)]
        scores.append((score, their_score))
        same_scores += score == their_score
        same_texts += response.text == text
        if score != their_score or response.text != text:
            differences.append(
                {
                    "doc_id": sample["doc_id"],
                    "scores": [score, their_score],
                    "ours": response.text,
                    "theirs": text,
                    **_parting(response, text, tokenizer),
                }
            )
    return {
        "items": len(mine),
        "same_scores": same_scores,
        "same_texts": same_texts,
        "accuracy_ours": sum(one for one, _ in scores) / len(scores),
        "accuracy_theirs": sum(other for _, other in scores) / len(scores),
    }, differences


def _parting(response: Any, text: str, tokenizer: Any) -> dict[str, Any]:
    """Say where two texts part, and the margin of our token there (None: one ends where the other goes on)."""
    pairs = zip(response.text, text, strict=False)
    character = next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(response.text), len(text))
    )
    for count in range(1, len(response.tokens) + 1):
        if len(tokenizer.decode(response.tokens[:count], skip_special_tokens=True)) > character:
            return {"character": character, "margin": round(response.margins[count - 1], 5)}
    last = response.margins[-1] if response.finish_reason == "stop" and response.margins else None
    return {"character": character, "margin": last}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
