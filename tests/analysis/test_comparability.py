"""Differences between runs: what only a bridging arm uses."""

from dataclasses import replace

from distill_eval.analysis.comparability import RunFacts, differences

TASK = {"loglikelihood": {"metric": "acc"}, "generative": {"metric": "acc"}}
NEWER = {
    "loglikelihood": {"metric": "acc"},
    "generative": {"metric": "acc", "letters": "ANSWER: {letter}"},
    "generate_until": {"metric": "exact_match"},
}

OPTIONS = {"seeds": [42]}  # without any, a run counts as imported


def test_definitions_of_arms_count_where_both_ran_them() -> None:
    before = RunFacts("baseline", {"arc": TASK}, OPTIONS, {})
    after = RunFacts("candidate", {"arc": NEWER}, OPTIONS | {"arms": ["letters", "generate_until"]}, {})
    assert differences(before, after) == []
    found = differences(replace(before, options=after.options), after)
    assert [difference.text.split(" is ")[0] for difference in found] == [
        "task arc: generative.letters",
        "task arc: generate_until",
    ]


def test_other_definitions_always_count() -> None:
    other = TASK | {"generative": {"metric": "f1"}}
    found = differences(RunFacts("a", {"arc": TASK}, OPTIONS, {}), RunFacts("b", {"arc": other}, OPTIONS, {}))
    assert [difference.subject for difference in found] == ["task definition"]


def test_the_data_of_an_arm_counts_where_both_ran_it() -> None:
    task = {"generative": {"dataset": "made/own"}, "generate_until": {"dataset": "made/other"}}
    ran = OPTIONS | {"arms": ["letters", "generate_until"]}
    before = RunFacts("baseline", {"arc": task}, ran, {}, data={"made/own": "1", "made/other": "1"})
    after = replace(before, name="candidate", data={"made/own": "1", "made/other": "2"})
    assert [d.text for d in differences(before, after)] == [
        "data set made/other is at 1 in the baseline, 2 in the candidate"
    ]
    assert differences(replace(before, options=OPTIONS), after) == []
    assert differences(replace(before, data={"made/own": "1"}), after) == []
