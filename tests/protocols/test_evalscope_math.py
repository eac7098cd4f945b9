"""One long-lived scoring child gives what EvalScope's own fork for each call gives."""

import os

import pytest

from distill_eval.protocols.evalscope_engine import import_evalscope
from distill_eval.protocols.evalscope_math import one_math_child

# Python 3.12 warns of what EvalScope does on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

OUTPUTS = (
    "\\boxed{18}", "", "\\boxed{}", "$\\frac{36}{2}$", "18%", "It costs $18.00.", "x = 18", "\\boxed{1,8}",
    "so \\boxed{\\text{18 apples}}", "eighteen", "17 + 1 = 18", "1.8e1", "\\boxed{18", "$\\sqrt{324}$ or 3",
    "\\boxed{9^{9^{9^{9}}}}",
)  # fmt: skip


@pytest.fixture(scope="module")
def score():
    import_evalscope()
    import evalscope.metrics  # noqa: F401
    from evalscope.api.registry import get_metric
    from evalscope.metrics.math import parser

    metric = get_metric("accuracy")(numeric=True)

    def said(call):
        try:
            return call()
        except Exception as error:
            return type(error).__name__, str(error)

    def score(output):
        extracted = said(lambda: parser.extract_answer(output))
        return extracted, said(lambda: metric(prediction=extracted, reference="18"))

    return score


def test_scores_and_errors_are_the_same(score, monkeypatch) -> None:
    from evalscope.metrics.math import parser

    monkeypatch.setattr(parser, "MATH_DEADLINE_S", 2)
    original = parser.run_isolated
    one_by_one = [score(output) for output in OUTPUTS]
    with one_math_child():
        assert parser.run_isolated is not original
        together = [score(output) for output in OUTPUTS]
        # The child was killed at the last deadline; there is a new one.
        assert score("\\boxed{18}") == ("18", 1.0)
    assert parser.run_isolated is original
    assert together == one_by_one
    assert "deadline" in str(together[-1])


def test_calls_share_a_child_which_ends_with_the_block(score) -> None:
    from evalscope.metrics.math import parser

    with one_math_child():
        child = parser.run_isolated.__self__
        score("1")
        first = child._process.pid
        score("2")
        assert child._process.pid == first
        os.kill(first, 9)
        assert score("3")[0] == ("MathEvaluationError", "extract_answer: scoring process exited with code -9")
        score("4")
        second = child._process.pid
        assert second != first
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_errors_and_warnings_come_back(score) -> None:
    from evalscope.metrics.math import parser

    with one_math_child():
        with pytest.warns(DeprecationWarning, match="use_last_number"):
            parser.extract_answer("1", use_last_number=False)
        with pytest.raises(Exception, match="must be output or fragment"):
            parser.compare_answers("1", "1", prediction_mode="other")
