"""A gate as GitHub's workflow commands: lines that become annotations on a run."""

from distill_eval.render.gate import sentence, sorted_checks, title_of
from distill_eval.render.text import one_line
from distill_eval.schema.gate import FAIL, INCONCLUSIVE, REFUSAL, GateResult

_MOST = 9  # GitHub shows ten of a kind for each step


def annotations(result: GateResult) -> list[str]:
    """Return one ``::error``, ``::warning`` or ``::notice`` line a finding.

    What fails is an error each; inconclusive checks share one warning, because a small run has many of them.
    """
    errors = [
        ("gate refused", difference.text)
        for difference in result.differences
        if difference.severity == REFUSAL
    ]
    errors += [(f"gate: {title_of(c)}", c.why) for c in sorted_checks(result) if c.outcome == FAIL]
    lines = [command("error", title, text) for title, text in errors[:_MOST]]
    if len(errors) > _MOST:
        lines.append(command("error", "gate", f"and {len(errors) - _MOST} more"))
    opened = [c for c in sorted_checks(result) if c.outcome == INCONCLUSIVE]
    if opened:
        text = f"{opened[0].why} [{title_of(opened[0])}]"
        rest = f"; likewise {', '.join(title_of(c) for c in opened[1:])}" if opened[1:] else ""
        lines.append(command("warning", f"gate: {len(opened)} inconclusive", f"{text}{rest}"))
    warned = [difference.text for difference in result.differences if difference.severity != REFUSAL]
    if warned:
        lines.append(command("notice", "gate: what differs", "; ".join(warned)))
    lines.append(command("notice", "gate", sentence(result)))
    return lines


def command(name: str, title: str, text: str) -> str:
    """Return one workflow command, free of anything that could end it early or start another."""
    return f"::{name} title={_property(one_line(title))}::{_data(one_line(text))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
