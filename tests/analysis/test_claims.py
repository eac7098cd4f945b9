"""What the paper's text claims, recomputed; and each kind of claim on a table whose answers are plain."""

from dataclasses import replace
from decimal import Decimal

import pytest

from distill_eval.analysis.claims import check_claims
from distill_eval.analysis.published_numbers import compute, is_tie, round_half_up
from distill_eval.errors import PublishedError
from distill_eval.published import claimed_tables, load_claims
from distill_eval.schema.published import (
    Claim,
    ClaimResult,
    PublishedCell,
    PublishedColumn,
    PublishedRow,
    PublishedTable,
    Quantity,
)

# The claims that the tables do not bear out, with what they give instead.
NOT_REPRODUCED = {
    "t2-knowledge-retained": "85.6 to 89.0",
    "t2-knowledge-and-common-sense-retained": "76.9 to 99.0",
    "t2-hybrid-lead-largest-on-reasoning": "gen_arc_easy 29.1, gen_arc_challenge 20.4",
    "t2-kda-beats-mamba": "21 of 22, -3.0 to 27.2",
    "t5-kd-beats-sft": "56 of 60, -17.4 to 25.0",
    "t5-sft-behind-by": "6.3 to 12.2",
    "t5-sft-lower-perplexity": "4 of 6, -10.8 to 7.0",
    "t5-completion-only-better": "48 of 60, -8.3 to 27.4",
    "t18-completion-only-kd-best-everywhere": "10 of 11 columns",
    "t6-freezing-loglikelihood": "0.52",
    "t6-freezing-range": "1.6 to 7.8",
    "t6-freezing-small-by-loglikelihood": "5 of 6, 0.1 to 1.2",
    "t13-largest-advantages": "gen_ceval -4.03, gen_gsm8k -2.28, gen_ifeval -0.9",
    "t15-decline-at-both-rates": "7 of 8, -2.8 to 1.5",
    "t17-balance-helps-chinese-if-first": "1 of 2, -2.4 to 1.3",
    "t17-balance-helps-chinese-if-second": "1 of 2, -1.3 to 2.4",
    "t17-combined-improves-with-tokens": "8 of 10, -0.8 to 4.6",
    "t20-retained": "54.5",
}

REPRODUCED = {
    "t1-loglikelihood-gap", "t1-generation-gap", "t1-gap-underestimated", "t5-gap-underestimated-on-average",
    "t5-gap-underestimated-everywhere", "t2-bbh-retained", "t2-gsm8k-retained", "t2-humaneval-retained",
    "t2-largest-losses", "t2-hybrid-beats-pure", "t2-hybrid-kda-beats-mamba-models",
    "t2-kda-lead-largest-on-hard-tasks", "t2-order-by-generation", "t19-same-order-by-loglikelihood",
    "t19-compresses-on-average", "t19-hybrid-kda-leads", "t19-pure-mamba-weakest",
    "t3-likelihood-improves-with-tokens", "t3-piqa-mmlu-unchanged", "t3-arc-winogrande-gain", "t4-averages",
    "t4-range-of-averages", "t4-teacher-aligned-data-best", "t4-chinese-instruct-worst", "t4-spread-arc-easy",
    "t4-spread-hellaswag", "t5-kd-beats-sft-on-average", "t5-sft-lower-perplexity-full-sequence",
    "t5-completion-only-better-on-average", "t5-kd-gains-more-from-completion-only",
    "t5-completion-only-slower-language-modelling", "t5-average-stable", "t5-improve-with-tokens",
    "t5-decline-with-tokens", "t5-hellaswag-generation-prefers-kd", "t5-hellaswag-loglikelihood-prefers-sft",
    "t5-loglikelihood-compresses", "t18-repeats-t5", "t6-freezing-generation", "t6-freezing-helps-everywhere",
    "t10-stage-1-needed", "t10-sigmoid-worse", "t10-output-norm-worse", "t10-qkvo-slightly-better",
    "t10-random-worse", "t12-beam-add-best", "t13-averages", "t13-full-vocabulary-best", "t14-drop-ceval",
    "t14-drop-mmlu", "t14-any-weight-hurts-knowledge", "t14-repeats-t6", "t15-ceval-lower-at-small-rate",
    "t15-rate-moves-generation-more", "t15-repeats-t5", "t16-repeats-t5", "t16-decline-stays",
    "t16-unfrozen-reasons-better", "t16-loglikelihood-flat", "t17-repeats-t5", "t17-repeats-t5-lambada",
    "t17-sequential-best-at-750m", "t17-sequential-best-at-1b", "t17-sequential-lead-reasoning-code",
    "t17-instruction-heavy-better-at-1b", "t17-instruction-heavy-better-at-750m", "t17-about-85-percent-best",
    "t17-combined-better-language-modelling", "t20-averages", "t20-behind-teacher", "t20-order",
    "t20-hybrid-mamba-leads", "t20-hybrid-kda-leads", "t21-pure-mamba-fails", "t21-pure-kda-simple-needle",
    "t21-pure-kda-collapses", "t21-hybrids-near-perfect", "t21-hybrid-mamba-ahead-when-short",
    "t21-hybrid-kda-at-64k", "t21-hybrid-kda-ahead-on-hardest",
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, ClaimResult]:
    claims = load_claims()
    return {result.id: result for result in check_claims(claims, claimed_tables(claims))}


def test_every_claim_has_its_label(results: dict[str, ClaimResult]):
    assert {name for name, result in results.items() if result.reproduced} == REPRODUCED
    assert {
        name: result.recomputed for name, result in results.items() if not result.reproduced
    } == NOT_REPRODUCED


def test_what_speaks_against_a_claim_is_named(results: dict[str, ClaimResult]):
    retained = results["t2-knowledge-and-common-sense-retained"]
    assert retained.contrary == ("Hybrid KDA / Teacher (Qwen3-0.6B), gen_hellaswag: 76.9",)
    assert results["t18-completion-only-kd-best-everywhere"].contrary == ("gen_winogrande: KD P+C 500M 50.2",)
    assert results["t5-sft-behind-by"].contrary == (
        "KD P+C 250M - SFT P+C 250M: 6.3",
        "KD C 750M - SFT C 750M: 12.2",
    )


def test_a_tie_is_rounded_half_up_and_said(results: dict[str, ClaimResult]):
    gap = results["t1-loglikelihood-gap"]
    assert (gap.stated, gap.recomputed, gap.reproduced) == ("0.2", "0.15", True)
    assert gap.note == "a tie, rounded half up"
    assert results["t1-generation-gap"].recomputed == "20.78"
    assert results["t1-generation-gap"].note == ""


def test_readings_of_our_own_are_noted(results: dict[str, ClaimResult]):
    assert results["t5-average-stable"].note.startswith("read as less than 2 points")


ROWS = {
    "teacher": ("teacher", {}, ("90", "80", "2.0", "85")),
    "kd small": ("student", {"loss": "kd", "size": "small"}, ("50.0", "40.0", "5.0", "45")),
    "kd large": ("student", {"loss": "kd", "size": "large"}, ("60.0", "45.0", "4.0", "53")),
    "ce small": ("student", {"loss": "ce", "size": "small"}, ("48.0", "41.0", "3.0", "44.4")),
    "ce large": ("student", {"loss": "ce", "size": "large"}, ("52.0", None, "3.5", "52")),
}


@pytest.fixture
def table() -> PublishedTable:
    columns = (
        PublishedColumn("a", "A", "generative", None, "percent", "higher"),
        PublishedColumn("b", "B", "generative", None, "percent", "higher"),
        PublishedColumn("ppl", "P", "loglikelihood", None, "perplexity", "lower"),
        PublishedColumn("avg", "Avg", "generative", None, "percent", "higher", average_of=("a", "b")),
    )
    rows = tuple(PublishedRow(label, role, settings) for label, (role, settings, _) in ROWS.items())
    cells = tuple(
        PublishedCell(label, column.key, text, "" if text else "blank")
        for label, (_, _, texts) in ROWS.items()
        for column, text in zip(columns, texts, strict=True)
    )
    return PublishedTable("t", "T", "p", 1, columns, rows, cells)


STUDENTS = Quantity("t", {"role": ("student",)}, {"protocol": ("generative",)})


def numbers(table: PublishedTable, **changes) -> dict[str, Decimal]:
    return {number.name: number.value for number in compute({"t": table}, replace(STUDENTS, **changes))}


def test_values_leave_averages_and_blanks_out(table: PublishedTable):
    assert numbers(table, rows={"loss": ("ce",)}) == {
        "ce small, a": 48,
        "ce small, b": 41,
        "ce large, a": 52,
    }
    assert numbers(table, rows={"loss": ("ce",)}, columns={"key": ("avg",)}) == {
        "ce small, avg": Decimal("44.4"),
        "ce large, avg": 52,
    }


def test_differences_pair_on_the_other_settings(table: PublishedTable):
    pairs = {"take": "difference", "rows": {"loss": ("kd",)}, "against": {"loss": ("ce",)}}
    assert numbers(table, **pairs) == {
        "kd small - ce small, a": 2,
        "kd small - ce small, b": -1,
        "kd large - ce large, a": 8,
    }
    lower = numbers(table, **pairs, columns={"key": ("ppl",)}, better=True)
    assert lower == {"kd small - ce small, ppl": -2, "kd large - ce large, ppl": Decimal("-0.5")}
    assert numbers(table, **pairs, mean="rows") == {"a": 5, "b": -1}
    assert numbers(table, **pairs, mean="columns") == {
        "kd small - ce small": Decimal("0.5"),
        "kd large - ce large": 8,
    }
    assert numbers(table, **pairs, mean="all") == {"": 3}
    assert numbers(table, **pairs, absolute=True, mean="all") == {"": Decimal(11) / 3}


def test_ratio_spread_and_steps(table: PublishedTable):
    one = {"rows": {"label": ("kd large",)}, "against": {"role": ("teacher",)}, "columns": {"key": ("b",)}}
    assert numbers(table, take="ratio", **one) == {"kd large / teacher, b": Decimal("56.25")}
    assert numbers(table, take="spread") == {"a": 12, "b": 5}
    assert numbers(table, take="steps", along="size", rows={"loss": ("kd",)}) == {
        "kd large - kd small, a": 10,
        "kd large - kd small, b": 5,
    }


def claim(kind: str, *stated: str, than: Quantity | None = None, **changes) -> Claim:
    return Claim("c", "says", "where", kind, replace(STUDENTS, **changes), than, stated)


BEST = {"rows": {"loss": ("kd",)}, "than": STUDENTS}


@pytest.mark.parametrize(
    ("given", "reproduced", "recomputed"),
    [
        (claim("number", "60", rows={"label": ("kd large",)}, columns={"key": ("a",)}), True, "60.0"),
        (claim("number", "61", rows={"label": ("kd large",)}, columns={"key": ("a",)}), False, "60.0"),
        (claim("range", "48", "60", columns={"key": ("a",)}), True, "48.0 to 60.0"),
        (claim("range", "49", "60", columns={"key": ("a",)}), False, "48.0 to 60.0"),
        (claim("every", ">= 40", "<= 60"), True, "7 of 7, 40.0 to 60.0"),
        (claim("every", "> 40"), False, "6 of 7, 40.0 to 60.0"),
        (claim("best", **BEST), True, "2 of 2 columns"),
        (claim("best", "most", **BEST, columns={"key": ("a", "b", "ppl")}), True, "2 of 3 columns"),
        (claim("best", "worst", **BEST, columns={"key": ("ppl",)}), True, "1 of 1 columns"),
        (claim("top", "a", take="spread"), True, "a 12.0"),
        (claim("top", "smallest", "a", take="spread"), False, "b 5.0"),
        (claim("more", take="spread", than=replace(STUDENTS, rows={"loss": ("kd",)}, take="spread")), False, "1 of 2"),
        (claim("same", than=STUDENTS), True, "7 of 7 cells"),
        (claim("average", columns={"key": ("avg",)}), False, "3 of 4 averages"),
    ],
)  # fmt: skip
def test_kinds(table: PublishedTable, given: Claim, reproduced: bool, recomputed: str):
    (result,) = check_claims([given], {"t": table})
    assert (result.reproduced, result.recomputed) == (reproduced, recomputed)


def test_order(table: PublishedTable):
    stated = ("kd large", "kd small", "ce small")
    rows = {"label": ("kd small", "kd large", "ce small")}
    (result,) = check_claims([claim("order", *stated, rows=rows, mean="columns")], {"t": table})
    assert result.reproduced
    assert result.recomputed == "kd large 52.5, kd small 45.0, ce small 44.5"
    (result,) = check_claims([claim("order", *stated[::-1], rows=rows, mean="columns")], {"t": table})
    assert not result.reproduced


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (claim("number", "1"), "claim 'c': kind number needs one number, and these are 7"),
        (claim("range", "1"), "kind range states 2 figure(s), got 1"),
        (claim("more"), "kind more needs than"),
        (claim("every", "> 0", rows={"label": ("kd",)}), "t: no row 'kd'"),
        (claim("every", "> 0", rows={"los": ("kd",)}), "t: rows have no 'los'; did you mean 'loss'?"),
        (claim("every", "> 0", rows={"loss": ("l1",)}), "t: no figure has rows"),
        (claim("every", "> 0", take="difference", against={"loss": ("ce",)}), "row 'ce small' has 0 rows"),
        (claim("every", "> 0", take="steps", along="shape"), "has no setting 'shape'"),
    ],
)
def test_claims_that_a_table_cannot_answer(table: PublishedTable, given: Claim, message: str):
    with pytest.raises(PublishedError) as raised:
        check_claims([given], {"t": table})
    assert message in str(raised.value)


def test_rounding():
    assert str(round_half_up(Decimal("0.15"), 1)) == "0.2"
    assert str(round_half_up(Decimal("-0.25"), 1)) == "-0.3"
    assert is_tie(Decimal("0.15"), 1)
    assert is_tie(Decimal("-0.5"), 0)
    assert not is_tie(Decimal("0.151"), 1)
