"""The one sentence a reader takes away, the same in every output."""

import math

from distill_eval.render.rows import Row, average_rows, candidates, task_rows, task_titles
from distill_eval.render.text import interval, join_names, number, one_line
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import EMPTY, LOOP, RECOVERABLE, REFUSED, TRUNCATED, UNPARSED, Identity
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Estimate, Results

_CAUSES = {
    "truncation": TRUNCATED,
    "repetition loops": LOOP,
    "wrong format": RECOVERABLE,
    "unreadable answers": UNPARSED,
    "empty answers": EMPTY,
    "refusals": REFUSED,
}
"""Ways to fail other than a wrong answer, as the sentence calls them, and the term of the gap's identity they are."""
_LEAST_SHARE = 0.05  # of the gap, for a cause to be named


def verdict(results: Results, explanation: Explanation | None = None) -> str:
    """Return one plain sentence with numbers for each candidate, joined by spaces."""
    return " ".join(sentence for _, sentence in verdicts(results, explanation))


def verdicts(results: Results, explanation: Explanation | None = None) -> tuple[tuple[str, str], ...]:
    """Return (candidate, sentence) pairs; shares are named only where the gap's interval excludes 0.

    With ``explanation``, the sentence says how much of the gap is not wrong answers but how generations end or look.
    """
    pairs = []
    for candidate in candidates(results):
        if candidate is None:
            label = one_line(results.checkpoints[0]) if results.checkpoints else "no checkpoint"
            pairs.append((label, f"{label} was evaluated alone: there is nothing to compare it with."))
        else:
            pairs.append((candidate, _sentence(results, candidate, explanation)))
    return tuple(pairs)


def headline(results: Results, candidate: str) -> Row | None:
    """Return the row the verdict rests on: the first average with a gap; a gap on the floor is no headline."""
    return next((row for row in average_rows(results, candidate) if row.gap), None)


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the 95% interval lies wholly on one side of 0."""
    return estimate.low > 0 or estimate.high < 0


def headline_identities(results: Results, explanation: Explanation, candidate: str) -> list[Identity]:
    """Return what the gap of each of the headline's tasks is made of, candidate minus reference.

    Empty unless all of them have that, of the same items as the gap.
    """
    row = headline(results, candidate)
    gaps = {
        task.task: gap.estimate for task in results.tasks for gap in task.gaps if gap.candidate == candidate
    }
    found: dict[str, Identity] = {
        task.task: part.identity
        for task in explanation.failures
        for part in task.differences
        if part.candidate == candidate and part.identity
    }
    tasks = (row.tasks if row else None) or ()
    if not all(task in gaps and task in found and _same(gaps[task], found[task].gap) for task in tasks):
        return []
    return [found[task] for task in tasks]


def cause_shares(results: Results, explanation: Explanation, candidate: str) -> dict[str, float]:
    """Return the shares of the headline's gap (fractions of 1), largest first, of causes that are worth a word.

    From the identities of the headline's tasks, each weighing the same; empty unless the candidate is worse than
    log-likelihood says and the gap's interval excludes 0.
    """
    row = headline(results, candidate)
    identities = headline_identities(results, explanation, candidate)
    if row is None or row.gap is None or row.gap.low <= 0 or not identities:
        return {}
    whole = sum(identity.gap.value for identity in identities)
    shares = {
        name: sum(identity.terms[term].estimate.value for identity in identities) / whole
        for name, term in _CAUSES.items()
    }
    return {
        name: share
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
        if share >= _LEAST_SHARE
    }


def _same(first: Estimate, second: Estimate) -> bool:
    return first.num_items == second.num_items and math.isclose(first.value, second.value, abs_tol=1e-9)


def _causes(results: Results, explanation: Explanation | None, candidate: str) -> str:
    shares = cause_shares(results, explanation, candidate) if explanation is not None else {}
    if not shares:
        return ""
    whole = sum(shares.values())
    size = (
        f"{whole:.0%} of that gap" if whole <= 1 + 1e-9 else "all of that gap and more"
    )  # its other parts are negative
    return f"; {size} is {join_names(list(shares))}"


def _sentence(results: Results, candidate: str, explanation: Explanation | None) -> str:
    row = headline(results, candidate)
    if row is None or row.gap is None:
        return _without_gap(results, candidate)
    gap, tasks = row.gap, row.tasks or ()
    label, reference = one_line(candidate), one_line(results.checkpoints[0])
    titles = task_titles(results)
    where = (
        f"on average over {len(tasks)} tasks"
        if len(tasks) != 1
        else f"on {titles.get(tasks[0], one_line(tasks[0]))} alone"
    )
    sentence = f"{_standing(label, reference, row)}, {where}: gap {number(gap.value)} pp {interval(gap)}"
    if not excludes_zero(gap):
        return f"{sentence}, an interval that includes 0: these items do not show that the two protocols disagree."
    if gap.value > 0:
        return f"{sentence}{_causes(results, explanation, candidate)}.{_share(row)}"
    return f"{sentence}. Here log-likelihood makes {label} look worse than generation does."


def _standing(label: str, reference: str, row: Row) -> str:
    by_loglikelihood, by_generation = row.deltas.get(LOGLIKELIHOOD), row.deltas.get(GENERATIVE)
    if by_loglikelihood is None or by_generation is None:
        return f"{label} and {reference} differ between the protocols"
    first, second = _points(by_loglikelihood), _points(by_generation)
    if first == "level with":
        return (
            f"{label} is level with {reference} by log-likelihood and {_bare(second)} when it must generate"
        )
    return f"{label} is {first} {reference} by log-likelihood and {_bare(second)} when it must generate"


def _points(delta: Estimate) -> str:
    size = number(abs(delta.value))
    if size == "0.0":
        return "level with"
    return f"{size} pp behind" if delta.value < 0 else f"{size} pp ahead of"


def _bare(standing: str) -> str:
    return {"level with": "level"}.get(standing, standing.removesuffix(" of"))


def _share(row: Row) -> str:
    """How much of the generation loss log-likelihood shows, when that loss is itself beyond doubt."""
    by_loglikelihood, by_generation = row.deltas.get(LOGLIKELIHOOD), row.deltas.get(GENERATIVE)
    if by_loglikelihood is None or by_generation is None or by_generation.high >= 0:
        return ""
    share = by_loglikelihood.value / by_generation.value
    if share <= 0:
        return " Log-likelihood shows none of the loss seen in generation."
    return f" Log-likelihood shows {share:.0%} of the loss seen in generation."


def _without_gap(results: Results, candidate: str) -> str:
    label, reference = one_line(candidate), one_line(results.checkpoints[0])
    rows = task_rows(results, candidate)
    parts = []
    for protocol, name in ((LOGLIKELIHOOD, "by log-likelihood"), (GENERATIVE, "when it must generate")):
        row = next((r for r in average_rows(results, candidate) if protocol in r.deltas), None)
        if row is None:
            continue
        delta = row.deltas[protocol]
        num_tasks = len(row.tasks or ())
        over = f"over {num_tasks} task{'s' if num_tasks != 1 else ''}"
        parts.append(f"{_points(delta)} {reference} {name} {over} (delta {number(delta.value, signed=True)} pp "
                     f"{interval(delta)})")  # fmt: skip
    standing = f"{label} is {' and '.join(parts)}; but" if parts else f"{label} against {reference}:"
    with_gap = [row for row in rows if row.gap]
    if not with_gap:
        why = "no task was measured under both protocols"
    elif all(row.floor for row in with_gap):
        why = f"{reference} does not beat chance under both protocols on any task"
    else:
        why = "no average covers a task with both protocols"
    return f"{standing} no gap can be averaged: {why}."
