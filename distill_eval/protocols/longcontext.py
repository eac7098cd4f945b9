"""Long-context tasks: what RULER and LongBench share, from loaded items to Records.

A family's module (``FAMILIES``) offers:

- ``expand(name) -> tuple[str, ...]``: the tasks behind a name of its own (a task, or a group of them); TaskError for
  an unknown one.
- ``task_names() -> tuple[str, ...]``: all of them. ``task_spec(name) -> TaskSpec``: what prefetch fetches for one.
- ``load(names, tokenizer, options, lengths) -> list[LongTask]``: the tasks with their items, for one tokenizer.
  Everything that can be missing or wrong raises a UserError there, before any model loads. ``options.data_dir`` is
  settled; ``lengths`` (tokens) is for tasks that are made to measure, which make ``options.limit`` items of each.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill_eval.errors import TaskError, did_you_mean
from distill_eval.items import select_keys
from distill_eval.protocols.prompts import Prompt, encode
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.records import LONG_CONTEXT, Record
from distill_eval.schema.requests import GREEDY, GenerateRequest, GenerateResponse
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec

FAMILIES = {"ruler": "distill_eval.protocols.ruler", "longbench": "distill_eval.protocols.longbench"}
MADE_TO_MEASURE = "ruler"  # the family whose items are made for the lengths asked for
SCORE = "score"  # the headline among what ``LongTask.measure`` returns
TARGET = "target"  # in an item's metadata
KEPT_CHARACTERS = 2000  # of a long prompt's beginning and of its end, in a Record

Fit = Callable[[list[int], int], list[int]]
"""Token ids of a prompt and the most that have room beside the answer -> those of the prompt as the model gets it."""


@dataclass(frozen=True, slots=True)
class LongItem:
    """One item with its prompt as lm-eval renders it, ``templated`` when a chat template is part of it.

    ``length``: label of its length class, the subset in Records (``"4096"``, ``"4-8k"``). ``depth``: where in the
    prompt what must be found lies, in percent of its tokens (0 start, 100 end), one number a needle; empty where
    there is no such place. ``cluster``: what items of one text share; empty where each has its own. ``metadata`` goes
    into the Record, ``"target"`` (the answers as text) as its target.
    """

    key: str
    doc: Mapping[str, Any]
    prompt: str
    length: str
    depth: tuple[float, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    templated: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class LongTask:
    """A task with its items, for one tokenizer.

    ``measure(doc, output)``: lm-eval's scores of one answer; ``"score"`` is the headline one, ``"needle_1"`` and so
    on are those of single needles, in the order of ``depth``. ``fit`` None: prompts are sent as they are, also
    beyond the checkpoint's positions.
    """

    name: str
    family: str
    items: tuple[LongItem, ...]
    measure: Callable[[Mapping[str, Any], str], Mapping[str, float]]
    fit: Fit | None = None

    @property
    def lengths(self) -> tuple[str, ...]:
        """Length labels in the order of the items."""
        return tuple(dict.fromkeys(item.length for item in self.items))


def expand_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks that ``names`` mean, each once; TaskError, with a suggestion, for one that nobody has."""
    found = (name for given in names for name in _expand(given))
    return tuple(dict.fromkeys(found))


def task_specs(names: Sequence[str]) -> list[TaskSpec]:
    """Return the tasks that ``names`` mean as prefetch knows tasks."""
    return [_module(family_of(name)).task_spec(name) for name in expand_names(names)]


def load_tasks(
    names: Sequence[str],
    tokenizer: Any,
    options: RunOptions,
    lengths: Sequence[int],
    report: Callable[[str], None] = lambda _: None,
) -> list[LongTask]:
    """Load the tasks of ``names`` (as ``expand_names`` returns them); ``report`` hears what is being loaded.

    Of a task over a data set ``options.limit`` items are drawn, the same ones for every checkpoint.
    """
    loaded = []
    for name in names:
        report(name)
        loaded += _module(family_of(name)).load([name], tokenizer, options, lengths)
    return [task if task.family == MADE_TO_MEASURE else _drawn(task, options) for task in loaded]


def _drawn(task: LongTask, options: RunOptions) -> LongTask:
    keys = select_keys((item.key for item in task.items), options.limit, options.limit_seed)
    return replace(task, items=tuple(item for item in task.items if item.key in keys))


def build_prompts(task: LongTask, items: Sequence[LongItem], tokenizer: Any, max_length: int) -> list[Prompt]:
    """Tokenise ``items`` of ``task`` and cut them to ``max_length`` tokens with their answers, if the task cuts."""
    prompts = []
    for item in items:
        (tokens,) = encode([item.prompt], tokenizer, item.templated)
        notes: dict[str, str] = {}
        if task.fit is not None:
            kept = tuple(task.fit(list(tokens), max_length - item.max_new_tokens))
            if len(kept) < len(tokens):
                notes["truncated_tokens"] = str(len(tokens) - len(kept))
            tokens = kept
        prompts.append(Prompt(item.prompt, tokens, item.max_new_tokens, notes))
    return prompts


def build_requests(items: Sequence[LongItem], prompts: Sequence[Prompt]) -> list[GenerateRequest]:
    """Return one greedy request an item."""
    return [
        GenerateRequest(prompt.tokens, prompt.max_new_tokens, GREEDY, item.stop)
        for item, prompt in zip(items, prompts, strict=True)
    ]


def score(
    task: LongTask,
    items: Sequence[LongItem],
    prompts: Sequence[Prompt],
    responses: Sequence[GenerateResponse],
    checkpoint: Checkpoint,
) -> list[Record]:
    """Let lm-eval score the answers; one Record an item.

    Of a long prompt the Record keeps beginning and end; ``metadata["prompt_sha256"]`` is that of the whole text.
    """
    return [
        _record(task, item, prompt, response, checkpoint)
        for item, prompt, response in zip(items, prompts, responses, strict=True)
    ]


def family_of(name: str) -> str:
    """Return the family that a task (or group) belongs to by its name; RULER's have several."""
    return next((family for family in FAMILIES if name.startswith(family)), "ruler")


def _expand(name: str) -> tuple[str, ...]:
    try:
        return _module(family_of(name)).expand(name)
    except TaskError:
        known = [known for family in FAMILIES for known in _module(family).task_names()]
        raise TaskError(f"unknown long-context task '{name}'{did_you_mean(name, known)}") from None


def _module(family: str) -> Any:
    return importlib.import_module(FAMILIES[family])


def _record(
    task: LongTask, item: LongItem, prompt: Prompt, response: GenerateResponse, checkpoint: Checkpoint
) -> Record:
    scores = {name: float(value) for name, value in task.measure(item.doc, response.text).items()}
    used = len(prompt.tokens) + len(response.tokens)
    metadata = {
        **{name: text for name, text in item.metadata.items() if name != TARGET},
        **prompt.notes,
        "length": str(len(prompt.tokens)),
        "max_length": item.length,
        "prompt_sha256": hashlib.sha256(item.prompt.encode()).hexdigest(),
    }
    if item.depth:
        metadata["depth"] = ",".join(f"{depth:.2f}" for depth in item.depth)
    if checkpoint.max_positions is not None and used > checkpoint.max_positions:
        metadata["beyond_positions"] = str(used - checkpoint.max_positions)
    return Record(
        checkpoint=checkpoint.label,
        fingerprint=checkpoint.fingerprint,
        task=task.name,
        protocol=LONG_CONTEXT,
        item_key=item.key,
        subset=item.length,
        cluster=item.cluster or item.key,
        seed=0,
        prompt=_abridged(item.prompt),
        output=response.text,
        target=item.metadata.get(TARGET, ""),
        extracted=None,
        score=scores[SCORE],
        chance=None,
        num_prompt_tokens=len(prompt.tokens),
        num_output_tokens=len(response.tokens),
        finish_reason=response.finish_reason,
        scores=scores,
        metadata=metadata,
    )


def _abridged(text: str) -> str:
    left_out = len(text) - 2 * KEPT_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:KEPT_CHARACTERS]}\n[... {left_out} characters ...]\n{text[-KEPT_CHARACTERS:]}"
