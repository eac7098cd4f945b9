"""Records as EvalScope's work folder: configs, predictions, reviews and reports, written by its own models."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from distill_eval.interchange.carried import CARRIED, carry
from distill_eval.items import NO_SUBSET
from distill_eval.schema.records import UNKNOWN_TOKENS, Record

_STOP_REASONS = {"stop": "stop", "length": "max_tokens"}


def build(records: Sequence[Record], model: str, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of one checkpoint's work folder by name.

    ``facts``: the run's provenance, with its tasks by name and the checkpoint's own entry. A Record has the
    prompt as it was sent, so a chat is one message, template included. Answers under several seeds become
    EvalScope's repeats.
    """
    from distill_eval.protocols.evalscope_engine import quiet_evalscope

    files: dict[str, bytes] = {}
    benchmarks: dict[str, dict[str, list[Record]]] = {}
    sides: dict[str, Mapping[str, Any]] = {}
    for record in records:
        side = facts["tasks"].get(record.task, {}).get("generative") or {}
        benchmark = side.get("benchmark") or record.task
        # One task of several over a benchmark (ARC) may be another's subset.
        sides[benchmark] = {
            **side,
            "subsets": [*sides.get(benchmark, {}).get("subsets", ()), *side.get("subsets", ())],
        }
        benchmarks.setdefault(benchmark, {}).setdefault(_subset(record, side), []).append(record)
    with quiet_evalscope():
        for benchmark, subsets in benchmarks.items():
            scores = {}
            for subset, mine in subsets.items():
                predictions, reviews, scores[subset] = _lines(mine, model)
                files[f"predictions/{model}/{benchmark}_{subset}.jsonl"] = _jsonl(predictions)
                files[f"reviews/{model}/{benchmark}_{subset}.jsonl"] = _jsonl(reviews)
            report = _report(benchmark, scores, model, sides[benchmark])
            files[f"reports/{model}/{benchmark}.json"] = report.to_json_str().encode()
    files["configs/task_config.yaml"] = _config(records, sides, benchmarks, model, facts)
    return files


def _subset(record: Record, side: Mapping[str, Any]) -> str:
    """Return EvalScope's name of a record's subset: that of the task's only one, else the record's own."""
    subsets = side.get("subsets") or ()
    if len(subsets) == 1:
        return subsets[0]
    return record.metadata.get("evalscope_subset") or record.subset or NO_SUBSET


def _jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(
        json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in rows
    ).encode()


def _lines(records: Sequence[Record], model: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Return predictions, reviews and scores of one subset, as EvalScope's own objects."""
    from evalscope.api.evaluator.cache import ModelResult, ReviewResult
    from evalscope.api.metric import SampleScore

    places: dict[str, int] = {}
    seeds: list[int | None] = []
    for record in records:
        places.setdefault(record.item_key, len(places))
        seeds += [record.seed] if record.seed not in seeds else []
    ordered = sorted(records, key=lambda record: (places[record.item_key], seeds.index(record.seed)))
    predictions, reviews, scores = [], [], []
    for record in ordered:
        place, repeat = places[record.item_key], seeds.index(record.seed)
        index = place * len(seeds) + repeat
        messages, output = _messages(record, model)
        sample = SampleScore(
            score=_score(record),
            sample_id=index,
            group_id=place,
            generation_index=repeat,
            sample_metadata={CARRIED: carry(record)},
        )
        scores.append(sample)
        target = [record.target] if record.target.strip() else None
        reviews.append(ReviewResult(index=index, target=target, messages=messages, sample_score=sample))
        predictions.append(
            ModelResult(index=index, model=model, model_output=output, messages=messages, metadata={})
        )
    return predictions, reviews, scores


def _messages(record: Record, model: str) -> tuple[list[Any], Any]:
    from evalscope.api.messages import ChatMessageAssistant, ChatMessageUser
    from evalscope.api.model import ChatCompletionChoice, ModelOutput, ModelUsage

    # Equal records give equal files: EvalScope would draw these.
    name = hashlib.sha256(f"{record.item_key} {record.seed}".encode()).hexdigest()[:8]
    asked = ChatMessageUser(id=f"{name}-u", content=record.prompt)
    answer = ChatMessageAssistant(id=f"{name}-a", content=record.output, model=model, source="generate")
    usage = None
    if UNKNOWN_TOKENS not in (record.num_prompt_tokens, record.num_output_tokens):
        usage = ModelUsage(
            input_tokens=record.num_prompt_tokens,
            output_tokens=record.num_output_tokens,
            total_tokens=record.num_prompt_tokens + record.num_output_tokens,
        )
    reason: Any = _STOP_REASONS.get(record.finish_reason, "unknown")
    choice = ChatCompletionChoice(message=answer, stop_reason=reason)
    return [asked, answer], ModelOutput(model=model, choices=[choice], usage=usage)


def _score(record: Record) -> Any:
    from evalscope.api.metric import Score
    from evalscope.constants import ScoreStatus

    return Score(
        value=dict(record.scores),
        status=ScoreStatus.SUCCESS if record.scores else ScoreStatus.EXCLUDED,
        extracted_prediction=record.extracted,
        prediction=record.output,
        explanation=record.metadata.get("unscored"),
    )


def _report(benchmark: str, scores: Mapping[str, Sequence[Any]], model: str, side: Mapping[str, Any]) -> Any:
    """Let EvalScope aggregate the scores and make its report; own tasks by the mean of their metric."""
    from evalscope.api.metric import AggScore
    from evalscope.api.registry import BENCHMARK_REGISTRY, get_benchmark
    from evalscope.report.generator import ReportGenerator

    from distill_eval.protocols.evalscope_engine import task_config

    usable = {subset: [s for s in found if s.score.value] for subset, found in scores.items()}
    if benchmark in BENCHMARK_REGISTRY:
        adapter: Any = get_benchmark(
            benchmark, task_config(benchmark, {}, model="none", eval_type="mock_llm")
        )
        aggregated = {
            s: adapter.aggregate_scores(copy.deepcopy(found)) for s, found in usable.items() if found
        }
    else:
        adapter = SimpleNamespace(
            name=benchmark, pretty_name=benchmark, description="", category_map={}, primary_metric=None
        )
        metric = side.get("metric", "")
        values = {
            s: [x.score.value[metric] for x in found if metric in x.score.value]
            for s, found in usable.items()
        }
        aggregated = {
            subset: [AggScore(metric_name=metric, aggregation="mean", score=sum(v) / len(v), num=len(v))]
            for subset, v in values.items()
            if v
        }
    return ReportGenerator.generate_report(aggregated, model, adapter)


def _config(
    records: Sequence[Record],
    sides: Mapping[str, Mapping[str, Any]],
    benchmarks: Mapping[str, Mapping[str, Any]],
    model: str,
    facts: Mapping[str, Any],
) -> bytes:
    import yaml

    options = facts.get("options", {})
    sampling = options.get("sampling") or {}
    seeds = sorted({record.seed for record in records if record.seed is not None})
    config = {
        "model": facts["checkpoint"].get("name") or model,
        "model_id": model,
        "eval_type": "distill-eval",
        "evalscope_version": facts.get("versions", {}).get("evalscope"),
        "datasets": list(benchmarks),
        "dataset_args": {
            name: {"few_shot_num": sides[name].get("num_fewshot", 0), "subset_list": list(subsets)}
            for name, subsets in benchmarks.items()
        },
        "generation_config": {
            **{name: sampling[name] for name in ("temperature", "top_p", "top_k") if name in sampling},
            **({"max_tokens": options["max_new_tokens"]} if "max_new_tokens" in options else {}),
            **({"seed": seeds[0]} if seeds else {}),
        },
        "limit": options.get("limit"),
        "repeats": max(len(seeds), 1),
    }
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
