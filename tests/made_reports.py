"""Made-up records of a teacher and worse students, and the ReportSource that the analysis makes of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from distill_eval.analysis import compare_records, records_frame
from distill_eval.analysis.explanation import explain_records, with_gaps_of
from distill_eval.catalog import load_catalog
from distill_eval.schema.records import GENERATIVE, LETTERS, LOGLIKELIHOOD, Record
from distill_eval.schema.report import ReportSource
from distill_eval.schema.tasks import TaskSpec

TASKS = (
    "arc_easy", "gsm8k", "hellaswag", "arc_challenge", "winogrande", "piqa", "mmlu_redux", "truthfulqa", "ceval",
    "cmmlu", "bbh", "mmlu", "ifeval", "humaneval",
)  # fmt: skip
LETTERS_OF = "ABCD"
_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "jil",
    "ko",
    "lem",
    "mar",
    "nis",
    "ol",
    "pra",
    "que",
    "ros",
    "sta",
    "tor",
)
# How a generation ends, and its share for the reference and for the student that is furthest behind.
_ENDS = {
    "right": (0.86, 0.50), "wrong": (0.08, 0.14), "recoverable": (0.02, 0.06), "unparsed": (0.02, 0.08),
    "truncated": (0.01, 0.09), "loop": (0.00, 0.08), "empty": (0.00, 0.03), "refused": (0.01, 0.02),
}  # fmt: skip


def make_source(
    num_checkpoints: int = 2,
    num_tasks: int = 3,
    num_items: int = 40,
    seeds: Sequence[int] = (0,),
    hostile: Sequence[str] = (),
    *,
    letters: bool = False,
    num_words: int = 25,
    num_shots: int = 0,
    tasks: Sequence[str] = TASKS,
) -> ReportSource:
    """Return what a report of these made-up records is made from; the same arguments give the same values.

    ``num_items``: of each task (the catalog's first of ``tasks``; gsm8k has no log-likelihood). ``letters``: with
    that bridging arm. ``num_words``: in a generation that reasons. ``num_shots``: worked examples before each
    question (about 250 characters each). ``hostile``: strings that get into names (in turn), item keys, subsets,
    prompts, outputs, targets and extracted answers (each in turn, so that ``num_items`` of them are all used);
    the text columns of the frame are Python objects then, because lone surrogates fit in no other.
    """
    labels = ("teacher", *(f"student-{number}" for number in range(1, num_checkpoints)))
    catalog = load_catalog().tasks
    specs = tuple(catalog[name] for name in tasks[:num_tasks])
    arms = (LOGLIKELIHOOD, LETTERS, GENERATIVE) if letters else (LOGLIKELIHOOD, GENERATIVE)
    records = [
        record
        for number, task in enumerate(specs)
        for record in _task_records(task, number, labels, num_items, seeds, arms, num_words, num_shots)
    ]
    frame = records_frame(records)
    results = compare_records(frame, specs, labels)
    explanation = with_gaps_of(results, explain_records(frame, specs, labels))
    if hostile:
        frame = _hostile_frame(frame, hostile)
        named = [*(task.title for task in specs), *labels, *(task.name for task in specs)]
        names = {name: f"{name} {hostile[i % len(hostile)]}" for i, name in enumerate(named)}
        for column in ("task", "checkpoint"):
            frame[column] = pd.Series([names[name] for name in frame[column]], dtype=object)
        results, explanation, specs = (renamed(part, names) for part in (results, explanation, specs))
        labels = tuple(names[label] for label in labels)
    return ReportSource(
        results=results, explanation=explanation, tasks=specs, frame=frame, provenance=_provenance(labels)
    )


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return ``value`` with every string that is a name replaced, in dataclasses, tuples and dicts alike."""
    if isinstance(value, str):
        return names.get(value, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: renamed(getattr(value, f.name), names) for f in fields})
    if isinstance(value, tuple):
        return tuple(renamed(part, names) for part in value)
    if isinstance(value, dict):
        return {renamed(key, names): renamed(part, names) for key, part in value.items()}
    return value


def _task_records(
    task: TaskSpec,
    number: int,
    labels: Sequence[str],
    num_items: int,
    seeds: Sequence[int],
    arms: Sequence[str],
    num_words: int,
    num_shots: int,
) -> Iterator[Record]:
    rng = np.random.default_rng(number)
    words = np.array(["".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(4000)], dtype=object)
    open_answers = task.loglikelihood is None
    questions = [
        f"{' '.join(part).capitalize()}?" for part in words[rng.integers(4000, size=(num_items, 14))]
    ]
    options = words[rng.integers(4000, size=(num_items, 4, 3))]
    golds, hard = rng.integers(4, size=num_items), rng.random(num_items)
    shots = [" ".join(part) for part in words[rng.integers(4000, size=(num_shots, 32))]]
    header = "".join(f"Question: {shot}\nAnswer: {shot.split()[0]}\n\n" for shot in shots)
    for place, label in enumerate(labels):
        behind = place / max(len(labels) - 1, 1)
        ranked_right = hard + rng.normal(0, 0.08, num_items) < 0.76 - 0.03 * behind
        for item in range(num_items):
            choices, gold = [" ".join(option) for option in options[item]], int(golds[item])
            picked = gold if ranked_right[item] else (gold + 1) % 4
            shared: dict[str, Any] = {
                "checkpoint": label, "fingerprint": f"{place:02x}" * 32, "task": task.name,
                "item_key": f"{task.name}/default/{(number << 40) + item * 2654435761:016x}#0", "subset": "default",
                "cluster": f"{task.name}/{item}", "chance": None if open_answers else 0.25,
            }  # fmt: skip
            # The picked option is ahead whether or not a metric divides by lengths.
            rates = np.where(np.arange(4) == picked, 0.2, 1.6) + rng.random(4) / 10
            logprobs = tuple(round(-float(rate) * len(c), 4) for rate, c in zip(rates, choices, strict=True))
            shown = "\n".join(
                f"{letter}) {choice}" for letter, choice in zip(LETTERS_OF, choices, strict=True)
            )
            asked = (
                f"{header}{questions[item]}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
                if open_answers
                else "Answer the following multiple choice question. The last line of your response should be of the "
                f"following format: 'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of A,B,C,D.\n\n"
                f"{header}{questions[item]}\n\n{shown}"
            )
            for arm in arms:
                if arm != GENERATIVE and not open_answers:
                    answers = choices if arm == LOGLIKELIHOOD else LETTERS_OF
                    prompt = (
                        f"{header}Question: {questions[item]}\nAnswer:" if arm == LOGLIKELIHOOD else asked
                    )
                    yield Record(
                        protocol=arm, seed=None, prompt=prompt, output=answers[picked], target=answers[gold],
                        extracted=answers[picked], score=float(picked == gold), num_prompt_tokens=len(prompt) // 4,
                        num_output_tokens=3, finish_reason="scored", choice_logprobs=logprobs, **shared,
                    )  # fmt: skip
            for seed in seeds:
                text, end, extracted, right = _generation(
                    rng, behind, hard[item], gold, words, num_words, open_answers
                )
                yield Record(
                    protocol=GENERATIVE, seed=seed, prompt=asked, output=text, extracted=extracted, score=float(right),
                    target=str(gold + 7) if open_answers else LETTERS_OF[gold], num_prompt_tokens=len(asked) // 4,
                    num_output_tokens=len(text) // 4, finish_reason=end, **shared,
                )  # fmt: skip


def _generation(
    rng: np.random.Generator,
    behind: float,
    hard: float,
    gold: int,
    words: np.ndarray,
    num_words: int,
    open_answers: bool,
) -> tuple[str, str, str | None, bool]:
    """Return output, finish reason, extracted answer and whether it is right."""
    shares = np.array([best + (worst - best) * behind for best, worst in _ENDS.values()])
    draw = np.clip(0.7 * rng.random() + 0.3 * hard, 0, 0.9999)
    kind = list(_ENDS)[int(np.searchsorted(np.cumsum(shares / shares.sum()), draw, side="right"))]
    reasoning = f"{' '.join(words[rng.integers(4000, size=num_words)])}."
    said = str(gold + 7) if open_answers else LETTERS_OF[gold]
    other = str(gold + 8) if open_answers else LETTERS_OF[(gold + 1) % 4]

    def stated(answer: str) -> str:
        return f"{reasoning}\n\n" + (f"\\boxed{{{answer}}}" if open_answers else f"ANSWER: {answer}")

    return {
        "right": (stated(said), "stop", said, True),
        "wrong": (stated(other), "stop", other, False),
        "recoverable": (f"{reasoning}\n\nSo the correct answer is {said}.", "stop", None, False),
        "unparsed": (reasoning, "stop", None, False),
        "truncated": (reasoning, "length", None, False),
        "loop": (f"{reasoning} " + f"{words[0]} {words[1]} and {words[2]}. " * 40, "length", None, False),
        "empty": ("", "stop", None, False),
        "refused": ("I'm sorry, but I cannot answer that question.", "stop", None, False),
    }[kind]


def _hostile_frame(frame: pd.DataFrame, hostile: Sequence[str]) -> pd.DataFrame:
    frame = frame.copy()
    item = frame.groupby("task")["item_key"].transform(lambda keys: keys.factorize()[0]).to_numpy()
    for shift, column in enumerate(("output", "prompt", "target", "extracted", "item_key", "subset")):
        values = frame[column].to_numpy(object, na_value=None)
        frame[column] = pd.Series(
            [
                None if value is None else f"{value} {hostile[(number + shift) % len(hostile)]}"
                for number, value in zip(item, values, strict=True)
            ],
            dtype=object,
        )
    return frame


def _provenance(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "command": f"distill-eval compare {' '.join(f'{label}=made/up' for label in labels)}",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"distill-eval": "0.1.0", "torch": "2.13.0", "lm-eval": "0.4.13", "evalscope": "1.14.1"},
        "checkpoints": [
            {"label": label, "name": f"made/up-{i}", "source": "hub", "fingerprint": f"{i:02x}" * 32}
            for i, label in enumerate(labels)
        ],
        "options": {"limit": None, "seeds": [0], "sampling": {"temperature": 0.7, "top_k": 20}},
        "hardware": {"device": "made-up device", "num_cpus": 16, "memory_gib": 128.0},
        "runs": [
            {"checkpoint": label, "numerics": {"dtype": "bfloat16"}, "counts": {}, "probes": []}
            for label in labels
        ],
    }
