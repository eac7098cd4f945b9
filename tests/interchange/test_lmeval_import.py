"""Per-sample logs of lm-eval as Records."""

import math
from collections import Counter

from distill_eval.interchange.lmeval_import import find
from distill_eval.items import identify
from distill_eval.schema.records import GENERATE_UNTIL, LOGLIKELIHOOD

DATE = "2026-01-02T03-04-05.678901"
QUESTION = "What does a glass marble do when it is dropped into a pond?"


def of(records, task, checkpoint="teacher", protocol=LOGLIKELIHOOD):
    return [r for r in records if (r.task, r.checkpoint, r.protocol) == (task, checkpoint, protocol)]


def test_finds_tasks_model_and_settings(logs):
    source = find(logs / "lmeval" / "teacher")
    assert source is not None
    assert (source.engine, source.model, source.version) == ("lm-eval", "acme/teacher-1b", "0.4.13")
    assert sorted(part.task for part in source.parts) == ["arc_easy", "gsm8k", "lambada_openai", "winogrande"]
    shots = {part.task: part.num_fewshot for part in source.parts}
    assert shots["gsm8k"] == 5
    assert source.settings["fewshot_seed"] == 1234


def test_multiple_choice(logs, run_import, catalog):
    records = of(run_import(f"teacher={logs / 'lmeval' / 'teacher'}"), "arc_easy")
    first, second, third, fourth = records
    assert first.prompt == f"Question: {QUESTION}\nAnswer:"
    assert first.choice_logprobs == (-3.5, -9.0, -8.0, -11.25)
    # By length "It sinks to the ground." has -3.5/23, "It burns." -11.25/9.
    assert (first.extracted, first.target, first.score) == (
        "It sinks to the ground.",
        "It sinks to the ground.",
        1.0,
    )
    assert first.scores == {"acc": 1.0, "acc_norm": 1.0}
    assert (first.chance, second.chance) == (1 / 4, 1 / 3)
    assert third.chance == 1 / 2
    assert second.metadata["lm_eval_task"] == "arc_easy"
    assert second.metadata["doc_id"] == "1"
    assert first.item_key.endswith("#0")
    assert fourth.item_key == first.item_key.removesuffix("#0") + "#1", "the same question a second time"
    row = {
        "question": QUESTION,
        "choices": {"text": ["It sinks to the ground.", "It floats.", "It melts.", "It burns."]},
    }
    task = catalog.tasks["arc_easy"]
    assert first.item_key == identify(row, task.loglikelihood.item_key, task, "ARC-Easy", Counter()).key
    assert {(r.num_prompt_tokens, r.num_output_tokens, r.seed, r.fingerprint) for r in records} == {
        (-1, -1, None, "")
    }


def test_choices_in_the_context(logs, run_import):
    right, wrong = of(run_import(f"student={logs / 'lmeval' / 'student'}"), "winogrande", "student")
    assert (right.output, right.target, right.score) == ("cart", "barrel", 0.0)
    assert (wrong.output, wrong.target, wrong.score) == ("Odo", "Odo", 1.0)


def test_open_answers(logs, run_import):
    said, unsaid = of(run_import(f"teacher={logs / 'lmeval' / 'teacher'}"), "lambada_openai")
    assert (said.extracted, said.target, said.score, said.choice_logprobs) == ("door", "door", 1.0, (-1.5,))
    assert (unsaid.extracted, unsaid.target, unsaid.score) == (None, "boats", 0.0)
    assert unsaid.scores["perplexity"] == -2.25


def test_generated_answers_are_the_arm(logs, run_import):
    records = of(run_import(f"teacher={logs / 'lmeval' / 'teacher'}"), "gsm8k", protocol=GENERATE_UNTIL)
    assert [r.output for r in records] == ["3 * 4 = 12\n#### 12", "It is 7."]
    # The task file asks for the lenient filter.
    assert [r.score for r in records] == [1.0, 1.0]
    assert records[1].scores == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    assert [r.extracted for r in records] == ["12", "7"]
    assert {r.seed for r in records} == {1234}


def test_rows_that_are_missing_are_said(logs, run_import, edit_lines, edit_json, tmp_path, catalog):
    folder = logs / "lmeval" / "teacher"
    edit_lines(folder / f"samples_arc_easy_{DATE}.jsonl", lambda row: row if row["doc_id"] != 1 else None)
    edit_json(
        folder / f"results_{DATE}.json",
        lambda r: r["n-samples"].update(arc_easy={"original": 4, "effective": 3}),
    )
    from distill_eval.interchange.import_run import import_results

    notes = " ".join(import_results([f"teacher={folder}"], catalog, tmp_path / "run").results.notes)
    assert "questions that occur more than once may be taken for one another" in notes
    assert "ARC-Easy (3 of 4 items)" in notes


def test_lists_of_two_are_a_loglikelihood_and_a_length(logs, run_import, edit_lines):
    path = logs / "lmeval" / "teacher" / f"samples_lambada_openai_{DATE}.jsonl"
    edit_lines(
        path, lambda row: row | {"metrics": ["acc", "word_perplexity"], "word_perplexity": [-40.0, 12]}
    )
    (first, _) = of(run_import(f"teacher={logs / 'lmeval' / 'teacher'}"), "lambada_openai")
    assert first.scores == {"acc": 1.0, "word_perplexity": -40.0, "word_perplexity_length": 12.0}


def test_nan_is_unscored(logs, run_import, edit_lines):
    path = logs / "lmeval" / "teacher" / f"samples_arc_easy_{DATE}.jsonl"
    edit_lines(path, lambda row: row | ({"acc_norm": math.nan} if row["doc_id"] == 0 else {}))
    first = of(run_import(f"teacher={logs / 'lmeval' / 'teacher'}"), "arc_easy")[0]
    assert first.score is None
    assert first.scores == {"acc": 1.0}
