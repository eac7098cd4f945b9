"""Made-up rows in the format of LongBench's files, and a mirror of them. Nothing here is the benchmark's."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill_eval.prefetch import Part
from distill_eval.protocols.longbench import DATASET
from tests.made_hub import Hub

if any(find_spec(name) is None for name in ("jieba", "fuzzywuzzy", "rouge")):
    pytest.skip("LongBench's scorers: pip install 'distill-eval[longbench]'", allow_module_level=True)

PEOPLE = ("Orla Fenn", "Tam Iver", "Bea Quill", "Joss Wick")
TOWNS = ("Marlow Ferry", "Upper Dunt", "Salt Corner", "Reedham Lock")


def story(index: int, sentences: int) -> str:
    lines = [
        f"In year {index + n} {PEOPLE[(index + n) % 4]} moved to {TOWNS[(index * 3 + n) % 4]} and kept bees."
        for n in range(sentences)
    ]
    return "\n".join(lines)


def chinese(index: int, sentences: int) -> str:
    return "".join(f"第{index + n}年，老王在河边的小镇上种了{n + 1}棵苹果树。" for n in range(sentences))


def row(task: str, index: int, sentences: int) -> dict[str, Any]:
    """Return one row; ``sentences`` sets how long its context is."""
    answers, question, classes = [PEOPLE[index % 4], PEOPLE[index % 4].split()[0]], "Who kept bees?", None
    context = story(index + sum(map(ord, task)), sentences)  # tasks share prompts, not texts
    if task == "dureader":
        context, question = chinese(index, sentences), "老王在哪里种树？"
        answers = ["老王在河边的小镇上种树", "河边"]
    if task == "qmsum":
        question = "What was said about the bees?"
        answers = ["The bees were moved to another town. Everyone agreed."]
    if task in ("trec", "triviaqa"):
        context = f"Question: Who rows?\nAnswer: Orla Fenn\n{context}"
        question = "Question: Who kept bees?\nAnswer:" if task == "triviaqa" else "Question: Who?\nType:"
    if task == "trec":
        answers, classes = ["Individual"], ["Individual", "Group or organization", "Individual title"]
    return {
        "context": context,
        "question": question,
        "answers": answers,
        "length": len(context.split()),
        "dataset": task,
        "language": "zh" if task == "dureader" else "en",
        "all_classes": classes,
        "_id": f"{task}-{index}",
    }


def write_mirror(folder: Path, tasks: dict[str, list[dict[str, Any]]]) -> Path:
    """Write a mirror, as prefetch does it, of config -> rows."""
    data = {(DATASET, config, "test"): rows for config, rows in tasks.items()}
    Hub(data).fill(folder, parts=[Part(DATASET, config, "test", DATASET) for config in tasks])
    return folder
