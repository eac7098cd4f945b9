"""RULER: lm-eval's own samples, fewer of them; depths; what is missing or too short."""

import json
import random
import sys
from types import SimpleNamespace

import pytest

from distill_eval.errors import DataError, OptionError, TaskError
from distill_eval.protocols import longcontext, ruler
from distill_eval.protocols.longcontext import expand_names, load_tasks
from distill_eval.schema.run import RunOptions
from tests.protocols.made_haystack import SENTENCES, made_essays, write_punkt


@pytest.fixture(scope="module")
def folder(tiny_model_folder):
    return tiny_model_folder("ruler", sentences=SENTENCES, num_tokens=600, chat_template=None)


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def load(tmp_path, tokenizer, made_data, monkeypatch):
    """A maker of tasks over made essays: ``load(names, lengths, **options)``."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(write_punkt(tmp_path / "nltk"))])
    mirror = made_data(ruler.ESSAYS, {"default": {"train": made_essays()}})

    def make(names, lengths, **changes):
        options = {"limit": 3, "data_dir": mirror, "cache_dir": tmp_path / "cache"} | changes
        return load_tasks(expand_names(names), tokenizer, RunOptions(**options), lengths)

    return make


@pytest.mark.parametrize(
    ("name", "length"),
    [("niah_single_1", 500), ("niah_multivalue", 1400), ("ruler_vt", 1500), ("ruler_cwe", 3000)],
)
def test_they_are_the_first_that_lm_eval_makes(load, folder, tmp_path, monkeypatch, name, length):
    import numpy as np
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import quiet_engine

    sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)  # its random numbers go on from call to call
    ours = load([name], [length + 100, length])[0].items
    path = ruler._task_file(name)
    make = load_yaml(path, resolve_func=True)["custom_dataset"]
    source = sys.modules["lm_eval.tasks.ruler.prepare_niah"]
    essays = SimpleNamespace(load_dataset=lambda *_, **__: {"text": [row["text"] for row in made_essays()]})
    monkeypatch.setattr(source, "datasets", essays)
    monkeypatch.setattr(source, "tqdm", lambda rows, **_: rows)
    random.seed(0)
    np.random.seed(1234)
    with quiet_engine():
        theirs = make(tokenizer=str(folder), max_seq_lengths=[length])["test"]
    source.get_haystack.cache_clear()
    assert len(theirs) == ruler.NUM_SAMPLES
    assert [dict(item.doc) for item in ours if item.length == str(length)] == [theirs[n] for n in range(3)]


def test_a_length_does_not_depend_on_the_others_nor_on_the_caller(load, tmp_path):
    random.seed(5)
    before = random.getstate()
    alone = load(["niah_single_2"], [1400])[0].items
    assert random.getstate() == before
    random.seed(6)
    both = load(["niah_single_2", "niah_single_3"], [1000, 1400], cache_dir=tmp_path / "other")[0].items
    assert [item.key for item in both if item.length == "1400"] == [item.key for item in alone]
    assert len({item.key for item in both}) == 6


def test_word_lists_do_not_depend_on_those_before(load, tmp_path):
    once = load(["ruler_cwe"], [3000])[0].items
    lm_evals = sys.modules["lm_eval.tasks.ruler.cwe_utils"].RNG
    before = lm_evals.getstate()
    again = load(["ruler_cwe"], [3000], cache_dir=tmp_path / "other")[0].items
    assert lm_evals.getstate() == before
    assert [item.prompt for item in once] == [item.prompt for item in again]


def test_prompts_are_lm_evals_and_so_are_scores(load):
    (task,) = load(["niah_single_1"], [500])
    for item in task.items:
        (value,) = item.doc["outputs"]
        assert item.prompt == f"{item.doc['input']} {item.doc['gen_prefix']}"
        assert (item.max_new_tokens, item.stop, item.metadata["target"]) == (128, (), value)
        assert task.measure(item.doc, f" {value}.") == {"score": 1.0}
        assert task.measure(item.doc, value[:-1]) == {"score": 0.0}


def test_each_needle_has_a_score_of_its_own(load):
    (task,) = load(["niah_multivalue"], [1400])
    item = task.items[0]
    first, _, third, _ = item.doc["outputs"]
    found = task.measure(item.doc, f"{first}, {third}")
    assert found == {"score": 0.5, "needle_1": 1.0, "needle_2": 0.0, "needle_3": 1.0, "needle_4": 0.0}


def test_depth_is_where_the_needle_lies(load, tokenizer):
    for task in load(["niah_single_2", "niah_multiquery", "niah_multikey_3", "ruler_vt"], [1600]):
        for item in task.items:
            assert len(item.depth) == len(item.doc["outputs"])
            whole = tokenizer(item.prompt)["input_ids"]
            for depth, value in zip(item.depth, item.doc["outputs"], strict=True):
                rest = tokenizer.decode(whole[round(depth / 100 * len(whole)) :]).lstrip()
                sentence = rest.partition("VAR " if task.name == "ruler_vt" else ".")[
                    2 * (task.name == "ruler_vt")
                ]
                assert sentence.startswith((value, "One of the special magic"))
                assert value in sentence


def test_depth_known_answers():
    sentence = "One of the special magic numbers for {} is: {}."
    doc = {
        "gen_prefix": "The special magic number for red-fox mentioned in the provided text is",
        "outputs": ["7"],
    }
    other, own = sentence.format("old-boat", 7), sentence.format("red-fox", 7)
    assert ruler.needle_starts(doc, f"{other} {own}") == (len(other) + 1,)
    assert ruler.needle_starts(doc, f"{own} {other}") == (0,)
    assert ruler.needle_starts({"gen_prefix": "Answer:", "outputs": ["7"]}, own) == ()
    assert ruler._depths((0, 4), "a b c d", _Words(), False) == (0.0, 50.0)


class _Words:
    """A tokenizer of words that knows no offsets."""

    is_fast = False

    def __call__(self, text, **_):
        return SimpleNamespace(input_ids=text.split())


def test_samples_are_kept(load, tmp_path, monkeypatch):
    made = []
    make = ruler._make
    monkeypatch.setattr(ruler, "_make", lambda *arguments: made.append(arguments[0]) or make(*arguments))
    whole = load(["niah_single_2"], [1400], limit=4)[0].items
    fewer = load(["niah_single_2"], [1400], limit=2)[0].items
    assert (made, fewer) == (["niah_single_2"], whole[:2])
    load(["niah_single_2"], [1400], limit=5)
    assert len(made) == 2, "more than were kept"
    (kept,) = (tmp_path / "cache/longcontext").iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert load(["niah_single_2"], [1400], limit=2)[0].items == fewer
    assert len(made) == 3, "damaged"


def test_other_essays_are_other_samples(load, made_data, tmp_path):
    before = load(["niah_single_2"], [1400])[0].items
    mirror = made_data(ruler.ESSAYS, {"default": {"train": made_essays(seed=1)}})
    after = load(["niah_single_2"], [1400], data_dir=mirror)[0].items
    assert before[0].prompt != after[0].prompt


def test_lm_eval_is_left_as_it_was(load):
    load(["niah_single_2"], [1400])
    module = sys.modules["lm_eval.tasks.ruler.prepare_niah"]
    before = {name: vars(module)[name] for name in ("datasets", "tqdm", "generate_samples")}
    load(["niah_single_2"], [1410])
    assert {name: vars(module)[name] for name in before} == before
    assert before["datasets"].__name__ == "datasets"
    assert module.get_haystack.cache_info().currsize == 0


def test_names():
    assert expand_names(["ruler", "niah_single_1"]) == ruler.TASKS
    with pytest.raises(
        TaskError, match="unknown long-context task 'niah_singel_1'; did you mean 'niah_single_1'"
    ):
        expand_names(["niah_singel_1"])
    with pytest.raises(TaskError, match="did you mean 'longbench_hotpotqa'"):
        expand_names(["longbench_hotpotq"])
    assert set(longcontext.FAMILIES) == {
        longcontext.family_of(name) for name in ("ruler_vt", "longbench_trec")
    }


@pytest.mark.parametrize(
    ("name", "length", "problem"),
    [
        ("niah_single_1", 100, "--lengths 100: task 'niah_single_1'.*Could not generate any sample"),
        ("ruler_vt", 600, "--lengths 600: task 'ruler_vt' needs at least"),
        ("ruler_cwe", 300, "--lengths 300: task 'ruler_cwe' needs at least"),
        ("ruler_fwe", 200, "--lengths 200: task 'ruler_fwe' needs at least"),
    ],
)
def test_lengths_that_are_too_short(load, name, length, problem):
    with pytest.raises(OptionError, match=problem):
        load([name], [length])


def test_what_is_missing(load, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"task 'niah_single_2': dataset 'baber/paul_graham_essays'.* is not in"
    ):
        load(["niah_single_2"], [1400], data_dir=tmp_path / "empty")
    with pytest.raises(DataError, match=r"task 'ruler_qa_squad': its questions are not in .*dev-v2\.0\.json"):
        load(["ruler_qa_squad"], [1400])
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(DataError, match="NLTK's 'punkt_tab'"):
        load(["niah_single_1"], [500])


def test_questions_from_a_file(load, tmp_path):
    paragraphs = [
        {
            "context": f"Boat {number} left the harbour with {number} sailors before the rain.",
            "qas": [
                {"question": f"How many sailors had boat {number}?", "is_impossible": False,
                 "answers": [{"text": str(number)}]}
            ],
        }
        for number in range(20)
    ]  # fmt: skip
    (tmp_path / "mirror/ruler").mkdir()
    path = tmp_path / "mirror/ruler/dev-v2.0.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    (task,) = load(["ruler_qa_squad"], [900])
    assert [task.measure(item.doc, f"It had {number}.") for number, item in enumerate(task.items)] == [
        {"score": 1.0}
    ] * 3
    with pytest.raises(OptionError, match="--limit 30: task 'ruler_qa_squad' has fewer questions"):
        load(["ruler_qa_squad"], [900], limit=30)
    assert all(item.depth == () and item.max_new_tokens == 32 for item in task.items)


@pytest.mark.mirror
def test_the_mirrors_essays(data_dir, tokenizer, tmp_path):
    options = RunOptions(limit=1, data_dir=data_dir, cache_dir=tmp_path)
    (task,) = load_tasks(["niah_single_2"], tokenizer, options, [3000])
    assert len(tokenizer(task.items[0].prompt)["input_ids"]) > 1500
