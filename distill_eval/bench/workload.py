"""The items all engines are timed on: requests as lm-eval builds them, chats as EvalScope does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from distill_eval import items
from distill_eval.errors import OptionError
from distill_eval.protocols import generative, loglikelihood
from distill_eval.protocols.generative import LoadedGenerative
from distill_eval.protocols.lmeval_engine import LoadedTask, build_instances, prompt_options
from distill_eval.protocols.prompts import Messages
from distill_eval.schema.requests import GenerateRequest
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Question:
    """One item's log-likelihood requests as lm-eval's instances, one a choice.

    ``lengths``: what each choice's log-likelihood is divided by; ``gold``: indices of the right ones. Both are
    empty for an open answer, which is right when it would have been given greedily.
    """

    task: str
    instances: tuple[Any, ...]
    lengths: tuple[float, ...] = ()
    gold: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """What every engine answers. ``chats``: (a task's data, item key), each task's in data set order."""

    questions: tuple[Question, ...] = ()
    chats: tuple[tuple[LoadedGenerative, str], ...] = ()

    @property
    def instances(self) -> list[Any]:
        return [instance for question in self.questions for instance in question.instances]

    @property
    def messages(self) -> list[Messages]:
        return [loaded.chats[key] for loaded, key in self.chats]

    @property
    def num_items(self) -> int:
        return max(len(self.questions), len(self.chats))

    def generate_requests(
        self, tokenizer: Any, options: RunOptions, max_length: int
    ) -> list[GenerateRequest]:
        """Render and tokenise every chat, as the generative protocol does."""
        return [
            request
            for _, part in groupby(self.chats, key=lambda chat: id(chat[0]))
            for loaded, keys in [_together(part)]
            for request in generative.build_requests(
                loaded, keys, tokenizer, options, options.seeds[0], max_length=max_length
            )
        ]

    def sample(self, num_questions: int, num_chats: int) -> "Workload":
        """Return at most so many of the questions and chats, evenly spread."""
        return Workload(
            tuple(_spread(self.questions, num_questions)),
            tuple(_spread(self.chats, num_chats)),
        )


def load_workload(
    tasks: Sequence[TaskSpec],
    limit: int | None,
    data_dir: Path | None,
    *,
    per_subset: bool = False,
    seed: int = 0,
) -> Workload:
    """Load both sides of ``tasks`` and draw ``limit`` items of each (None: all).

    ``per_subset``: so many of each of a task's parts (subjects) instead. The same items are drawn for both jobs
    where a task has both. A task's own number of new tokens is not kept: the caller's holds for all. Raises what
    loading a task raises, and OptionError for one that is scored in rolling windows.
    """
    questions: list[Question] = []
    chats: list[tuple[LoadedGenerative, str]] = []
    for task in tasks:
        task = replace(task, max_new_tokens=None)
        scored = loglikelihood.load(task, data_dir) if task.loglikelihood else None
        generated = generative.load(task, data_dir) if task.generative else None
        sides = [{item.key: item for item in side.items} for side in (scored, generated) if side is not None]
        parts: dict[str, set[str]] = {}
        for key in set.intersection(*map(set, sides)):
            parts.setdefault(sides[0][key].subset if per_subset else "", set()).add(key)
        chosen = frozenset(key for part in parts.values() for key in items.select_keys(part, limit, seed))
        if scored is not None:
            questions += _questions(scored, chosen)
        if generated is not None:
            chats += [(generated, key) for key in generative.chosen_keys(generated, chosen)]
    return Workload(tuple(questions), tuple(chats))


def _questions(loaded: LoadedTask, chosen: frozenset[str]) -> list[Question]:
    from distill_eval.protocols.lmeval_model import ClientLM
    from distill_eval.protocols.lmeval_tasks import gold_indices, quiet_engine

    untemplated = ClientLM(None, None, RunOptions(), loaded.task.name)
    wanted = [item for item in loaded.items if item.key in chosen]
    found = []
    with quiet_engine():
        built = build_instances(loaded, wanted, untemplated, prompt_options(False, None))
        for item in wanted:
            place = loaded.places[item.key]
            engine, instances = loaded.engine_tasks[place[0]].engine, tuple(built[place])
            if engine.OUTPUT_TYPE == "loglikelihood_rolling":
                raise OptionError(
                    f"task '{loaded.task.name}' is scored in rolling windows; give another to time"
                )
            if engine.OUTPUT_TYPE == "loglikelihood":
                found.append(Question(loaded.task.name, instances))
                continue
            doc = instances[0].doc
            choices = engine.doc_to_choice(doc)
            lengths = tuple(loglikelihood.choice_length(choice, loaded.spec.metric) for choice in choices)
            gold = gold_indices(engine, doc, choices)
            found.append(Question(loaded.task.name, instances, lengths, gold))
    return found


def _together(chats: Any) -> tuple[LoadedGenerative, list[str]]:
    chats = list(chats)
    return chats[0][0], [key for _, key in chats]


def _spread(values: Sequence[Any], count: int) -> Sequence[Any]:
    if count >= len(values):
        return values
    return [values[index * len(values) // count] for index in range(count)]
