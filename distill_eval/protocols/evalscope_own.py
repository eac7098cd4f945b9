"""Items of one's own (demo tasks, a user's JSONL file) as an EvalScope benchmark."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill_eval import generators, items
from distill_eval.errors import TaskError
from distill_eval.items import Item
from distill_eval.protocols.evalscope_data import ITEM_KEY, Benchmark, collect_samples
from distill_eval.protocols.evalscope_engine import quiet_evalscope, registered, task_config
from distill_eval.schema.tasks import TaskSpec

METRICS = ("exact_match", "contains")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def load_own_items(task: TaskSpec) -> Benchmark:
    """Make a benchmark of ``task.items``: rows with question, options, answer and subset.

    The prompt is ``options["prompt"]``; the expected answer is the option's text, or its letter when
    ``options["target"]`` is ``"letter"``. Raises TaskError for a metric there is not, DataError without rows.
    """
    spec = task.generative
    assert spec is not None
    assert task.items is not None
    if spec.metric not in METRICS:
        raise TaskError(
            f"task '{task.name}': generative.metric must be one of {', '.join(METRICS)} for own items, "
            f"got '{spec.metric}' ({task.source_file})"
        )
    if spec.num_fewshot:
        raise TaskError(
            f"task '{task.name}': generative.num_fewshot must be 0 for own items, got {spec.num_fewshot}; put "
            f"examples into generative.options.prompt ({task.source_file})"
        )
    rows = generators.load_questions(task.items, task.source_file)
    with quiet_evalscope():
        from evalscope.api.benchmark import BenchmarkMeta
        from evalscope.api.registry import get_benchmark

        meta = BenchmarkMeta(
            name=f"distill_eval-{task.name}",
            dataset_id=task.items,
            data_adapter=_own_adapter(),
            subset_list=list(dict.fromkeys(row["subset"] for row in rows)) or [items.NO_SUBSET],
            pretty_name=task.title,
            description=task.title,
            metric_list=[spec.metric],
            prompt_template="{question}",
        )
        config = task_config(meta.name, {}, model="none", eval_type="mock_llm")
        with registered(meta):
            adapter: Any = get_benchmark(meta.name, config)
        adapter.own_task, adapter.own_rows = task, rows
        dataset = adapter.load_dataset()
        return collect_samples(task, meta, dataset, adapter.kept_items)


def _own_adapter() -> type:
    from evalscope.api.benchmark import DefaultDataAdapter
    from evalscope.api.dataset import DatasetDict, MemoryDataset, Sample
    from evalscope.api.metric import Score

    class OwnItems(DefaultDataAdapter):
        own_task: TaskSpec
        own_rows: Sequence[Mapping[str, Any]]

        def load(self) -> tuple[Any, None]:
            self.kept_items: dict[str, Item] = {}
            seen: Counter[str] = Counter()
            subsets: dict[str, list[Sample]] = {}
            for row in self.own_rows:
                subset = row["subset"]
                sample, item = _sample(self.own_task, row, seen)
                self.kept_items[item.key] = item
                subsets.setdefault(subset, []).append(Sample(**sample))
            return DatasetDict({name: MemoryDataset(part, name=name) for name, part in subsets.items()}), None

        def extract_answer(self, prediction: str, task_state: Any) -> str:
            return extract(
                prediction, task_state.metadata["options"], task_state.metadata["letter"], self._metric
            )

        def match_score(
            self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
        ) -> Any:
            score = Score(extracted_prediction=filtered_prediction, prediction=original_prediction)
            score.value = {self._metric: is_right(filtered_prediction, reference, self._metric)}
            score.main_score_name = self._metric
            return score

        @property
        def _metric(self) -> str:
            return str(self.metric_list[0])

    return OwnItems


def _sample(task: TaskSpec, row: Mapping[str, Any], seen: Counter[str]) -> tuple[dict[str, Any], Item]:
    spec = task.generative
    assert spec is not None
    item = items.identify(row, spec.item_key, task, row["subset"], seen)
    options, letter = list(row["options"]), spec.options.get("target", "option") == "letter"
    if letter and not options:
        raise TaskError(
            f"task '{task.name}': generative.options.target is letter, but '{item.question[:60]}' has no "
            f"options ({task.source_file})"
        )
    choices = "\n".join(f"{mark}. {option}" for mark, option in zip(LETTERS, options, strict=False))
    sample = {
        "input": spec.options["prompt"].format(question=row["question"], choices=choices),
        "target": LETTERS[options.index(row["answer"])] if letter else str(row["answer"]),
        "choices": options if letter else None,
        "metadata": {ITEM_KEY: item.key, "options": options, "letter": letter},
    }
    return sample, item


def extract(output: str, options: Sequence[str], letter: bool, metric: str) -> str:
    """Return the answer in ``output``.

    For letters: the first letter of an option that stands alone in the first line that says anything, else
    the letter of an option written out. For ``contains``: the option mentioned first, or, without options,
    the whole text. For ``exact_match``: the first line that says anything.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if letter:
        marks = LETTERS[: len(options)]
        found = re.search(rf"(?<![A-Za-z'’])([{marks}])(?![A-Za-z'’])", first)
        if found:
            return found.group(1)
        named = _first_mentioned(first, options)
        return marks[options.index(named)] if named else ""
    if metric == "contains":
        return (_first_mentioned(output, options) or "") if options else output.strip()
    return first


def is_right(answer: str, target: str, metric: str) -> float:
    """Compare after normalising case, white space and punctuation around words."""
    said, wanted = normalise(answer), normalise(target)
    if metric == "contains":
        return float(bool(wanted) and f" {wanted} " in f" {said} ")
    return float(said == wanted)


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at either end of a word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = (word.strip(".,;:!?\"'`*()[]{}“”‘’…") for word in folded.split())
    return " ".join(word for word in words if word)


def _first_mentioned(text: str, options: Sequence[str]) -> str | None:
    said = f" {normalise(text)} "
    places = [(said.find(f" {normalise(option)} "), -len(option), option) for option in options]
    found = [place for place in places if place[0] >= 0 and place[1] < 0]
    return min(found)[2] if found else None
