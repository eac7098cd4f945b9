"""LongBench by lm-eval's tasks: known answers of its scorers, the cut in the middle, data that is not there."""

import importlib.util

import pytest

from distill_eval.errors import DataError, OptionError, TaskError
from distill_eval.prefetch import needed_parts
from distill_eval.protocols import longbench
from distill_eval.protocols.longbench import DATASET, PAPER, cut_middle
from tests.protocols.made_longbench import row, write_mirror


@pytest.mark.parametrize(
    ("count", "limit", "kept"),
    [
        (6, 10, [0, 1, 2, 3, 4, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (10, 6, [0, 1, 2, 7, 8, 9]),
        (11, 6, [0, 1, 2, 8, 9, 10]),
        (10, 7, [0, 1, 2, 7, 8, 9]),  # one place of an odd limit stays empty
        (8, 7, [0, 1, 2, 5, 6, 7]),
        (10, 2, [0, 9]),
        (10, 3, [0, 9]),
        (0, 2, []),
    ],
)
def test_the_middle_of_a_long_prompt_is_cut(count, limit, kept):
    assert cut_middle(list(range(count)), limit) == kept


def test_the_names():
    names = longbench.task_names()
    assert len(longbench.expand("longbench_all")) == 21
    assert len(longbench.expand("longbench_e")) == 13
    assert {*longbench.expand("longbench_all"), *longbench.expand("longbench_e")} == set(names)
    assert longbench.expand("longbench") == PAPER
    assert set(PAPER) < set(names)
    known = {name.removeprefix("longbench_") for name in longbench.expand("longbench_all")}
    assert known > longbench.PLAIN | longbench.CHINESE | longbench.CLASSIFICATION
    with pytest.raises(TaskError, match="unknown task 'longbench_hotpot'; did you mean 'longbench_hotpotqa'"):
        longbench.expand("longbench_hotpot")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    names = [*(name.removeprefix("longbench_") for name in PAPER), "trec", "hotpotqa_e", "passage_count"]
    rows = {name: [row(name.removesuffix("_e"), index, 3) for index in range(4)] for name in names}
    rows["passage_count"] = [entry | {"answers": ["12"], "question": ""} for entry in rows["passage_count"]]
    return write_mirror(tmp_path_factory.mktemp("longbench"), rows)


def engine_of(name, mirror):
    return longbench.build(name, mirror).engine


CLASSES = {"all_classes": ["Individual", "Group or organization", "Individual title"]}


@pytest.mark.parametrize(
    ("task", "answers", "output", "expected"),
    [
        # 3 words against 2 once articles and marks are gone, 1 shared: P 1/3, R 1/2
        ("hotpotqa", ["a fox, cat!"], " The Fox and the dog. ", 0.4),
        ("hotpotqa", ["cat", "fox and dog"], "The fox and the dog", 1.0),
        ("hotpotqa", ["cat"], "", 0.0),
        # 北京 是 中国 的 首都 against 北京 是 首都: P 3/5, R 1
        ("dureader", ["北京是首都"], "北京是中国的首都", 0.75),
        ("dureader", ["上海", "北京是首都"], "北京是中国的首都", 0.75),
        ("dureader", ["北京是首都"], "。", 0.0),
        # longest common subsequence of 2 words; P 2/3, R 2/4
        ("qmsum", ["bees left town today"], "bees slowly left", 4 / 7),
        ("qmsum", ["bees left"], "", 0.0),
        ("trec", ["Individual"], "Individual title", 0.5),
        ("trec", ["Individual title"], "Individual title", 1.0),
        ("passage_count", ["12"], "12 or 13", 0.5),
    ],
)
def test_known_answers(mirror, task, answers, output, expected):
    scores = longbench.score(
        engine_of(f"longbench_{task}", mirror), task, {"answers": answers, **CLASSES}, output
    )
    assert scores["score"] == pytest.approx(expected, abs=1e-7)
    assert len(scores) == 2
    assert set(scores.values()) == {scores["score"]}


def test_rouge_of_long_texts_without_full_stops(mirror):
    engine = engine_of("longbench_qmsum", mirror)
    output, doc = f"c {'a ' * 600}", {"answers": [f"c {'b ' * 600}".strip()]}
    # Two distinct words each, one of them common.
    assert longbench.score(engine, "longbench_qmsum", doc, output)["score"] == pytest.approx(0.5, abs=1e-7)
    assert engine.process_results(doc, [output])["score"] == 0.0, "lm-eval alone meets the recursion limit"


def test_what_cannot_be_scored_names_the_item(mirror):
    engine = engine_of("longbench_trec", mirror)
    doc = {"answers": ["Individual"], "all_classes": None, "_id": "row 7"}
    with pytest.raises(
        DataError, match=r"^task 'longbench_trec', row 7: lm-eval cannot score it \(TypeError: .*\)$"
    ):
        longbench.score(engine, "longbench_trec", doc, "x")


def test_rows_as_the_benchmark_itself_has_them(tmp_path, mirror):
    rows = [row("musique", index, 3) for index in range(2)]
    for entry in rows:
        entry["input"] = entry.pop("question")
    own = longbench.build("longbench_musique", write_mirror(tmp_path / "own", {"musique": rows}))
    theirs = longbench.build("longbench_musique", mirror)
    assert own.engine.doc_to_text(own.docs[1]) == theirs.engine.doc_to_text(theirs.docs[1])


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("musique", {"answers": []}, r"row 1: answers: \[\]"),
        ("trec", {"all_classes": None}, r"row 1: all_classes: None"),
    ],
)
def test_rows_without_what_the_scorer_needs(tmp_path, task, change, problem):
    rows = [row(task, 0, 3), row(task, 1, 3) | change]
    with pytest.raises(DataError, match=rf"^task 'longbench_{task}'.*{problem}; every row needs [^\n]*$"):
        longbench.build(f"longbench_{task}", write_mirror(tmp_path / "bad", {task: rows}))


def test_data_that_are_not_there(tmp_path, mirror):
    with pytest.raises(DataError, match=rf"'{DATASET}' .*is not in {tmp_path}.*distill-eval prefetch[^\n]*$"):
        longbench.build("longbench_musique", tmp_path)
    with pytest.raises(DataError, match=rf"'{DATASET}' \(config 'lcc', split 'test'\) is incomplete in"):
        longbench.build("longbench_lcc", mirror)


def test_a_missing_scorer_names_the_extra(monkeypatch, mirror):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge" else found(name))
    with pytest.raises(
        OptionError, match=r"^LongBench's scorers need rouge: pip install 'distill-eval\[longbench\]'$"
    ):
        longbench.build("longbench_musique", mirror)


@pytest.mark.slow
def test_prefetch_knows_the_data():
    parts = needed_parts(map(longbench.task_spec, PAPER))
    assert [part.config for part in parts] == [name.removeprefix("longbench_") for name in PAPER]
    assert {(part.dataset_id, part.split, part.source) for part in parts} == {(DATASET, "test", DATASET)}
