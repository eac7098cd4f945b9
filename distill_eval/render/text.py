"""Numbers and foreign text as every renderer writes them."""

import re
from math import isfinite

from distill_eval.schema.results import Estimate

# What could move a terminal's cursor or make a reader see other text than is there: control characters, lone
# surrogates, line and paragraph separators, and the marks that turn the writing direction.
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]"
)

PERPLEXITIES = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "ppl"})


def visible(text: object) -> str:
    """Return ``text`` with characters that hide or reorder text written out (``\\x1b``); newline and tab stay."""
    return _HIDDEN.sub(_written_out, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """Return ``visible`` text with every run of whitespace as one space, for names and table cells."""
    return " ".join(visible(text).split())


def is_perplexity(metric: str) -> bool:
    """Whether a metric is shown as a plain number (a perplexity) instead of as a percentage."""
    return metric in PERPLEXITIES


def number(value: float | None, *, plain: bool = False, signed: bool = False) -> str:
    """Write a fraction in percent with one decimal, or a plain number in at most six characters.

    None is a dash, and a value that rounds to nothing is ``0.0``, never ``-0.0``.
    """
    if value is None:
        return "-"
    size = abs(value)
    form = (
        (".1f" if not plain else ".2f" if size < 100 else ".0f" if size < 1e5 else ".0e")
        if isfinite(size)
        else ""
    )
    text = f"{value if plain else 100 * value:{'+' if signed else ''}{form}}"
    return text.lstrip("+-") if float(text) == 0 else text


def interval(estimate: Estimate, *, plain: bool = False) -> str:
    """Write an estimate's 95% interval as ``[18.1, 23.0]``."""
    return f"[{number(estimate.low, plain=plain)}, {number(estimate.high, plain=plain)}]"


def join_names(names: list[str]) -> str:
    """Write ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _written_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
