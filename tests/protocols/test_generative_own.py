"""Items of one's own through EvalScope: prompts, extraction, metrics."""

import pytest

from distill_eval import generators
from distill_eval.errors import DataError, TaskError
from distill_eval.protocols import generative
from distill_eval.protocols.evalscope_own import extract, is_right
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, TaskSpec

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=16)
ROWS = (
    {
        "question": "Capital of France?",
        "options": ["Paris", "Rome", "New York"],
        "answer": "Paris",
        "subset": "world",
    },
    {
        "question": "Capital of Italy?",
        "options": ["York", "Rome", "Paris"],
        "answer": "Rome",
        "subset": "world",
    },
    {"question": "2 + 3 = ?", "options": [], "answer": "5", "subset": "sums"},
)


def own_task(
    metric="exact_match", target="option", prompt="{question}\n{choices}\nAnswer:", **changes
) -> TaskSpec:
    spec = GenerativeSpec(
        benchmark="own",
        dataset="",
        metric=metric,
        item_key=ItemKey(question=("question",), options=("options",), subset="subset"),
        options={"prompt": prompt, "target": target},
        **changes,
    )
    return TaskSpec("own", "Own", "demo", None, spec, items="generator:made", source_file="own.yaml")


@pytest.fixture
def load(monkeypatch):
    def load(task, rows=ROWS):
        monkeypatch.setattr(generators, "load_questions", lambda *_: tuple(rows), raising=False)
        return generative.load(task, None)

    return load


def run(loaded, client, texts):
    keys = {item.key for item in loaded.items}
    client.answer(generative.build_requests(loaded, keys, client.tokenizer, OPTIONS, 42), texts)
    return generative.score(loaded, keys, client, OPTIONS, 42)


def test_short_answers_are_compared_exactly(load, canned_client, tiny_tokenizer) -> None:
    loaded = load(own_task())
    records = run(loaded, canned_client(tiny_tokenizer), [" paris.\nIt is big.", "The answer is Rome", "5"])
    assert [record.score for record in records] == [1.0, 0.0, 1.0]
    assert [record.extracted for record in records] == ["paris.", "The answer is Rome", "5"]
    assert [record.subset for record in records] == ["world", "world", "sums"]
    assert records[0].scores == {"exact_match": 1.0}
    assert "Capital of France?\nA. Paris\nB. Rome\nC. New York\nAnswer:" in records[0].prompt
    assert records[0].item_key.startswith("own/world/")


def test_mentioned_answers_count_where_the_task_says_so(load, canned_client, tiny_tokenizer) -> None:
    loaded = load(own_task(metric="contains"))
    texts = ["It is Paris, not Rome.", "New York? No: Rome.", "2 + 3 makes 5!"]
    records = run(loaded, canned_client(tiny_tokenizer), texts)
    assert [record.score for record in records] == [1.0, 0.0, 1.0]


def test_letters(load, canned_client, tiny_tokenizer) -> None:
    loaded = load(own_task(target="letter"), ROWS[:2])
    records = run(loaded, canned_client(tiny_tokenizer), ["A", "(C) Paris"])
    assert [(record.target, record.extracted, record.score) for record in records] == [
        ("A", "A", 1.0),
        ("B", "C", 0.0),
    ]
    with pytest.raises(TaskError, match="target is letter, but '2 \\+ 3 = \\?' has no options"):
        load(own_task(target="letter"))


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("b) Rome", "B"),
        ("\n  B. Rome\nA", "B"),
        ("The answer is (C).", "C"),
        ("**A**", "A"),
        ("Rome", "B"),
        ("The capital is new york.", "C"),
        ("D", ""),
        ("I'd say nothing", ""),
        ("", ""),
    ],
)
def test_letter_extraction(output, letter) -> None:
    assert extract(output, ["Paris", "Rome", "New York"], True, "exact_match") == letter


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("It is Paris or Rome", "Paris"),
        ("rome, Paris", "Rome"),
        ("York", "York"),
        ("New York", "New York"),
        ("Parisian", ""),
        ("", ""),
    ],
)
def test_the_option_mentioned_first(output, named) -> None:
    assert extract(output, ["York", "Paris", "Rome", "New York"], False, "contains") == named


def test_normalising() -> None:
    assert is_right("  THE   Sea. ", "the sea", "exact_match") == 1.0
    assert is_right("the sea side", "the sea", "exact_match") == 0.0
    assert is_right("ＡＢ", "ab", "exact_match") == 1.0
    assert is_right("by the sea", "the sea", "contains") == 1.0
    assert is_right("15", "5", "contains") == 0.0
    assert is_right("", "", "contains") == 0.0


def test_refusals(load) -> None:
    with pytest.raises(
        TaskError, match=r"generative.metric must be one of exact_match, contains .* got 'bleu'"
    ):
        load(own_task(metric="bleu"))
    with pytest.raises(TaskError, match="num_fewshot must be 0 for own items, got 2"):
        load(own_task(num_fewshot=2))
    with pytest.raises(DataError, match="there are no rows in dataset 'generator:made'"):
        load(own_task(), ())
    with pytest.raises(DataError, match="lacks gold answers: item '2 \\+ 3 = \\?' has none"):
        load(own_task(), [ROWS[2] | {"answer": ""}])


def test_a_users_task_has_the_same_items_under_both_protocols(
    tmp_path, canned_client, tiny_tokenizer
) -> None:
    import json

    from distill_eval.catalog import read_task
    from distill_eval.protocols import loglikelihood

    rows = "".join(json.dumps(row) + "\n" for row in ROWS[:2])
    (tmp_path / "places.jsonl").write_text(rows)
    (tmp_path / "places.yaml").write_text(
        "title: Places\ncategory: mine\nitems: places.jsonl\nchance: 1/options\n"
        'loglikelihood: {metric: acc, options: {prompt: "{question} "}}\n'
        'generative: {metric: contains, options: {prompt: "{question}"}}\n'
    )
    task = read_task(tmp_path / "places.yaml")
    loaded = generative.load(task, None)
    ranked = loglikelihood.load(task, None)
    assert {item.key for item in loaded.items} == {item.key for item in ranked.items}
    records = run(loaded, canned_client(tiny_tokenizer), ["Paris", "Paris"])
    assert [(record.score, record.chance) for record in records] == [(1.0, 1 / 3), (0.0, 1 / 3)]
