"""Numbers and foreign text as every renderer writes them."""

import re
from math import isfinite

from distill_eval.schema.results import Estimate

# What could move a terminal's cursor or make a reader see other text than is there: control characters, lone
# surrogates, line and paragraph separators, marks that turn the writing direction, and Unicode's other format and
# ignorable characters, but for what joins and colours emoji. reports/templates/items_text.js marks the same ones.
_EMOJI = "[#*0-9\u00a9\u00ae\u203c-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    f"|(?<!{_EMOJI})[\ufe0e\ufe0f]|(?<![\ufe0f{_EMOJI[1:]})\u200d|\u200d(?!{_EMOJI})"
)


def visible(text: object) -> str:
    """Return ``text`` with characters that hide or reorder text written out (``\\x1b``); newline and tab stay."""
    return _HIDDEN.sub(_written_out, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """Return ``visible`` text with every run of whitespace as one space, for names and table cells."""
    return " ".join(visible(text).split())


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
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"
