"""A benchmark as tasks/*.yaml describes it: both protocols side by side."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ItemKey:
    """Where a raw row holds what identifies an item.

    ``question``: field paths (dots descend, as in ``choices.text``), joined in order. ``options``: one
    path to a list, or several paths to strings; empty for open questions. ``option_skip``: characters
    dropped in front of each option ("(A) " is 4; then stripped). ``subset``: path of the field that
    names the subset; None takes the engine's own subset (lm-eval: the task's dataset_name); "" says that
    there are no subsets, whatever an engine calls the only one.
    """

    question: tuple[str, ...]
    options: tuple[str, ...] = ()
    option_skip: int = 0
    subset: str | None = None


@dataclass(frozen=True, slots=True)
class LoglikelihoodSpec:
    """The lm-eval side, of the protocol and of the arm ``generate_until`` alike.

    ``tasks``: lm-eval task names; ``dataset``: hub id; ``metric``: the headline one, as lm-eval writes it
    (``exact_match,strict-match`` where a task has several filters).
    """

    tasks: tuple[str, ...]
    dataset: str
    metric: str
    item_key: ItemKey
    num_fewshot: int = 0
    metrics: tuple[str, ...] = ()
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerativeSpec:
    """The EvalScope side. ``benchmark``: its name there; ``dataset``: hub id; ``subsets`` empty means all.

    ``letters``: the answer in the form the prompt asks for, with ``{letter}`` in it; what the arm ``letters``
    ranks. None where there are no options, or where the prompt wants reasoning first.
    """

    benchmark: str
    dataset: str
    metric: str
    item_key: ItemKey
    num_fewshot: int = 0
    subsets: tuple[str, ...] = ()
    revision: str | None = None
    runs_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    letters: str | None = None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One benchmark.

    ``chance``: accuracy of guessing: a number, ``"1/options"`` (per item) or None for open answers.
    ``cluster``: what items share: None (independent), ``"subset"``, ``"options"`` (unordered option set)
    or ``"question"``. ``direction``: ``"higher"`` or ``"lower"`` is better. ``items``: None for engine
    data sets, else ``"generator:NAME"`` or a JSONL file of the user's. ``namespace``: the task name
    inside item keys, so that two tasks over the same rows join (mmlu and mmlu_redux). ``generate_until``:
    the same items as a generative task of lm-eval's, for the arm of that name.
    """

    name: str
    title: str
    category: str
    loglikelihood: LoglikelihoodSpec | None
    generative: GenerativeSpec | None
    chance: float | str | None = None
    cluster: str | None = None
    direction: str = "higher"
    language: str = "en"
    namespace: str = ""
    items: str | None = None
    max_new_tokens: int | None = None
    differs: tuple[str, ...] = ()
    source_file: str = ""
    generate_until: LoglikelihoodSpec | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of tasks, in the order tables show them.

    ``greedy``, ``max_new_tokens`` and ``seeds`` are the suite's own defaults (None and empty: the paper's);
    flags of the command line come first.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    greedy: bool = False
    max_new_tokens: int | None = None
    seeds: tuple[int, ...] = ()
    source_file: str = ""
