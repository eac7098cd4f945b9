"""The table of ``bench-backends``: one row an engine, speed and agreement of both jobs."""

from distill_eval.render.text import one_line
from distill_eval.schema.bench import GENERATE, SCORE, BenchResult, EngineResult, Speed
from distill_eval.schema.tables import Column, Table

_JOBS = {SCORE: ("log-likelihood", "requests/s"), GENERATE: ("generation", "tokens/s")}


def bench_table(result: BenchResult) -> Table:
    """Return the table of every engine that ran; what did not, and what engines disagree in, is in its notes."""
    jobs = [job for job in _JOBS if any(job in engine.speeds for engine in result.engines)]
    on_gpu = result.device != "cpu"
    columns = [Column("engine", "left")]
    for job in jobs:
        group, unit = _JOBS[job]
        names = [unit, "time", *(["max |Δ|"] if job == SCORE else []), "differ"]
        names += ["GiB"] if on_gpu else []
        columns += [Column(name, group=group) for name in names]
    rows = []
    for engine in result.engines:
        if engine.speeds:
            cells = [cell for job in jobs for cell in _cells(result, engine, job, on_gpu)]
            rows.append((engine.title, *cells))
    return Table(
        name="bench",
        title=f"{result.checkpoint} in {result.dtype} on {result.machine}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(_notes(result, jobs, on_gpu)),
    )


def disagreements(result: BenchResult) -> list[str]:
    """Say of each engine that does not agree with the first how it differs beyond rounding."""
    found = []
    first = result.engines[0].title if result.engines else ""
    for engine in result.engines:
        parts = []
        if (scores := engine.scores) is not None and not scores.agreed:
            counts = {
                "requests with other token ids": scores.num_other_inputs,
                "log-likelihoods": scores.num_beyond,
                "greedy flags": scores.clear_greedy_differences,
                "chosen answers": scores.clear_choice_differences,
            }
            parts += [f"{count} {what}" for what, count in counts.items() if count]
        if (texts := engine.texts) is not None and not texts.agreed:
            counts = {"prompts with other token ids": texts.num_other_inputs, "texts": texts.num_clear}
            parts += [f"{count} {what}" for what, count in counts.items() if count]
        if parts:
            found.append(f"{engine.title} differs from the {first} by more than rounding: {', '.join(parts)}")
    return found


def _cells(result: BenchResult, engine: EngineResult, job: str, on_gpu: bool) -> list[str]:
    columns = 3 + (job == SCORE) + on_gpu
    speed = engine.speeds.get(job)
    if speed is None:
        return [""] * columns
    cells = [_rate(speed.per_second), f"{result.relative_time(engine, job):.2f}x"]
    if job == SCORE:
        scores = engine.scores
        cells.append("" if scores is None else f"{scores.max_difference:.1e}")
        cells.append(
            ""
            if scores is None
            else _differ(
                scores.greedy_differences + scores.choice_differences,
                scores.clear_greedy_differences + scores.clear_choice_differences,
            )
        )
    else:
        texts = engine.texts
        cells.append("" if texts is None else _differ(texts.num_near_ties + texts.num_clear, texts.num_clear))
    if on_gpu:
        cells.append("" if speed.working_gib is None else f"{speed.working_gib:.1f}")
    return cells


def _notes(result: BenchResult, jobs: list[str], on_gpu: bool) -> list[str]:
    requests = f"{result.num_score_requests} log-likelihood requests"
    texts = f"{result.num_texts} greedy texts of at most {result.max_new_tokens} tokens"
    notes = [
        f"{result.num_items} items of {', '.join(result.tasks)}: "
        + ", ".join([requests] * bool(result.num_score_requests) + [texts] * bool(result.num_texts)),
        "time: relative to the first engine; tokenising counts, loading does not; differ: greedy flags and chosen"
        " answers, or texts (of which near-ties)"
        + ("; GiB: allocated during the work, weights not counted" if on_gpu else ""),
    ]
    for job in jobs:
        timed = [
            f"{engine.name}{_batch(engine.speeds[job])}"
            f" {', '.join(f'{second:.2f}' for second in engine.speeds[job].seconds)}"
            for engine in result.engines
            if job in engine.speeds
        ]
        notes.append(f"{_JOBS[job][0]}, seconds of each run: {'; '.join(timed)}")
    for engine in result.engines:
        for speed in engine.speeds.values():
            if speed.searched:
                tried = ", ".join(f"{size}: {second:.2f} s" for size, second in speed.searched.items())
                notes.append(f"{engine.name}, batch size chosen on {speed.search_size} items: {tried}")
    versions = dict.fromkeys(engine.version for engine in result.engines if engine.version)
    versions[f"torch {result.stamp['versions']['torch']}"] = None
    notes.append(f"versions: {', '.join(versions)}")
    for engine in result.engines:
        for job, reason in engine.not_run.items():
            what = f" ({_JOBS[job][0]})" if job else ""
            notes.append(f"not run: {engine.title}{what}: {one_line(reason)}")
    return [*notes, result.explained]


def _differ(count: int, clear: int) -> str:
    return f"{count} ({count - clear})" if count else "0"


def _batch(speed: Speed) -> str:
    return f" (batches of {speed.batch_size})" if speed.batch_size else ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
