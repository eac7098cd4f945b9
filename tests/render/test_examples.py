from dataclasses import replace

from distill_eval.analysis import records_frame
from distill_eval.render.examples import LONGEST_TEXT, find_examples
from distill_eval.schema.records import GENERATIVE


def test_counts_and_sides(made):
    [group] = find_examples(made.results(), records_frame(made.records()))
    # of 40 items every third is generated wrong (14), and of these the ones that are 1 modulo 5 are ranked wrong (3)
    assert (group.num_items, group.num_lost) == (40, 11)
    assert group.num_won == 5
    example = group.examples[0]
    assert [answer.correct for answer in example.answers] == [False, True]
    assert example.answers[0].extracted == ""
    assert example.answers[1].extracted == "A"
    assert example.ranking == "-4.10, -7.25, -9.00, -11.50"


def test_items_the_reference_gets_right_come_first_and_the_rest_is_a_fixed_draw(made):
    records = made.records()
    for index, record in enumerate(records):
        lost = int(record.cluster) in (0, 3, 9)
        if lost and record.checkpoint == "teacher" and record.protocol == GENERATIVE:
            records[index] = replace(record, score=0.0)
    [group] = find_examples(made.results(), records_frame(records))
    order = [example.answers[1].correct for example in group.examples]
    assert order == sorted(order, reverse=True)
    assert False in order
    [again] = find_examples(made.results(), records_frame(list(reversed(records))))
    assert again == group
    [few] = find_examples(made.results(), records_frame(records), limit=4)
    assert few.examples == group.examples[:4]


def test_unscored_is_not_wrong(made):
    records = [
        replace(record, score=None) if record.protocol == GENERATIVE else record for record in made.records()
    ]
    assert find_examples(made.results(), records_frame(records)) == []


def test_of_several_seeds_the_lowest_is_read_and_named(made):
    records = made.records()
    other = [replace(r, seed=7, score=0.0, output="seed 7") for r in records if r.protocol == GENERATIVE]
    [group] = find_examples(made.results(), records_frame([*records, *other]))
    assert group.seed == "7"
    assert group.num_lost == 32  # all that are ranked right
    assert {example.answers[0].output for example in group.examples} == {"seed 7"}


def test_long_texts_are_cut_and_say_so(made):
    [group] = find_examples(made.results(), records_frame(made.records(output="x" * (LONGEST_TEXT + 9))))
    assert group.examples[0].answers[0].output.endswith("[... 9 more characters]")
