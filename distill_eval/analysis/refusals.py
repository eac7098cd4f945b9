"""Does a response decline to answer?"""

import re

from distill_eval.analysis.choices import plain

_OPENING = 300  # characters in which a refusal begins
_CANNOT = (
    r"(?:can\s?not|can['’]t|could\s?not|couldn['’]t|won['’]t|will not|do not|don['’]t"
    r"|(?:am|['’]m) (?:unable|not able)(?: to)?)"
)
_REFUSAL = re.compile(
    r"\b(?:i['’]?m|i am|we are)?\s*(?:very |so |really )?sorry,?\s*(?:but\s+)?(?:for [^.,\n]{0,40}, but\s+)?"
    rf"(?:as an? (?:ai|language model)[^.,\n]{{0,60}},?\s*)?(?:i|we)(?:['’]m)?\s*(?:{_CANNOT}|not able|unable)"
    rf"|\bi(?:['’]m)?\s*(?:really |simply |just )?(?:{_CANNOT}|not able to|unable to)\s+(?:\w+\s+){{0,2}}?"
    r"(?:assist|help|provide|answer|repeat|fulfill?|comply|complete|do (?:that|this)|create|write|generate|produce"
    r"|engage|discuss|access|browse|open|view|see (?:the|any|your)|determine|respond)\b"
    r"|\bas an? (?:ai\b|artificial intelligence|(?:large )?language model|text-based)[^.\n]{0,80}?"
    rf"(?:{_CANNOT}|not able|unable)"
    r"|\bi (?:do not|don['’]t) know\b|\bi(?:['’]m| am) not sure\b"
    r"|(?:抱歉|对不起|很遗憾)[，,。!！\s]*(?:但)?(?:是)?[^。\n]{0,12}?(?:无法|不能|没有办法|不知道)"
    r"|作为(?:一个|一名)?(?:人工智能|AI|语言模型)[^。\n]{0,30}?(?:无法|不能)"
    r"|^我(?:无法|不能)(?:回答|提供|帮助|完成|确定)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Return whether ``text`` opens by saying that it cannot or will not answer (English and Chinese).

    To be asked only of responses that give no answer: "I cannot be sure, but B" gives one.
    """
    return _REFUSAL.search(plain(text[: 2 * _OPENING])[:_OPENING]) is not None
