import unicodedata

import pytest

from distill_eval.render.text import one_line, visible

# Arabic and other signs around a number: of the format characters those that are seen.
SEEN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}


def test_format_characters_are_written_out():
    formats = [code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"]
    assert len(formats) > 100
    for code in formats:
        assert (visible(chr(code)) == chr(code)) == (code in SEEN), hex(code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[0m\r\nb\tc", "a\\x1b[0m\nb\tc"),
        ("x\u200dy \u034f\u3164\ufe0f", "x\\u200dy \\u034f\\u3164\\ufe0f"),
        ("\U000e0041 \ud800", "\\u{e0041} \\ud800"),
        ("\u2764\ufe0f \U0001f468\u200d\U0001f469 1\ufe0f\u20e3",
         "\u2764\ufe0f \U0001f468\u200d\U0001f469 1\ufe0f\u20e3"),
        ("日本語 فارسی ไทย", "日本語 فارسی ไทย"),
    ],
)  # fmt: skip
def test_visible(text, shown):
    assert visible(text) == shown
    assert one_line(f" {text} ") == " ".join(shown.split())
