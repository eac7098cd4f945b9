"""How fast each engine is on this machine, on the same items, and whether all of them say the same."""

from collections.abc import Sequence
from typing import Any

from distill_eval.bench import agreement
from distill_eval.bench.base import Engine, Generated
from distill_eval.bench.engines import engine_names, make_engine, version, why_missing
from distill_eval.bench.own import OwnBackend
from distill_eval.bench.references import LmEvalHF
from distill_eval.bench.timing import Report, race
from distill_eval.bench.workload import Workload, load_workload
from distill_eval.checkpoints import load_tokenizer
from distill_eval.errors import OptionError, UserError, did_you_mean
from distill_eval.provenance import hardware, stamp
from distill_eval.runs import plain
from distill_eval.schema.bench import GENERATE, SCORE, BenchResult, EngineResult, Speed
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest
from distill_eval.schema.run import RunOptions

__all__ = ["engine_names", "figures", "load_workload", "run_bench"]


def run_bench(
    checkpoint: Checkpoint,
    workload: Workload,
    options: RunOptions,
    *,
    engines: Sequence[str] = (),
    repeats: int = 3,
    search_items: int = 24,
    report: Report = lambda *_: None,
) -> BenchResult:
    """Time ``engines`` (none: all there are) on ``workload`` and hold their answers against the first one's.

    The first engine must be one of this project's backends. ``options`` says device, dtype, attention and new tokens;
    generation is greedy. An engine that is not here or fails gets a row that says so; the first one's failure is
    raised, as are OptionError for unknown names and what ``open_backend`` raises.
    """
    names = tuple(dict.fromkeys(engines)) or engine_names()
    for name in names:
        if name not in engine_names():
            raise OptionError(f"--backend: unknown engine '{name}'{did_you_mean(name, engine_names())}")
    session = _Session(checkpoint, workload, options, names, repeats, search_items, report)
    try:
        session.run()
    finally:
        session.close()
    return session.result()


def figures(result: BenchResult) -> dict[str, Any]:
    """Return ``result`` as JSON holds it, with each engine's median, speed and time relative to the first one's."""
    shown = plain(result)
    for engine, row in zip(result.engines, shown["engines"], strict=True):
        row["agreed"] = engine.agreed
        for job, speed in engine.speeds.items():
            row["speeds"][job] |= {
                "median_s": speed.median_s,
                "per_second": speed.per_second,
                "relative_time": result.relative_time(engine, job),
            }
    return {**shown, "agreed": result.agreed}


class _Session:
    """The engines of one call and what is known of each so far."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        workload: Workload,
        options: RunOptions,
        names: Sequence[str],
        repeats: int,
        search_items: int,
        report: Report,
    ) -> None:
        import torch

        from distill_eval.backends.transformers.model import choose_device, choose_dtype

        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.dtype, self.device, checkpoint)
        self._checkpoint, self._workload, self._options = checkpoint, workload, options
        self._repeats, self._search_items, self._report = repeats, search_items, report
        self._threads = torch.get_num_threads()
        self._names = names
        self._not_run: dict[str, dict[str, str]] = {name: {} for name in names}
        self._speeds: dict[str, dict[str, Speed]] = {name: {} for name in names}
        self._answers: dict[str, dict[str, Sequence[Any]]] = {name: {} for name in names}
        self._agreed: dict[str, dict[str, Any]] = {name: {} for name in names}
        tokenizer = load_tokenizer(checkpoint)
        self._engines: dict[str, Engine] = {}
        for name in names:
            missing = why_missing(name)
            if not missing:
                try:
                    self._engines[name] = make_engine(
                        name, checkpoint, tokenizer, options, self.device, self.dtype
                    )
                except UserError as error:
                    if not self._engines:
                        raise
                    missing = str(error)
            if missing:
                self._not_run[name][""] = missing
        first = next(iter(self._engines.values()), None)
        if not isinstance(first, OwnBackend):
            raise OptionError(
                "--backend: the first engine must be one of this project's backends: the others are held against"
                " it; begin with transformers"
            )
        self._first = first

    def run(self) -> None:
        jobs = [SCORE] if self._workload.questions else []
        jobs += [GENERATE] if self._workload.chats else []
        together = [engine for engine in self._engines.values() if not engine.alone or engine is self._first]
        for job in jobs:
            self._race(together, job)
            self._compare(together, job)
            for engine in together:
                if engine is not self._first:
                    engine.close()
        for engine in self._engines.values():
            if engine not in together:
                self._first.close()
                for job in jobs:
                    self._race([engine], job)
                engine.close()
                for job in jobs:
                    self._compare([engine], job)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()

    def result(self) -> BenchResult:
        workload = self._workload
        rows = []
        for name in self._names:
            engine, agreed = self._engines.get(name), self._agreed[name]
            rows.append(
                EngineResult(
                    name=name,
                    title=engine.title if engine else name,
                    version=version(engine.package) if engine else "",
                    speeds=self._speeds[name],
                    scores=agreed.get(SCORE),
                    texts=agreed.get(GENERATE),
                    not_run=self._not_run[name],
                )
            )
        return BenchResult(
            checkpoint=self._checkpoint.label,
            machine=self._machine(),
            device=self.device,
            dtype=self.dtype,
            tasks=tuple(
                dict.fromkeys(
                    [question.task for question in workload.questions]
                    + [loaded.task.name for loaded, _ in workload.chats]
                )
            ),
            num_items=workload.num_items,
            num_score_requests=len(workload.instances),
            num_texts=len(workload.chats),
            max_new_tokens=self._options.max_new_tokens,
            engines=tuple(rows),
            explained=agreement.explained(self.dtype),
            stamp=stamp(),
        )

    def _race(self, engines: Sequence[Engine], job: str) -> None:
        def on_failure(engine: Engine, error: Exception) -> None:
            if engine is self._first:
                raise error
            self._not_run[engine.name][job] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

        found = race(
            engines,
            job,
            self._workload,
            repeats=self._repeats,
            search_items=self._search_items,
            report=self._report,
            on_failure=on_failure,
        )
        for engine in engines:
            if engine.name not in found:
                continue
            speed, answers = found[engine.name]
            self._speeds[engine.name][job] = speed
            if job == SCORE and isinstance(engine, LmEvalHF) and self.dtype != "float32":
                # Its speed is that of its defaults; its rounding of sums to the model's dtype is not compared.
                engine.score_in_float32(self._workload)
                answers = engine.answers(job)
            self._answers[engine.name][job] = answers

    def _compare(self, engines: Sequence[Engine], job: str) -> None:
        reference = self._answers[self._first.name][job]
        for engine in engines:
            answers = self._answers[engine.name].get(job)
            if answers is None or engine is self._first:
                continue
            self._agreed[engine.name][job] = (
                agreement.compare_scores(
                    self._workload.questions, answers, reference, self.dtype, self._go_on
                )
                if job == SCORE
                else agreement.compare_texts(answers, reference, self.dtype)
            )

    def _go_on(self, context: Sequence[int], count: int) -> Generated:
        request = GenerateRequest(tuple(context), count, GREEDY)
        [(_, response)] = self._first.backend.generate([request])
        return Generated(request.prompt, response.tokens, response.margins)

    def _machine(self) -> str:
        import torch

        facts = hardware()
        where = f"{facts['processor']}, {self._threads} of {facts['cores']} cores"
        if self.device != "cpu":
            where = f"{torch.cuda.get_device_name(self.device)}, {where}"
        return f"{where}, {facts['memory_gib']} GiB" if "memory_gib" in facts else where
