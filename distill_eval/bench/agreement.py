"""Do two engines say the same, but for what rounding explains?"""

from collections.abc import Callable, Sequence

from distill_eval.bench.base import Generated, Scored
from distill_eval.bench.workload import Question
from distill_eval.schema.bench import ScoreAgreement, TextAgreement

# The most that rounding puts between two log-likelihoods of the same tokens. In float32 a sum over a whole choice
# stays below the first figure. In the halves logits carry 8 or 11 bits, so that each token may be off by so much (what
# the parity probes allow too).
FLOAT32_CHOICE = 1e-3
TOKEN = {"float16": 3e-2, "bfloat16": 1.5e-1}
# A token's lead over the runner-up below which rounding may turn the two round: both may be off.
NEAR_TIE = {"float32": 1e-4, "float16": 6e-2, "bfloat16": 3e-1}

Continue = Callable[[Sequence[int], int], Generated]
"""The first engine's greedy continuation of a context by so many tokens, with margins."""


def allowed(dtype: str, num_tokens: int) -> float:
    """Return how far apart rounding may put the log-likelihood of ``num_tokens`` tokens."""
    return FLOAT32_CHOICE if dtype not in TOKEN else TOKEN[dtype] * num_tokens


def explained(dtype: str) -> str:
    """Say in words what ``allowed`` and near-ties are."""
    by = f"{TOKEN[dtype]:g} a token" if dtype in TOKEN else f"{FLOAT32_CHOICE:g} a choice"
    return (
        f"agreement: rounding in {dtype} may explain {by} of log-likelihood, another choice where the best two lie that"
        " close, and another token where the first engine's lead is below"
        f" {NEAR_TIE.get(dtype, NEAR_TIE['float32']):g} (ties); nothing else is let pass"
    )


def compare_scores(
    questions: Sequence[Question],
    theirs: Sequence[Scored],
    first: Sequence[Scored],
    dtype: str,
    go_on: Continue | None = None,
) -> ScoreAgreement:
    """Hold ``theirs`` against ``first``, both in the order of the questions' requests.

    ``go_on`` tells near-ties among differing greedy flags; without it each of them counts as clear.
    """
    differences, beyond, other, greedy, clear_greedy = [], 0, 0, 0, 0
    for one, reference in zip(theirs, first, strict=True):
        if _input(one) != _input(reference):
            other += 1
            continue
        difference = abs(one.logprob - reference.logprob)
        differences.append(difference)
        # Written so that NaN is beyond.
        beyond += not difference <= allowed(dtype, one.num_continuation)
        if one.is_greedy != reference.is_greedy:
            greedy += 1
            clear_greedy += not _greedy_near_tie(reference, dtype, go_on)
    choices, clear_choices, right = 0, 0, {}
    start = 0
    for question in questions:
        end = start + len(question.instances)
        ours, mine = first[start:end], theirs[start:end]
        start = end
        counts = right.setdefault(question.task, [0, 0, 0])
        counts[0] += 1
        if not question.lengths:
            counts[1] += mine[0].is_greedy
            counts[2] += ours[0].is_greedy
            continue
        picks = [_best(answers, question.lengths) for answers in (mine, ours)]
        counts[1] += picks[0] in question.gold
        counts[2] += picks[1] in question.gold
        if picks[0] != picks[1]:
            choices += 1
            clear_choices += not _choice_near_tie(ours, question.lengths, picks, dtype)
    return ScoreAgreement(
        num_requests=len(first),
        num_other_inputs=other,
        max_difference=max(differences, default=0.0),
        mean_difference=sum(differences) / max(1, len(differences)),
        num_beyond=beyond,
        greedy_differences=greedy,
        clear_greedy_differences=clear_greedy,
        choice_differences=choices,
        clear_choice_differences=clear_choices,
        accuracies={task: (mine / count, ours / count) for task, (count, mine, ours) in right.items()},
    )


def compare_texts(theirs: Sequence[Generated], first: Sequence[Generated], dtype: str) -> TextAgreement:
    """Hold ``theirs`` against ``first``, both in the order of the chats; ``first`` has margins."""
    other, equal, margins = 0, 0, []
    for one, reference in zip(theirs, first, strict=True):
        if one.prompt != reference.prompt:
            other += 1
            continue
        place = first_difference(one.tokens, reference.tokens)
        if place is None:
            equal += 1
        else:
            # One text may simply be longer: then nothing decided there, and that is no near-tie.
            margins.append(reference.margins[place] if place < len(reference.margins) else float("inf"))
    near = sum(margin < NEAR_TIE[dtype] for margin in margins)
    return TextAgreement(
        num_texts=len(first),
        num_other_inputs=other,
        num_equal=equal,
        num_near_ties=near,
        num_clear=len(margins) - near,
        margins=tuple(sorted(margins, reverse=True)),
    )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the first position at which two texts differ, None when they are equal."""
    for place, (token, another) in enumerate(zip(one, other, strict=False)):
        if token != another:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def _input(answer: Scored) -> tuple[tuple[int, ...], int]:
    return answer.tokens, answer.num_continuation


def _best(answers: Sequence[Scored], lengths: Sequence[float]) -> int:
    # lm-eval appends requests that are no choices (unconditional ones).
    return max(range(len(lengths)), key=lambda index: answers[index].logprob / lengths[index])


def _choice_near_tie(
    answers: Sequence[Scored], lengths: Sequence[float], picks: Sequence[int], dtype: str
) -> bool:
    scores = [answers[pick].logprob / lengths[pick] for pick in picks]
    room = [allowed(dtype, answers[pick].num_continuation) / lengths[pick] for pick in picks]
    return abs(scores[0] - scores[1]) <= sum(room)


def _greedy_near_tie(reference: Scored, dtype: str, go_on: Continue | None) -> bool:
    if go_on is None:
        return False
    count = reference.num_continuation
    said = go_on(reference.tokens[:-count], count)
    for token, margin, wanted in zip(said.tokens, said.margins, reference.tokens[-count:], strict=False):
        if margin < NEAR_TIE[dtype]:
            return True
        if token != wanted:
            break
    return False
