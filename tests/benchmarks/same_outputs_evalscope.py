"""Do our batches and EvalScope's own local backend say the same, and score the same?

    python -m tests.benchmarks.same_outputs_evalscope CHECKPOINT --items 50 --out FILE.json

For each task the same items go twice through EvalScope, greedy, in fp32: once through this project (our client and
backend, EvalScope's scorer), once through EvalScope's local backend (``llm_ckpt``, batch size 1, so that its
padding plays no part). Compared are the prompts' token ids, the new tokens, and EvalScope's scores. Where tokens
differ, the first difference is a near-tie if our margin there (the winner's lead in log-probability) is below 1e-4.

The baseline is EvalScope as installed but for one thing: transformers 5 refuses its message objects in chat
templates, so they are handed over as plain dictionaries.
"""

import argparse
import copy
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from distill_eval import items
from distill_eval.backends import open_backend
from distill_eval.catalog import load_catalog
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.protocols import evalscope_engine as engine
from distill_eval.protocols import generative
from distill_eval.protocols.client import Client
from distill_eval.protocols.evalscope_scoring import read_reviews
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore

TASKS = "arc_challenge,gsm8k,ifeval,mmlu_redux"
NEAR_TIE = 1e-4


@dataclass
class Baseline:
    """What EvalScope's own backend did: item key -> prompt ids, new ids, scores; and the seconds it took."""

    prompts: dict[str, tuple[int, ...]]
    tokens: dict[str, tuple[int, ...]]
    scores: dict[str, dict[str, float]]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data_dir = resolve_data_dir(None)
    checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=default_cache_dir())
    if data_dir is not None:
        go_offline(data_dir)
    report: dict[str, Any] = {}
    for name in arguments.tasks.split(","):
        report[name] = compare(load_catalog().tasks[name], checkpoint, arguments, data_dir)
        print(json.dumps({name: report[name]}), flush=True)
        if arguments.out:
            write(arguments, checkpoint.label, report)
    print(table(report))


def compare(
    task: Any, checkpoint: Any, arguments: argparse.Namespace, data_dir: Path | None
) -> dict[str, Any]:
    options = RunOptions(
        sampling=GREEDY, max_new_tokens=arguments.max_new_tokens, dtype="float32", device="cpu", seeds=(0,)
    )
    loaded = generative.load(task, data_dir)
    selected = items.select_keys((item.key for item in loaded.items), arguments.items, 0)
    chosen = [item.key for item in loaded.items if item.key in selected]
    tokenizer = load_tokenizer(checkpoint)
    backend = open_backend(options, checkpoint, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        client = Client(checkpoint, tokenizer, backend, ResponseStore(Path(folder) / "responses.sqlite"))
        requests = generative.build_requests(
            loaded, selected, tokenizer, options, 0, max_length=client.max_length
        )
        start = time.perf_counter()
        responses = client.generate(requests, label=task.name)
        ours_s = time.perf_counter() - start
        backend.close()
        records = generative.score(loaded, selected, client, options, 0)
        client.store.close()
    baseline = run_baseline(task, loaded, selected, checkpoint, arguments.max_new_tokens)
    differences = []
    for key, response in zip(chosen, responses, strict=True):
        position = first_difference(response.tokens, baseline.tokens[key])
        if position is not None:
            margin = response.margins[position] if position < len(response.margins) else None
            differences.append({"item": key, "position": position, "margin": margin})
    near_ties = [entry for entry in differences if entry["margin"] is not None and entry["margin"] < NEAR_TIE]
    apart = {entry["item"] for entry in differences}
    same_scores = [record.scores == baseline.scores[record.item_key] for record in records]
    headline = next(name for name in (task.generative.metric, "accuracy", "acc") if name in records[0].scores)
    return {
        "items": len(chosen),
        "equal_prompts": sum(
            tuple(request.prompt) == baseline.prompts[key]
            for key, request in zip(chosen, requests, strict=True)
        ),
        "equal_outputs": len(chosen) - len(differences),
        "near_ties": len(near_ties),
        "other_differences": len(differences) - len(near_ties),
        "differences": differences,
        "equal_scores": sum(same_scores),
        "equal_scores_where_outputs_are": sum(
            same for record, same in zip(records, same_scores, strict=True) if record.item_key not in apart
        ),
        "metric": headline,
        "ours": sum(record.scores[headline] for record in records) / len(records),
        "evalscope": sum(baseline.scores[key][headline] for key in chosen) / len(chosen),
        "new_tokens": sum(len(response.tokens) for response in responses),
        "ours_s": round(ours_s, 1),
        "evalscope_s": round(baseline.seconds, 1),
    }


def run_baseline(
    task: Any, loaded: Any, selected: frozenset, checkpoint: Any, max_new_tokens: int
) -> Baseline:
    """Run EvalScope's local backend over the selected items, keeping the token ids it saw and made."""
    from evalscope.api.registry import BENCHMARK_REGISTRY
    from evalscope.models import modelscope

    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    current: list[str] = []

    class Selecting(BENCHMARK_REGISTRY[task.generative.benchmark].data_adapter):
        """EvalScope's adapter, loading for itself, with keys and a filter."""

        def load(self) -> Any:
            self.counted: Counter[str] = Counter()
            return super().load()

        def load_fewshot_subset(self, *given: Any, **named: Any) -> Any:
            self.examples = True
            try:
                return super().load_fewshot_subset(*given, **named)
            finally:
                self.examples = False

        def record_to_sample(self, record: dict) -> Any:
            raw = copy.deepcopy(record)
            sample = super().record_to_sample(record)
            if not getattr(self, "examples", False):
                subset = sample.subset_key or self.current_subset_name or None
                item = items.identify(raw, task.generative.item_key, task, subset, self.counted)
                sample.metadata = {**sample.metadata, "item_key": item.key}
            return sample

        def sample_filter(self, sample: Any) -> bool:
            return getattr(self, "examples", False) or sample.metadata["item_key"] in selected

        def run_inference(self, model: Any, sample: Any, output_dir: str, **named: Any) -> Any:
            current[:] = [sample.metadata["item_key"]]
            return super().run_inference(model, sample, output_dir, **named)

    plain = modelscope.message_content_to_string

    def as_dictionaries(messages: Any) -> Any:
        return [{"role": message.role, "content": message.content} for message in plain(messages)]

    class Recording(modelscope.ModelScopeAPI):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            generate = self.model.generate

            def recorded(input_ids: Any, **arguments: Any) -> Any:
                made = generate(input_ids=input_ids, **arguments)
                prompt, whole = input_ids[0].tolist(), made.sequences[0].tolist()
                seen[current[0]] = tuple(prompt), tuple(whole[len(prompt) :])
                return made

            self.model.generate = recorded

    meta = copy.deepcopy(loaded.benchmark.meta)
    meta.name, meta.data_adapter = f"baseline-{task.name}", Selecting
    with (
        engine.quiet_evalscope(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(modelscope, "message_content_to_string", as_dictionaries),
    ):
        config = engine.task_config(
            meta.name,
            {},
            model=Recording(
                str(checkpoint.folder), precision="torch.float32", device_map="cpu", enable_thinking=False
            ),
            model_id="baseline",
            eval_type="custom",
            work_dir=folder,
            eval_batch_size=1,
        )
        # A model object loses its generation settings on the way: they are put back where they are read.
        config.generation_config.do_sample = False
        config.generation_config.temperature = config.generation_config.top_p = None
        config.generation_config.top_k = None
        config.generation_config.max_tokens = max_new_tokens
        config.generation_config.batch_size = 1
        start = time.perf_counter()
        with engine.registered(meta):
            reviews = read_reviews(engine.run_task(config))
        seconds = time.perf_counter() - start
    return Baseline(
        prompts={key: prompt for key, (prompt, _) in seen.items()},
        tokens={key: made for key, (_, made) in seen.items()},
        scores={key: review.scores for key, review in reviews.items()},
        seconds=seconds,
    )


def first_difference(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """Return the first position at which two generations differ, None when they are equal."""
    for position, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def write(arguments: argparse.Namespace, label: str, report: dict[str, Any]) -> None:
    """Add this checkpoint's figures to the report file, beside those of others."""
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    versions = {name: importlib.metadata.version(name) for name in ("evalscope", "transformers", "torch")}
    known[label] = {
        "command": " ".join(["python", "-m", "tests.benchmarks.same_outputs_evalscope", *sys.argv[1:]]),
        "settings": "greedy, fp32, CPU; EvalScope's local backend at batch size 1",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS')} threads",
        "versions": versions | {"python": platform.python_version()},
        "near_tie_below": NEAR_TIE,
        "tasks": report,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(known, indent=2) + "\n")


def table(report: dict[str, Any]) -> str:
    columns = ("items", "equal_prompts", "equal_outputs", "near_ties", "other_differences", "equal_scores")
    lines = ["task".ljust(16) + "".join(name.rjust(19) for name in (*columns, "ours", "evalscope"))]
    for name, row in report.items():
        cells = "".join(str(row[column]).rjust(19) for column in columns)
        lines.append(name.ljust(16) + cells + f"{row['ours']:19.4f}{row['evalscope']:19.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
