import dataclasses

import numpy as np
import pandas as pd
import pytest

from distill_eval.analysis import compare_records, records_frame
from distill_eval.analysis.frame import checked_frame, named_score
from distill_eval.errors import DataError
from distill_eval.schema.records import Record


def test_one_column_per_field_and_the_same_dtypes_for_any_records(make_records):
    full = records_frame(make_records("a", "generative", [1.0, None], chance=0.25))
    empty = records_frame([])
    likelihood = records_frame(make_records("a", "loglikelihood", [None]))
    assert list(full.columns) == [field.name for field in dataclasses.fields(Record)]
    assert full.dtypes.to_dict() == empty.dtypes.to_dict() == likelihood.dtypes.to_dict()
    assert full["score"].isna().tolist() == [False, True]
    assert full["extracted"].isna().all()
    assert full["seed"].tolist() == [42, 42]
    assert likelihood["seed"].isna().all()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"acc": 1.0}, 1.0),
        ([("acc", 0.5)], 0.5),
        (np.array([("acc", 0.5)], dtype=object), 0.5),
        ('{"acc": 0}', 0.0),
        ({"acc": None}, np.nan),
        ({}, np.nan),
        (None, np.nan),
        ("", np.nan),
    ],
)
def test_named_scores_are_read_from_what_parquet_makes_of_them(scores, expected):
    np.testing.assert_equal(named_score(scores, "acc"), expected)


def test_a_record_that_appears_twice_is_refused(make_records):
    records = make_records("a", "generative", [1.0, 0.0]) + make_records("a", "generative", [1.0])
    with pytest.raises(DataError, match=r"task 'arc': item .*00000#0' appears twice .*generative, seed 42"):
        checked_frame(records_frame(records), ["a"])
    likelihood = make_records("a", "loglikelihood", [1.0]) * 2
    with pytest.raises(DataError, match="appears twice"):
        checked_frame(records_frame(likelihood), ["a"])


def test_two_models_under_one_label_are_refused(make_records):
    other = [
        dataclasses.replace(r, fingerprint="other") for r in make_records("a", "generative", [1.0], seed=1)
    ]
    with pytest.raises(DataError, match="checkpoint 'a': its records come from 2 different models"):
        checked_frame(records_frame(make_records("a", "generative", [1.0]) + other), ["a"])


def test_bad_frames_get_one_line_each(make_records, make_task):
    frame = records_frame(make_records("a", "generative", [1.0]))
    with pytest.raises(DataError, match="lack the column 'item_key'"):
        compare_records(frame.drop(columns="item_key"), [make_task()], ["a"])
    with pytest.raises(DataError, match="unknown protocol 'generation'; did you mean 'generative'"):
        compare_records(frame.assign(protocol="generation"), [make_task()], ["a"])
    with pytest.raises(DataError, match="column 'score' must hold numbers"):
        compare_records(frame.assign(score="right"), [make_task()], ["a"])
    with pytest.raises(DataError, match="task 'arc': a score under generative is infinite"):
        compare_records(frame.assign(score=np.inf), [make_task()], ["a"])


def test_a_frame_that_went_through_parquet_compares_equal(make_records, make_task, tmp_path):
    records = []
    for label, right in (("a", 40), ("b", 30)):
        for protocol in ("loglikelihood", "generative"):
            scores = [1.0] * right + [0.0] * (50 - right - 1) + [None]
            extra = [{"acc": 1.0, "perplexity": -0.1 * i} for i in range(50)]
            records += make_records(label, protocol, scores, chance=0.25, extra=extra)
    frame = records_frame(records)
    frame.drop(columns="metadata").to_parquet(tmp_path / "records.parquet")
    task = make_task(metrics=["perplexity"])
    again = pd.read_parquet(tmp_path / "records.parquet")
    assert compare_records(again, [task], ["a", "b"]) == compare_records(frame, [task], ["a", "b"])
