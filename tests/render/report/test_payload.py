import base64
import dataclasses
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from distill_eval.analysis.failures import classify
from distill_eval.content import content_path
from distill_eval.render.report.payload import FIELDS, INDEX, MAX_ROWS, encode_items
from distill_eval.schema.records import GENERATIVE, LETTERS, LOGLIKELIHOOD
from tests.hostile import HOSTILE
from tests.made_reports import make_source

EVERYTHING = 10**9


def opened(text: str) -> dict:
    """A block as the page reads it."""
    data = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    found, start = dict(header["values"]), 4 + size
    for name, kind, length in header["columns"]:
        assert start % 8 == 0
        column = np.frombuffer(data, np.dtype(f"<{kind}"), length, start)
        found[name], start = column.tolist(), start + -(-column.nbytes // 8) * 8
    return found


def renumbered(codes, first: int) -> list[int]:
    """Numbers from codes that count from the first use on; ``first`` is the code of a new one."""
    found, following = [], 0
    for code in codes:
        if code == first:
            found.append(following)
            following += 1
        else:
            found.append(code - first - 1)
    return found


def texts_of(block: dict) -> list[str | None]:
    lines, numbers = block["text"].split("\n"), renumbered(block["lines"], 0)
    texts, start = [], 0
    for count in block["line_counts"]:
        texts.append("\n".join(lines[number] for number in numbers[start : start + count]))
        start += count
    return [texts[number] if number >= 0 else None for number in renumbered(block["texts"], 1)]


def records_of(payload) -> dict[tuple, dict]:
    """Everything in a payload by (task, item, checkpoint, protocol, seed of the row)."""
    blocks = dict(payload.blocks)
    index = opened(blocks[INDEX])
    num_rows, num_arms = len(index["keys"]), len(index["protocols"])
    num_columns = len(index["checkpoints"]) * num_arms
    found = {}
    for number in range(len(blocks) - 1):
        rows = [row for row, block in enumerate(index["block"]) if block == number + 1]
        size, block = len(rows), opened(blocks[f"items-text-{number}"])
        texts = texts_of(block)
        for place, row in enumerate(rows):
            for column in range(num_columns):
                cell = column * num_rows + row
                if index["score"][cell] == 0:
                    continue
                seed = index["seeds"][index["seed"][row] - 1] if index["seed"][row] else None
                key = (
                    index["tasks"][index["task"][row]]["name"], index["keys"][row],
                    index["checkpoints"][column // num_arms], index["protocols"][column % num_arms], seed,
                )  # fmt: skip
                at = column * size + place
                first = sum(block["num_logprobs"][:at])
                found[key] = {
                    **{f: texts[i * num_columns * size + at] for i, f in enumerate(FIELDS)},
                    "score": index["score_values"][index["score"][cell] - 1],
                    "failure": index["classes"][index["failure"][cell] - 1]
                    if index["failure"][cell]
                    else None,
                    "finish_reason": index["finishes"][index["finish"][cell] - 1],
                    "num_output_tokens": index["tokens"][cell] - 2,
                    "num_prompt_tokens": block["prompt_tokens"][at] - 2,
                    "subset": index["subsets"][index["subset"][row]],
                    "choice_logprobs": block["logprobs"][first : first + block["num_logprobs"][at]],
                }
    return found


def check_all(source, found: dict[tuple, dict]) -> None:
    """Every record of the frame is in the payload as it is."""
    classes = classify(source.frame.map(lambda v: _plain(v)), source.tasks)["failure"]
    expected = 0
    for record, failure in zip(source.frame.to_dict("records"), classes, strict=True):
        seeds = {key[-1] for key in found} if pd.isna(record["seed"]) else {int(record["seed"])}
        for seed in seeds:
            place = *(record[name] for name in ("task", "item_key", "checkpoint", "protocol")), seed
            got = found.get(place)
            if got is None:
                assert pd.isna(record["seed"]), place
                continue
            expected += 1
            for name in (
                *FIELDS,
                "finish_reason",
                "num_output_tokens",
                "num_prompt_tokens",
                "score",
                "subset",
            ):
                want = None if record[name] is pd.NA else record[name]
                assert got[name] == want or (got[name] != got[name] and want != want), (place, name)
            assert got["failure"] == (None if pd.isna(failure) else failure)
            assert got["choice_logprobs"] == pytest.approx(list(record["choice_logprobs"]), rel=1e-6)
    assert expected == len(found) > 0


def _plain(value):
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def test_every_record_comes_back(monkeypatch):
    monkeypatch.setattr(
        "distill_eval.render.report.payload._BLOCK_CHARACTERS", 20_000
    )  # several blocks a task
    source = make_source(3, 3, 30, seeds=(0, 7), letters=True, num_shots=3)
    payload = encode_items(source, EVERYTHING)
    assert payload.note == ""
    assert (payload.num_items, payload.num_listed, payload.num_texts) == (180, 180, 180)
    assert payload.num_records == len(source.frame)
    assert len(payload.blocks) > 6
    check_all(source, records_of(payload))


def test_hostile_texts_come_back_exactly():
    source = make_source(2, 2, 100, hostile=HOSTILE)
    check_all(source, records_of(encode_items(source, EVERYTHING)))


def test_bytes_depend_on_the_records_only():
    source = make_source(2, 2, 20, seeds=(0, 1))
    frame = source.frame.copy()
    frame["subset"] = frame["checkpoint"]  # records of one row need not be alike
    frame["prompt"] += frame["checkpoint"]
    for max_bytes in (EVERYTHING, 10_000):
        one, other = (
            encode_items(dataclasses.replace(source, frame=frame), max_bytes)
            for frame in (frame, frame.sample(frac=1, random_state=3))
        )
        assert one == other
        assert (one.note == "") == (max_bytes == EVERYTHING)


def test_worked_examples_are_stored_once():
    few, many = (encode_items(make_source(2, 1, 200, num_shots=n), EVERYTHING).num_bytes for n in (0, 8))
    assert many < few * 1.1 + 4000  # 8 x 250 characters in each of 800 prompts are 1.6 MB


@pytest.mark.parametrize("max_bytes", [60_000, 40_000])
def test_too_large_keeps_all_rows_and_texts_of_a_sample(max_bytes):
    source = make_source(2, 3, 200, num_words=60)
    whole = encode_items(source, EVERYTHING)
    assert whole.num_bytes > max_bytes
    payload = encode_items(source, max_bytes)
    assert max_bytes * 0.6 < payload.num_bytes <= max_bytes
    assert payload.num_listed == 600
    assert 0 < payload.num_texts < 600
    assert payload.note.startswith(
        f"The texts of {payload.num_texts} of 600 items are in this file: a sample"
    )
    assert payload.note.endswith("records.parquet.")
    check = records_of(payload)
    assert {key: check[key] for key in list(check)[:5]} == {
        key: records_of(whole)[key] for key in list(check)[:5]
    }
    # Those that disagree come first.
    index = opened(payload.blocks[0][1])
    scores = {key: value["score"] for key, value in records_of(whole).items()}
    torn = {
        (task, key): len({v for k, v in scores.items() if k[:2] == (task, key)}) > 1
        for task, key, *_ in scores
    }
    kept = [
        (index["tasks"][index["task"][row]]["name"], index["keys"][row])
        for row in np.flatnonzero(index["block"])
    ]
    assert np.mean([torn[place] for place in kept]) > np.mean(list(torn.values())) + 0.1


def test_no_more_bytes_than_asked_for():
    source = make_source(2, 2, 60, seeds=(0, 1))
    whole = encode_items(source, EVERYTHING).num_bytes
    for max_bytes in [-5, 0, 1, *range(900, whole + 2000, whole // 40), whole - 1, whole]:
        payload = encode_items(source, max_bytes)
        assert payload is None or payload.num_bytes <= max_bytes
        assert (payload is None) == (max_bytes < 900), max_bytes
        if payload.note if payload else False:
            assert "of 240 rows" in payload.note


def test_one_huge_text_leaves_room_for_the_others():
    source = make_source(2, 2, 200, num_words=60)
    frame = source.frame.copy()
    rng = np.random.default_rng(0)
    first = frame.index[frame["protocol"] == GENERATIVE][3]
    frame.loc[first, "output"] = "".join(map(chr, rng.integers(0x4E00, 0x9000, 300_000)))
    payload = encode_items(dataclasses.replace(source, frame=frame), 60_000)
    assert payload.num_texts > 0.9 * encode_items(source, 60_000).num_texts > 50
    assert frame.loc[first, "item_key"] not in {key[1] for key in records_of(payload)}


def test_the_list_is_no_taller_than_browsers_lay_out():
    style = content_path("reports/templates/items.css").read_text()
    heights = [int(height) for height in re.findall(r"--row: (\d+)px", style)]
    assert len(heights) == 2
    assert MAX_ROWS * max(heights) < 30e6


def test_rows_are_left_out_where_even_the_index_is_too_large():
    payload = encode_items(make_source(2, 2, 200), 6_000)
    assert payload.num_bytes <= 6_000
    assert 0 < payload.num_listed < 400
    assert payload.note.startswith(
        f"{payload.num_listed} of 400 items are listed, {payload.num_texts} of them"
    )


def test_nothing_to_show():
    source = make_source(2, 1, 5)
    assert encode_items(dataclasses.replace(source, frame=None), EVERYTHING) is None
    assert encode_items(dataclasses.replace(source, frame=source.frame.iloc[:0]), EVERYTHING) is None
    assert encode_items(dataclasses.replace(source, results=None), EVERYTHING) is None
    assert encode_items(source, 100) is None


def test_quadrants_and_seeds():
    source = make_source(2, 2, 30, seeds=(0, 1))
    index = opened(encode_items(source, EVERYTHING).blocks[0][1])
    frame, num_rows = source.frame, len(index["keys"])
    seen = set()
    for row, key in enumerate(index["keys"]):
        for place, label in enumerate(index["checkpoints"]):
            mine = frame.loc[(frame["item_key"] == key) & (frame["checkpoint"] == label)]
            ranked = mine.loc[mine["protocol"] == LOGLIKELIHOOD, "score"].tolist()
            seed = index["seeds"][index["seed"][row] - 1]
            (generated,) = mine.loc[(mine["protocol"] == GENERATIVE) & (mine["seed"] == seed), "score"]
            expected = {
                (): 0, (1.0, 1.0): 1, (1.0, 0.0): 2, (0.0, 1.0): 3, (0.0, 0.0): 4,
            }[(ranked[0], generated) if ranked else ()]  # fmt: skip
            assert index["quadrant"][place * num_rows + row] == expected
            seen.add(expected)
    assert seen == {0, 1, 2, 3, 4}


def options_of(source, protocol: str) -> list[tuple[list, list, list]]:
    """(texts, right ones, picked by each checkpoint) of every row."""
    payload = encode_items(source, EVERYTHING)
    index = opened(payload.blocks[0][1])
    blocks = [opened(text) for _, text in payload.blocks[1:]]
    return [options for block in blocks for options in _options_of(index, block, protocol)]


def _options_of(index: dict, block: dict, protocol: str) -> list[tuple[list, list, list]]:
    arm, num_arms = index["protocols"].index(protocol), len(index["protocols"])
    num_rows = len(block["num_options"]) // num_arms
    texts = texts_of(block)[len(FIELDS) * len(index["checkpoints"]) * num_arms * num_rows :]
    starts = np.concatenate([[0], np.cumsum(block["num_options"])])
    return [
        (
            texts[starts[at] : starts[at + 1]],
            block["right"][starts[at] : starts[at + 1]],
            [block["picked"][(c * num_arms + arm) * num_rows + at % num_rows] - 1
             for c in range(len(index["checkpoints"]))],
        )
        for at in range(arm * num_rows, (arm + 1) * num_rows)
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", [LOGLIKELIHOOD, LETTERS])
def test_options_have_their_texts(protocol):
    source = make_source(2, 1, 25, letters=True)
    ranked = source.frame.loc[source.frame["protocol"] == LOGLIKELIHOOD].sort_values(
        "item_key", kind="stable"
    )
    for number, (texts, right, picked) in enumerate(options_of(source, protocol)):
        mine = ranked.iloc[2 * number : 2 * number + 2]
        assert [texts[place] for place in picked] == mine["extracted"].tolist()
        assert [text for text, flag in zip(texts, right, strict=True) if flag] == [mine["target"].iloc[0]]


def test_options_in_another_order_are_not_named():
    source = make_source(2, 1, 25)
    frame = source.frame.copy()
    frame["choice_logprobs"] = [tuple(reversed(values)) for values in frame["choice_logprobs"]]
    for texts, right, picked in options_of(dataclasses.replace(source, frame=frame), LOGLIKELIHOOD):
        assert (texts, right, picked) == ([None] * 4, [0] * 4, [-1, -1])


def test_a_shuffled_order_is_not_taken_for_true(monkeypatch):
    """Some rows agree by chance, and blocks as small as one row must not judge by themselves."""
    monkeypatch.setattr("distill_eval.render.report.payload._BLOCK_CHARACTERS", 1)
    source = make_source(2, 1, 60)
    frame, rng = source.frame.copy(), np.random.default_rng(0)
    orders = {key: rng.permutation(4) for key in frame["item_key"].unique()}
    frame["choice_logprobs"] = [
        tuple(np.array(values)[orders[key]]) if len(values) == 4 else values
        for key, values in zip(frame["item_key"], frame["choice_logprobs"], strict=True)
    ]
    found = options_of(dataclasses.replace(source, frame=frame), LOGLIKELIHOOD)
    assert len(found) == 60
    assert sum(list(order) == [0, 1, 2, 3] for order in orders.values()) < 60
    assert {text for texts, _, _ in found for text in texts} == {None}
    assert not any(sum(right) for _, right, _ in found)


def test_few_items_do_not_show_an_order():
    for num_items, known in ((9, False), (10, True)):
        found = options_of(make_source(2, 1, num_items, seeds=(0, 1)), LOGLIKELIHOOD)
        assert all((None not in texts) == known for texts, _, _ in found)


def test_scores_that_are_no_fractions_have_no_outcome():
    source = make_source(2, 1, 10)
    frame = source.frame.copy()
    frame.loc[frame["protocol"] == LOGLIKELIHOOD, "score"] = -3.5
    index = opened(encode_items(dataclasses.replace(source, frame=frame), EVERYTHING).blocks[0][1])
    assert index["tasks"][0]["graded"] == [False, True]
    assert set(index["quadrant"]) == {0}


def test_snippets_are_the_question():
    source = make_source(2, 2, 40, num_shots=4)
    index = opened(encode_items(source, EVERYTHING).blocks[0][1])
    prompts = source.frame.drop_duplicates("item_key").set_index("item_key")["prompt"]
    for key, snippet in zip(index["keys"], index["snippets"], strict=True):
        question = prompts[key].removesuffix("\nAnswer:").split("\n\n")[-1].removeprefix("Question: ")
        assert question.startswith(snippet[:60])
        assert len(snippet) > 50
