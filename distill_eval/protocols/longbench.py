"""LongBench (Bai et al., 2024) by lm-eval's tasks: its prompts, settings and scorers, the cut in the middle.

What differs from the benchmark's own script, ``pred.py``:

- It cuts the bare prompt to a length typed in for each known model, decodes the two halves and encodes their texts
  again, which may make them longer, and puts a chat template around them. Here the encoded prompt, template
  included, is cut, to exactly what the model has positions for beside its answer; the two halves stay the tokens
  they were, and the template's own tokens count as part of them.
- Where only the first line of an answer counts, it drops line breaks before that line; lm-eval stops at the first
  line break, so an answer that begins with one is empty. lm-eval is followed.

What differs from lm-eval: it cuts from the left, and puts a chat template around few-shot and code tasks too, which
the benchmark does not; its ROUGE gives 0 when Python's recursion limit is met, as by long texts without full stops,
while here the limit is raised.
"""

import functools
import importlib
import importlib.util
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, OptionError, TaskError, did_you_mean
from distill_eval.items import identify
from distill_eval.protocols.lmeval_engine import prompt_options
from distill_eval.protocols.longcontext import LongItem, LongTask
from distill_eval.schema.records import GENERATE_UNTIL
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec

# lm_eval is imported inside functions: it takes seconds.

PREFIX = "longbench_"
DATASET = "Xnhyacinth/LongBench"
PAPER = tuple(
    PREFIX + name for name in ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
)
"""The paper's Table 20, in its order."""
FAMILY = "longbench"
ITEM_KEY = ItemKey(question=("context",), options=("question",))
METRIC = "score"  # lm-eval's common name for the metric of each task
# Few-shot and code tasks continue a text: the benchmark leaves chat templates out.
PLAIN = frozenset(("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"))
CHINESE = frozenset(("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"))
CLASSIFICATION = frozenset(("trec", "lsht"))
BUCKETS = ((4000, "0-4k"), (8000, "4-8k"), (sys.maxsize, "8k+"))  # by the benchmark's ``length``, in words
_PACKAGES = ("jieba", "fuzzywuzzy.fuzz", "rouge")
_RECURSION_LIMIT = 100_000  # ROUGE walks back through two texts with a call a word


def task_names() -> tuple[str, ...]:
    """Return every LongBench task that lm-eval has; those of LongBench-E end in ``_e``."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None
    folder = Path(str(found.origin)).parent / "tasks" / "longbench"
    return tuple(sorted(PREFIX + path.stem for path in folder.glob("[!_]*.yaml")))


def expand(name: str) -> tuple[str, ...]:
    """Return the tasks behind a name: one, or ``longbench`` (the paper's six), ``longbench_all``, ``longbench_e``."""
    known = task_names()
    groups = {
        "longbench": PAPER,
        "longbench_all": tuple(task for task in known if not task.endswith("_e")),
        "longbench_e": tuple(task for task in known if task.endswith("_e")),
    }
    if name in groups:
        return groups[name]
    if name not in known:
        raise TaskError(f"unknown task '{name}'{did_you_mean(name, (*groups, *known))}")
    return (name,)


def task_spec(name: str) -> TaskSpec:
    """Return one task as prefetch and lm-eval's side of this project know tasks."""
    (name,) = expand(name)
    base = _base(name)
    return TaskSpec(
        name=name,
        title=f"LongBench: {base}",
        category="long context",
        loglikelihood=None,
        generative=None,
        cluster="question",  # several questions about one text are not independent
        language="zh" if base in CHINESE else "en",
        source_file=f"lm-eval's {name}",
        generate_until=LoglikelihoodSpec(
            tasks=(name,),
            dataset=DATASET,
            metric=METRIC,
            item_key=ITEM_KEY,
            options={"config": {"output_type": GENERATE_UNTIL, "process_docs": _with_question}},
        ),
    )


def load(names: Sequence[str], tokenizer: Any, options: RunOptions, lengths: Sequence[int]) -> list[LongTask]:
    """Return LongBench tasks with their items, as ``protocols.longcontext`` says; ``lengths`` means nothing here.

    With ``options.apply_chat_template`` prompts are rendered through the checkpoint's template, but those of few-shot
    and code tasks, which get no system prompt either.
    """
    from distill_eval.protocols.lmeval_model import ClientLM
    from distill_eval.protocols.lmeval_tasks import quiet_engine

    tasks = []
    for name in names:
        built = build(name, options.data_dir)
        plain = _base(name) in PLAIN
        templated = options.apply_chat_template and not plain
        render = functools.partial(
            built.engine.fewshot_context,
            num_fewshot=0,
            **prompt_options(templated, None if plain else options.system_prompt),
            chat_template=ClientLM(None, tokenizer, options, name).apply_chat_template,
        )
        with quiet_engine():
            items = _items(name, built, render, templated)
        measure = functools.partial(score, built.engine, name)
        tasks.append(LongTask(name, FAMILY, items, measure, cut_middle))
    return tasks


def _items(
    name: str, built: Any, render: Callable[[Mapping[str, Any]], str], templated: bool
) -> tuple[LongItem, ...]:
    task, seen = task_spec(name), Counter[str]()
    settings = built.engine.config.generation_kwargs
    items = []
    for doc in built.docs:
        item = identify(doc, ITEM_KEY, task, built.subset, seen)
        items.append(
            LongItem(
                key=item.key,
                doc=doc,
                prompt=render(doc),
                length=length_bucket(doc),
                depth=(),
                max_new_tokens=settings["max_gen_toks"],
                stop=tuple(settings["until"]),
                templated=templated,
                metadata={"target": json.dumps(doc["answers"], ensure_ascii=False)},
                cluster=item.cluster,
            )
        )
    return tuple(items)


def build(name: str, data_dir: Path | None) -> Any:
    """Let lm-eval build one task over our data; returns its ``BuiltTask``.

    Raises OptionError for a scorer's package that is missing, DataError for data that is missing or has no answers.
    """
    import_scorers()
    from distill_eval.protocols.lmeval_tasks import build_tasks

    task = task_spec(name)
    assert task.generate_until is not None
    (built,) = build_tasks(task, task.generate_until, data_dir)
    for number, doc in enumerate(built.docs):
        answers = doc.get("answers")
        problem = (
            "" if answers and all(isinstance(text, str) for text in answers) else f"answers: {answers!r}"
        )
        if not problem and _base(name) in CLASSIFICATION and not doc.get("all_classes"):
            problem = f"all_classes: {doc.get('all_classes')!r}"
        if problem:
            raise DataError(
                f"task '{name}': dataset '{DATASET}' ({built.subset}), row {number}: {problem}; "
                "every row needs what its scorer compares with"
            )
    return built


def cut_middle(tokens: Sequence[int], limit: int) -> list[int]:
    """Return at most ``limit`` token ids: the first and the last ``limit // 2`` of a longer prompt.

    As the benchmark's script, which leaves one place of an odd limit empty. ``limit`` must be at least 2.
    """
    if len(tokens) <= limit:
        return list(tokens)
    half = limit // 2
    return [*tokens[:half], *tokens[-half:]]


def length_bucket(doc: Mapping[str, Any]) -> str:
    """Return the length class under which LongBench-E reports an item."""
    return next(label for below, label in BUCKETS if doc["length"] < below)


def score(engine: Any, name: str, doc: Mapping[str, Any], output: str) -> dict[str, float]:
    """Return lm-eval's metrics of one answer to task ``name``, each in 0 to 1; ``score`` is the headline one."""
    from distill_eval.protocols.lmeval_data import one_line

    with _deep_recursion():
        try:
            values = engine.process_results(doc, [output])
        except Exception as error:  # a scorer meets what is missing from a row only here
            row = doc.get("_id", "a row without _id")
            raise DataError(f"task '{name}', {row}: lm-eval cannot score it ({one_line(error)})") from error
    return {name: float(value) for name, value in values.items()}


def import_scorers() -> None:
    """Import what lm-eval's LongBench scorers need; OptionError names the extra when something is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name.partition(".")[0]) is None]
    if missing:
        names = ", ".join(name.partition(".")[0] for name in missing)
        raise OptionError(f"LongBench's scorers need {names}: pip install 'distill-eval[longbench]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy's own about its speed, and those of old syntax
        for name in _PACKAGES:
            importlib.import_module(name)
    logging.getLogger("jieba").setLevel(logging.WARNING)


@contextmanager
def _deep_recursion() -> Iterator[None]:
    # Costs no C stack: Python's own calls have lived on the heap since 3.11.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _RECURSION_LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _with_question(rows: Any) -> Any:
    """Name the question as lm-eval does; the benchmark's own files have it as ``input``."""
    if "question" in rows.column_names or "input" not in rows.column_names:
        return rows
    return rows.rename_column("input", "question")


def _base(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix("_e")
