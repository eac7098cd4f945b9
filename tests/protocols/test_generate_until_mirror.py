"""lm-eval's generative tasks over real data: gold answers are right, and IFEval's two copies agree."""

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.items import select_keys
from distill_eval.protocols import generate_until, generative, sandbox
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

pytestmark = pytest.mark.mirror

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=64)
RESPONSES = (
    "Sure! Here is a list:\n* one\n* two\n* three\nIs there anything else I can help with?",
    "<<Title>>\n\nthis is all lower case, with no commas at all",
    "THE ANSWER IS IN CAPITALS. P.S. REALLY.",
    '"quoted text"',
)


def run(module, loaded, client, selected, answer):
    requests = module.build_requests(loaded, selected, client.tokenizer, OPTIONS, 42)
    chosen = [item for item in loaded.items if item.key in selected]
    client.answer(requests, [answer(item) for item in chosen])
    return module.score(loaded, selected, client, OPTIONS, 42)


def gold_of(loaded):
    """Item key -> row as lm-eval has it."""
    return {key: loaded.engine_tasks[index].docs[row] for key, (index, row) in loaded.places.items()}


@pytest.mark.parametrize("name", ["gsm8k", "bbh", "humaneval"])
def test_gold_answers_are_right_and_others_wrong(name, data_dir, canned_client, tiny_tokenizer) -> None:
    if name == "humaneval" and sandbox.sandbox_available() is None:
        pytest.skip("no sandbox here")
    loaded = generate_until.load(load_catalog().tasks[name], data_dir)
    docs, client = gold_of(loaded), canned_client(tiny_tokenizer)
    selected = select_keys(frozenset(loaded.places), 12, 0)

    def right(item) -> str:
        doc = docs[item.key]
        if name == "bbh":
            return f"So the answer is {doc['target']}."
        return doc["answer"] if name == "gsm8k" else doc["canonical_solution"] + "```"

    records = run(generate_until, loaded, client, selected, right)
    wrong = {record.subset: record.output for record in records if record.score != 1.0}
    assert not wrong
    records = run(generate_until, loaded, client, selected, lambda _: "    it depends")
    assert {record.score for record in records} == {0.0}


def test_ifeval_scores_as_evalscope_does(data_dir, canned_client, tiny_tokenizer) -> None:
    task = load_catalog().tasks["ifeval"]
    theirs, ours = generative.load(task, data_dir), generate_until.load(task, data_dir)
    selected = select_keys(frozenset(ours.places), 80, 0)

    def answer(item) -> str:
        return RESPONSES[int(item.key[-6], 16) % len(RESPONSES)]

    client = canned_client(tiny_tokenizer)
    expected = {r.item_key: r for r in run(generative, theirs, client, selected, answer)}
    records = run(generate_until, ours, client, selected, answer)
    assert 0 < sum(record.score for record in records) < len(records)
    for record in records:
        other = expected[record.item_key]
        assert (record.output, record.prompt) == (other.output, other.prompt)
        assert record.score == other.score
        assert record.scores["prompt_level_loose_acc"] == other.scores["prompt_level_loose"]
    assert generate_until.score(ours, selected, client, OPTIONS, 42) == records, "no draw is left to chance"
