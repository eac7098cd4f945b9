"""May two runs be compared at all? Every respect in which they differ, one sentence each.

Refused is what changes the questions, the way they are asked or the way answers are drawn and scored: task
definitions, items, gold answers, prompts, data revisions, decoding, engines. Warned of is what may move numbers
a little and often differs for good reason: precision, device, library versions, hardware. What turns out to have
had no effect (another limit that selects the same items, seeds under greedy decoding) is no difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from distill_eval.analysis.eligibility import PROTOCOL_NAMES
from distill_eval.schema.gate import REFUSAL, WARNING, Difference
from distill_eval.schema.records import ARMS, GENERATE_UNTIL, GENERATIVE, LETTERS, PROTOCOLS

ENGINES = ("lm-eval", "evalscope")
_DEFINITION = (
    "loglikelihood", "generative", "generate_until", "chance", "cluster", "direction", "items", "max_new_tokens",
    "namespace",
)  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k")
_SHOWN = 24  # characters of two prompts shown from where they part


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What one checkpoint's part of a run says of how its numbers came about.

    ``name``: what to call it in sentences. ``tasks`` (by name), ``options``, ``versions``, ``hardware``,
    ``numerics`` and ``data`` (data set -> revision) are as provenance.json has them. ``template``: the chat
    template it was prompted with; ``tokenizer``: a fingerprint. ``records``: columns task, protocol, item_key, seed,
    prompt, target and metadata; None before anything ran.
    """

    name: str
    tasks: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    hardware: Mapping[str, str] = field(default_factory=dict)
    numerics: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    tokenizer: str = ""
    records: pd.DataFrame | None = None


def run_facts(
    name: str, provenance: Mapping[str, Any], label: str, frame: pd.DataFrame | None = None
) -> RunFacts:
    """Return the facts of checkpoint ``label``; ``frame``: the run's records (``records_frame``)."""
    checkpoints = {entry.get("label"): entry for entry in provenance.get("checkpoints", ())}
    own = checkpoints.get(label, {})
    reference = next(iter(checkpoints.values()), {})
    numerics = [r.get("numerics", {}) for r in provenance.get("runs", ()) if r.get("checkpoint") == label]
    records = None
    if frame is not None:
        columns = ["task", "protocol", "item_key", "seed", "prompt", "target", "metadata"]
        records = frame.loc[frame["checkpoint"] == label, columns]
    return RunFacts(
        name=name,
        tasks={task["name"]: task for task in provenance.get("tasks", ())},
        options=provenance.get("options") or {},
        versions=provenance.get("versions") or {},
        hardware=provenance.get("hardware") or {},
        numerics=numerics[0] if numerics else {},
        data=provenance.get("data_revisions") or {},
        template=_template((provenance.get("options") or {}).get("chat_template") or "auto", own, reference),
        tokenizer=own.get("tokenizer_fingerprint", ""),
        records=records,
    )


def _template(asked: str, own: Mapping[str, Any], reference: Mapping[str, Any]) -> str | None:
    """Return the chat template a checkpoint was prompted with (the rule is ``run.options_for``'s)."""
    if asked not in ("auto", "own"):
        return asked
    shared = own.get("tokenizer_fingerprint") == reference.get("tokenizer_fingerprint")
    return (reference if asked == "auto" and shared else own).get("chat_template")


def differences(left: RunFacts, right: RunFacts, tasks: Sequence[str] | None = None) -> list[Difference]:
    """Return how two runs differ on ``tasks`` (default: all of ``left``'s), refusals first.

    Without records on either side only what was asked for is compared: tasks, decoding, engines.
    """
    names = list(left.tasks) if tasks is None else list(tasks)
    found = [*_tasks(left, right, names), *_decoding(left, right), *_unrecorded(left, right)]
    found += _engines(left, right) if names else []  # of profiles none has scored anything
    found += _data(left, right, names)
    if left.records is not None and right.records is not None:
        found += _records(left, right, names)
    found += _environment(left, right)
    return sorted(found, key=lambda difference: difference.severity != REFUSAL)


def other_hardware(left: RunFacts, right: RunFacts) -> str:
    """Return how the machines differ in what times and memory depend on, empty if they do not."""
    names = ["processor", "cores", *(n for n in {**left.hardware, **right.hardware} if n.startswith("gpu_"))]
    parts = [(left.hardware.get(n), right.hardware.get(n)) for n in names]
    return "; ".join(f"{a or 'none'} against {b or 'none'}" for a, b in parts if a != b)


def _refused(subject: str, text: str) -> Difference:
    return Difference(REFUSAL, subject, text)


def _pair(left: RunFacts, right: RunFacts, a: Any, b: Any) -> str:
    return f"{_shown(a)} in the {left.name}, {_shown(b)} in the {right.name}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tasks(left: RunFacts, right: RunFacts, names: Sequence[str]) -> Iterator[Difference]:
    arms = _common_arms(left, right)
    for name in names:
        if name not in right.tasks:
            yield _refused("tasks", f"task {name} is in the {left.name} but not in the {right.name}")
            continue
        for key, a, b in _changed(left.tasks[name], right.tasks[name], _DEFINITION):
            if key.partition(".")[0] == GENERATE_UNTIL and GENERATE_UNTIL not in arms:
                continue
            if key == f"{GENERATIVE}.{LETTERS}" and LETTERS not in arms:
                continue
            yield _refused("task definition", f"task {name}: {key} is {_pair(left, right, a, b)}")


def _common_arms(left: RunFacts, right: RunFacts) -> list[str]:
    """Return the arms that both have run: what only an arm uses changes nothing otherwise."""
    return [arm for arm in ARMS if all(arm in (facts.options.get("arms") or ()) for facts in (left, right))]


def _changed(
    left: Mapping[str, Any], right: Mapping[str, Any], keys: Sequence[str], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, left value, right value) where two nested mappings differ; absent counts as None."""
    for key in keys:
        a, b = left.get(key), right.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changed(a, b, sorted({*a, *b}), f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            yield f"{prefix}{key}", a, b


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _decoding(left: RunFacts, right: RunFacts) -> Iterator[Difference]:
    sampling = [facts.options.get("sampling") or {} for facts in (left, right)]
    for key, a, b in _changed(sampling[0], sampling[1], _SAMPLING):
        yield _refused("decoding", f"{key} is {_pair(left, right, a, b)}")
    greedy = all(options.get("temperature") == 0 for options in sampling)
    stops = [bool(facts.options.get("stop_loops")) for facts in (left, right)]
    if stops[0] != stops[1]:
        yield _refused("decoding", f"stop_loops is {_pair(left, right, *stops)}")
    keys = ("max_new_tokens", "apply_chat_template", "system_prompt", *(() if greedy else ("seeds",)))
    for key, a, b in _changed(left.options, right.options, keys):
        subject = "decoding" if key in ("max_new_tokens", "seeds") else "prompts"
        yield _refused(subject, f"{key} is {_pair(left, right, a, b)}")


def _unrecorded(left: RunFacts, right: RunFacts) -> Iterator[Difference]:
    unsaid = [facts.name for facts in (left, right) if not facts.options]
    if unsaid:
        text = f"the {' and the '.join(unsaid)} does not record its decoding (imported): check that it is the same"
        yield Difference(WARNING, "decoding", text)


def _engines(left: RunFacts, right: RunFacts) -> Iterator[Difference]:
    for name, a, b in _changed(left.versions, right.versions, ENGINES):
        yield _refused("engine", f"{name} is {_pair(left, right, a, b)}")


def _data(left: RunFacts, right: RunFacts, names: Sequence[str]) -> Iterator[Difference]:
    sides = (*PROTOCOLS, *_common_arms(left, right))
    specs = [left.tasks[name].get(side) or {} for name in names for side in sides]
    used = sorted({spec["dataset"] for spec in specs if spec.get("dataset")})
    for name in used:
        a, b = left.data.get(name), right.data.get(name)
        if a and b and a != b:
            yield _refused("data revision", f"data set {name} is at {_pair(left, right, a, b)}")


def _records(left: RunFacts, right: RunFacts, names: Sequence[str]) -> list[Difference]:
    sides = [dict(iter(facts.records.groupby(["task", "protocol"]))) for facts in (left, right)]  # pyright: ignore
    found: list[Difference] = []
    for name in names:
        for protocol in (*PROTOCOLS, *ARMS):
            parts = [side.get((name, protocol)) for side in sides]
            if parts[0] is None and parts[1] is None:
                continue
            where = f"{name} ({PROTOCOL_NAMES.get(protocol, protocol)})"
            if parts[0] is None or parts[1] is None:
                if protocol in PROTOCOLS and name in right.tasks:
                    lacking = left.name if parts[0] is None else right.name
                    found.append(_refused("items", f"{where}: the {lacking} has no records"))
                continue
            found += _items(left, right, parts[0], parts[1], where)
    if any(d.subject == "prompts" for d in found) and left.template != right.template:
        part = _parting(left.template or "", right.template or "")
        found.append(_refused("prompts", f"chat templates differ {part}"))
    return found


def _items(
    left: RunFacts, right: RunFacts, a: pd.DataFrame, b: pd.DataFrame, where: str
) -> Iterator[Difference]:
    seeds = [sorted(part["seed"].dropna().unique()) for part in (a, b)]
    greedy = all((f.options.get("sampling") or {}).get("temperature") == 0 for f in (left, right))
    if seeds[0] != seeds[1] and not greedy and left.options.get("seeds") == right.options.get("seeds"):
        texts = [", ".join(map(str, values)) for values in seeds]
        yield _refused("decoding", f"seeds of {where} are {_pair(left, right, *texts)}")
    first, second = (part.drop_duplicates("item_key").set_index("item_key") for part in (a, b))
    common = first.index.intersection(second.index, sort=False)
    if len(common) < max(len(first), len(second)):
        yield _refused("items", _other_items(left, right, len(first), len(second), len(common), where))
    first, second = first.loc[common], second.loc[common]
    for column, subject, word in (
        ("prompt", "prompts", "prompts"),
        ("target", "data revision", "gold answers"),
    ):
        texts = [part[column].astype(object).fillna("") for part in (first, second)]
        changed = (texts[0].to_numpy() != texts[1].to_numpy()).nonzero()[0]
        if len(changed):
            start = changed[0]
            part = _parting(texts[0].iloc[start], texts[1].iloc[start])
            yield _refused(
                subject,
                f"{word} of {where} differ on {len(changed)} of {len(common)} items; first: {common[start]}, {part}",
            )
    cut = [part["metadata"].map(_cut) for part in (first, second)]
    shortened = int((cut[0].to_numpy() != cut[1].to_numpy()).sum())
    if shortened:
        text = f"{where}: {shortened} of {len(common)} prompts or answers were cut to the context length differently"
        yield Difference(WARNING, "prompts", text)


def _cut(metadata: Any) -> str:
    found = metadata if isinstance(metadata, Mapping) else {}
    return f"{found.get('max_new_tokens', '')}|{found.get('prompt_cut', '')}"


def _other_items(
    left: RunFacts, right: RunFacts, num_left: int, num_right: int, num_common: int, where: str
) -> str:
    causes = [
        f"{key} {_shown(a)} against {_shown(b)}"
        for key, a, b in _changed(left.options, right.options, ("limit", "limit_seed"))
    ]
    why = f" ({', '.join(causes)})" if causes else " (with the same limit: the data is another)"
    return f"items of {where}: {num_left} in the {left.name}, {num_right} in the {right.name}, {num_common} common{why}"


def _parting(a: str, b: str) -> str:
    """Return where two texts part, with what follows on either side."""
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"from character {place + 1}: {a[place : place + _SHOWN]!r} against {b[place : place + _SHOWN]!r}"


def _environment(left: RunFacts, right: RunFacts) -> Iterator[Difference]:
    if left.tokenizer and right.tokenizer and left.tokenizer != right.tokenizer:
        yield Difference(WARNING, "tokenizer", "the tokenizers differ: the same prompt is other tokens")
    groups = (
        ("numerics", left.numerics, right.numerics, ()),
        ("versions", left.versions, right.versions, ENGINES),
        ("hardware", left.hardware, right.hardware, ()),
    )
    told = set()
    for subject, a, b, skipped in groups:
        keys = [key for key in sorted({*a, *b}) if key not in skipped and key not in told]
        parts = [f"{key} {_shown(x)} against {_shown(y)}" for key, x, y in _changed(a, b, keys)]
        told |= set(keys)
        if parts:
            yield Difference(WARNING, subject, f"{subject} differ: {', '.join(parts)}")
