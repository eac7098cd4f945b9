"""Which item a line of EvalScope's log is, from its prompt alone: question and options read back out of the text."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill_eval.items import Item, identify
from distill_eval.schema.tasks import GenerativeSpec, TaskSpec


def read_item(
    text: str,
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    task: TaskSpec,
    subset: str,
    seen: Counter[str],
) -> Item | None:
    """Return the item of a prompt, or None when it cannot be told.

    ``text``: the last message to the model; ``metadata``: what EvalScope logs of the row; ``settings``: its
    resolved settings of the benchmark; ``seen`` as in ``identify``, over the lines in data set order. Keys
    are those of the raw rows for all 11 benchmarks of the mirror whose prompts repeat the fields of the key.
    HellaSwag's do not (EvalScope rewrites ctx_b), nor do benchmarks that shuffle options (TruthfulQA).
    """
    spec = task.generative
    assert spec is not None
    shuffled = spec.item_key.options and settings.get("shuffle_choices")
    if len(spec.item_key.question) != 1 or shuffled:
        return None
    row = _row(text, metadata, settings, spec, subset)
    if row is None:
        return None
    return identify(row, replace(spec.item_key, option_skip=0), task, subset, seen)


def _row(
    text: str, metadata: Mapping[str, Any], settings: Mapping[str, Any], spec: GenerativeSpec, subset: str
) -> dict[str, Any] | None:
    """Return what of a raw row its item key needs."""
    row: dict[str, Any] = {}
    key = spec.item_key
    if key.subset:
        row[key.subset] = subset
    if key.question[0] in metadata:  # IFEval's key, HumanEval's task_id
        row[key.question[0]] = metadata[key.question[0]]
        if not key.options:
            return row
    template = _template(settings)
    found = template.fullmatch(text) if template else None
    if found is None or not found["question"].strip():
        return None
    _put(row, key.question[0], found["question"])
    if key.options:
        options = _options(found.groupdict().get("choices", ""))
        if not options or len(key.options) not in (1, len(options)):
            return None
        _put_all(row, key.options, options)
    return row


def _put_all(row: dict[str, Any], paths: Sequence[str], options: list[str]) -> None:
    if len(paths) == 1:
        _put(row, paths[0], options)
        return
    for path, option in zip(paths, options, strict=True):
        _put(row, path, option)


def _put(row: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        row = row.setdefault(name, {})
    row[last] = value


def _template(settings: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return the benchmark's prompt template as a pattern with the groups ``question`` and ``choices``."""
    template, start = settings.get("prompt_template"), ""
    if template is None:
        return None
    if settings.get("few_shot_num"):
        with_shots = settings.get("few_shot_prompt_template") or ""
        template, start = (with_shots, "") if "{question}" in with_shots else (template, ".*")
    pieces = list(string.Formatter().parse(template or "{question}"))
    if start and not (pieces and pieces[0][0]):
        return None  # nothing says where the examples end and the question begins
    pattern, named = start, set()  # greedy: the question is what follows the template's last repetition
    for literal, name, _, _ in pieces:
        pattern += re.escape(literal)
        if name in ("question", "choices") and name not in named:
            pattern += f"(?P<{name}>.*)"
            named.add(name)
        elif name is not None:
            pattern += ".*"
    return re.compile(pattern, re.DOTALL) if "question" in named else None


def _options(text: str) -> list[str]:
    """Split ``A) first\\nB) second`` into its options, whose texts may have lines of their own."""
    options: list[str] = []
    rest = f"\n{text}"
    for letter in string.ascii_uppercase:
        option, mark, tail = rest.partition(f"\n{letter}) ")
        if not mark:
            break
        options.append(option)
        rest = tail
    # In front of A) stands nothing.
    return [*options[1:], rest] if options and not options[0].strip() else []
