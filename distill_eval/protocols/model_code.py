"""Code that a model wrote: how it may be run, and lm-eval's ``code_eval`` metric run that way."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from distill_eval.errors import SandboxError, TaskError
from distill_eval.protocols import sandbox
from distill_eval.schema.run import RunOptions

TIMEOUT_S = 3.0  # code_eval's own


def code_method(task: str, options: RunOptions) -> str:
    """Return how the code of ``task`` is run (see ``sandbox.run_python``); SandboxError where it may not be."""
    method = sandbox.sandbox_available()
    if method is None and not options.allow_unsandboxed_code:
        raise SandboxError(
            f"task '{task}' runs code that the model wrote, and there is no sandbox here: install "
            f"bubblewrap, allow user namespaces, or accept the risk with --allow-unsandboxed-code"
        )
    return method or sandbox.UNSANDBOXED


class CodeEval:
    """Stands in for the metric that lm-eval fetches from the hub and that runs code in this process.

    ``method``: how to run it; without one nothing runs. ``results``: (candidate, test) -> how it ended.
    """

    def __init__(self) -> None:
        self.method: str | None = None
        self.results: dict[tuple[str, str], sandbox.CodeResult] = {}

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Iterable[int] = (1,)
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return ``pass@1``: the share of candidates that pass their test, averaged over problems."""
        if self.method is None:
            # lm-eval's files for these tasks try the metric when they are imported.
            return {}, {}
        if list(k) != [1]:
            raise TaskError(f"code is scored by pass@1 only, got k = {list(k)}")
        shares = []
        for test, candidates in zip(references, predictions, strict=True):
            ends = [self._run(candidate, test) for candidate in candidates]
            shares.append(sum(end.status == "passed" for end in ends) / len(ends))
        return {"pass@1": sum(shares) / len(shares)}, {}

    def _run(self, candidate: str, test: str) -> sandbox.CodeResult:
        assert self.method is not None
        key = (candidate, test)
        if key not in self.results:
            try:
                self.results[key] = sandbox.run_python(
                    f"{candidate}\n{test}", timeout_s=TIMEOUT_S, method=self.method
                )
            except OSError as error:
                raise SandboxError(
                    f"the sandbox ({self.method}) cannot be entered any more: {error}"
                ) from error
        return self.results[key]


CODE_EVAL = CodeEval()


@contextmanager
def code_run_by(method: str | None) -> Iterator[CodeEval]:
    """Let lm-eval's code tasks run code by ``method`` for the length of the block; None: nothing may run."""
    CODE_EVAL.method, CODE_EVAL.results = method, {}
    try:
        yield CODE_EVAL
    finally:
        CODE_EVAL.method, CODE_EVAL.results = None, {}


@contextmanager
def sandboxed_code_eval() -> Iterator[None]:
    """Give lm-eval's task files, while they are imported, the stand-in for ``code_eval``; no network then."""
    import evaluate

    load = evaluate.load
    evaluate.load = lambda path, *args, **kwargs: (
        CODE_EVAL if path == "code_eval" else load(path, *args, **kwargs)
    )
    try:
        yield
    finally:
        evaluate.load = load


def use_sandbox(config: Mapping[str, Any], where: str) -> None:
    """See to it that a task which runs code does so through the stand-in; TaskError if it has another way."""
    import evaluate

    for metric in config.get("metric_list") or ():
        names = getattr(metric["metric"], "__globals__", {})
        # The file may have been imported before, by somebody else and with the real metric.
        found = [
            name for name, value in names.items() if isinstance(value, CodeEval | evaluate.EvaluationModule)
        ]
        if not found:
            raise TaskError(f"{where} runs code in a way of its own, which cannot be put into a sandbox")
        names.update(dict.fromkeys(found, CODE_EVAL))
