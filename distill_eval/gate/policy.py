"""A gate's policy as a YAML file: read, validated, and checked against the tasks that the baseline has."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill_eval.content import content_path
from distill_eval.errors import PolicyError, did_you_mean
from distill_eval.schema.failures import FAILURES
from distill_eval.schema.gate import EfficiencyLimit, Margins, Policy
from distill_eval.yaml_files import read_yaml, shown_path

DEFAULT = "reports/ci/gate.yaml"
_KEYS = ("alpha", "generation", "loglikelihood", "gap", "failures", "efficiency", "tasks")
_MARGIN_KEYS = ("average", "task", "tasks")
_LIMIT_KEYS = ("max_ratio", "max_increase", "optional")


def read_policy(path: Path | None = None) -> Policy:
    """Read a policy file; without one, the default that ``reports/ci/gate.yaml`` documents.

    Raises PolicyError naming the file, the key and what would be right.
    """
    path = path or content_path(DEFAULT)
    file = _File(path)
    raw = read_yaml(path, PolicyError)
    file.known(raw, _KEYS)
    policy = Policy(
        alpha=file.number(raw, "alpha", default=0.05, most=0.5),
        generation=_margins(file, raw, "generation"),
        loglikelihood=_margins(file, raw, "loglikelihood"),
        gap=_margins(file, raw, "gap"),
        failures=_failures(file, file.mapping(raw, "failures")),
        efficiency=_efficiency(file, file.mapping(raw, "efficiency")),
        tasks=_names(file, raw),
        source=file.shown,
    )
    if not _asks(policy):
        raise PolicyError(
            f"policy {file.shown}: it asks nothing; give a margin, as in generation: {{task: 3}}"
        )
    return policy


def check_tasks(policy: Policy, known: Iterable[str], where: str) -> None:
    """Raise PolicyError when the policy names a task that is not among ``known``, the tasks of ``where``."""
    known = list(known)
    margins = {"generation": policy.generation, "loglikelihood": policy.loglikelihood, "gap": policy.gap}
    margins |= {f"failures.{name}": found for name, found in policy.failures.items()}
    named = [("tasks", name) for name in policy.tasks]
    named += [(f"{key}.tasks", name) for key, found in margins.items() for name in found.tasks]
    for key, name in named:
        if name not in known:
            raise PolicyError(
                f"policy {policy.source}: {key} names '{name}', no task of {where}{did_you_mean(name, known)}"
            )


def _asks(policy: Policy) -> bool:
    margins = (policy.generation, policy.loglikelihood, policy.gap, *policy.failures.values())
    asked = any(value is not None for m in margins for value in (m.average, m.task, *m.tasks.values()))
    return asked or bool(policy.efficiency)


def _margins(file: "_File", raw: dict[str, Any], key: str) -> Margins:
    found = file.mapping(raw, key)
    file.known(found, _MARGIN_KEYS, key)
    tasks = file.mapping(found, "tasks", key)
    return Margins(
        average=file.number(found, "average", key),
        task=file.number(found, "task", key),
        tasks={str(name): file.number(tasks, name, f"{key}.tasks") for name in tasks},
    )


def _failures(file: "_File", raw: dict[str, Any]) -> dict[str, Margins]:
    file.known(raw, FAILURES, "failures")
    return {name: _margins(_File(file.path, "failures"), raw, name) for name in raw}


def _efficiency(file: "_File", raw: dict[str, Any]) -> dict[str, EfficiencyLimit]:
    limits = {}
    for name in raw:
        key, found = f"efficiency.{name}", file.mapping(raw, name, "efficiency")
        file.known(found, _LIMIT_KEYS, key)
        optional = found.get("optional", False)
        if not isinstance(optional, bool):
            raise file.error(f"{key}.optional must be true or false, got {optional!r}")
        limit = EfficiencyLimit(
            max_ratio=file.number(found, "max_ratio", key, most=None),
            max_increase=file.number(found, "max_increase", key, most=None),
            optional=optional,
        )
        if limit.max_ratio is None and limit.max_increase is None:
            raise file.error(f"{key} needs max_ratio or max_increase")
        limits[name] = limit
    return limits


def _names(file: "_File", raw: dict[str, Any]) -> tuple[str, ...]:
    names = raw.get("tasks")
    if names is None:
        return ()
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise file.error(f"tasks must be a list of task names, got {names!r}")
    return tuple(dict.fromkeys(names))


class _File:
    """The policy file that an error message names."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.shown, self.prefix = path, shown_path(path), prefix

    def error(self, text: str) -> PolicyError:
        return PolicyError(f"policy {self.shown}: {text}")

    def key(self, key: Any, inside: str) -> str:
        return ".".join(str(part) for part in (self.prefix, inside, key) if part != "")

    def known(self, raw: dict[str, Any], known: Sequence[str], inside: str = "") -> None:
        for key in raw:
            if key not in known:
                raise self.error(
                    f"unknown key '{self.key(key, inside)}'{did_you_mean(str(key), map(str, known))}"
                )

    def mapping(self, raw: dict[str, Any], key: str, inside: str = "") -> dict[str, Any]:
        found = raw.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.error(f"{self.key(key, inside)} must be a mapping of keys to values, got {found!r}")
        return found

    def number(
        self,
        raw: dict[str, Any],
        key: str,
        inside: str = "",
        *,
        default: Any = None,
        most: float | None = 100,
    ) -> Any:
        """Return a number above 0 and at most ``most``; ``default`` where there is none."""
        value = raw.get(key)
        if value is None:
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not good or value == float("inf") or (most is not None and value > most):
            upto = "" if most is None else f" and at most {most:g}"
            raise self.error(f"{self.key(key, inside)} must be a number above 0{upto}, got {value!r}")
        return float(value)
