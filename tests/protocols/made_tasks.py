"""Tasks on made data for EvalScope's real adapters, and a way to answer them."""

from dataclasses import replace

from distill_eval.protocols import generative
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, TaskSpec

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=32)
QUESTIONS = (
    ("What do bees make?", ["silk", "honey", "wool"], "B"),
    ("Which of these is a metal?", ["iron", "oak", "salt water", "air"], "A"),
    ("What falls from clouds?", ["sand", "rain"], "B"),
    ("What do bees make?", ["silk", "honey", "wool"], "B"),  # the same question again
)


def arc_task(**changes) -> TaskSpec:
    spec = GenerativeSpec(
        benchmark="arc",
        dataset="made/arc",
        metric="accuracy",
        item_key=ItemKey(question=("question",), options=("choices.text",), subset=""),
        subsets=("ARC-Easy",),
    )
    names = GenerativeSpec.__dataclass_fields__
    spec = replace(spec, **{name: value for name, value in changes.items() if name in names})
    task = TaskSpec(
        "made_arc", "Made ARC", "reasoning", None, spec, chance="1/options", source_file="made.yaml"
    )
    return replace(task, **{name: value for name, value in changes.items() if name not in names})


def arc_rows(questions=QUESTIONS) -> list[dict]:
    return [
        {
            "id": str(number),
            "question": question,
            "choices": {"text": options, "label": list("ABCDE"[: len(options)])},
            "answerKey": answer,
        }
        for number, (question, options, answer) in enumerate(questions)
    ]


def gsm8k_task(num_fewshot: int = 0) -> TaskSpec:
    spec = GenerativeSpec(
        benchmark="gsm8k",
        dataset="made/gsm8k",
        metric="accuracy",
        item_key=ItemKey(question=("question",), subset=""),
        num_fewshot=num_fewshot,
        subsets=("main",),
    )
    return TaskSpec("made_gsm8k", "Made GSM8K", "math", None, spec, source_file="made.yaml")


def run(loaded, client, texts, options=OPTIONS, selected=None, seed=42):
    """Answer the selected items with ``texts`` and score them."""
    selected = {item.key for item in loaded.items} if selected is None else selected
    requests = generative.build_requests(
        loaded, selected, client.tokenizer, options, seed, max_length=client.max_length
    )
    client.answer(requests, texts)
    return generative.score(loaded, selected, client, options, seed)
