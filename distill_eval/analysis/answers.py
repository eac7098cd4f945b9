"""What a response answers, read strictly and leniently, by the form its task asks for.

=============  ==================================================  ==========================================
form           strict                                              lenient
=============  ==================================================  ==========================================
choice         ``ANSWER: B`` (``答案：B``), all of the text or        any statement of one option: "it is (b)",
               its last line as the prompt asks; ``B`` where       "B) Earth", the option's text
               the prompt asks for neither
number         one number in ``\\boxed{}``; several boxes must        a number boxed, after "answer is" or "####";
               agree                                               else the last one of a finished text
conclusion     ``So the answer is X``, once                        "the answer is X", "Answer: X", a box, or a
                                                                   text of one short line
code           Python that compiles, in a fence or bare            the same
constraints    nothing to read: the engine's score decides         the same
open           what the engine extracted; its score decides        the same
=============  ==================================================  ==========================================

Several different answers are no answer. Strict and lenient values are canonical text: a letter, a number
without separators and trailing zeros, normalised words.
"""

import ast
import re
import warnings
from decimal import Decimal, InvalidOperation

from distill_eval.analysis.choices import (
    NOTHING,
    Question,
    Reading,
    fold,
    lenient_choice,
    plain,
    read_question,
    strict_choice,
)
from distill_eval.schema.tasks import TaskSpec

CHOICE, NUMBER, CONCLUSION = "choice", "number", "conclusion"
CODE, CONSTRAINTS, OPEN = "code", "constraints", "open"
PARSED = (CHOICE, NUMBER, CONCLUSION)
"""Forms whose answers are compared with the gold here; for the others the engine's score decides."""

_FORMS = {"gsm8k": NUMBER, "bbh": CONCLUSION, "ifeval": CONSTRAINTS}


def answer_form(task: TaskSpec) -> str:
    """Return the form of a generative task's answers."""
    spec = task.generative
    if spec is None:
        return OPEN
    if spec.runs_code:
        return CODE
    if task.items is not None:
        return CHOICE if spec.options.get("target") == "letter" else OPEN
    return _FORMS.get(spec.benchmark, CHOICE if spec.item_key.options else OPEN)


def question_of(form: str, prompt: str, num_options: int | None = None) -> Question | None:
    """Return what a prompt offers to choose from, None where that is nothing."""
    if form not in (CHOICE, CONCLUSION) or "[LETTERS]" in prompt:
        return None
    if form == CONCLUSION:
        question = read_question(prompt)
        return question if question.options else None
    return read_question(prompt, num_options)


def read_answer(form: str, text: str, question: Question | None) -> tuple[Reading, Reading]:
    """Return the strict and the lenient reading of a response whose thinking is already dropped."""
    if form == NUMBER:
        return _strict_number(text), _lenient_number(text)
    if form == CONCLUSION:
        return _conclusions(text, question)
    assert question is not None
    strict = strict_choice(text, question)
    return strict, strict if strict.value else lenient_choice(text, question)


def canonical_gold(form: str, target: str, question: Question | None) -> str:
    """Return a gold answer in the form that readings have."""
    target = target.strip()
    if form == NUMBER:
        return _number(target) or target
    letter = target.strip("()").upper()
    if form == CONCLUSION and (question is None or len(letter) != 1 or letter not in question.letters):
        return _said(target)
    return letter


_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)


def without_thinking(text: str) -> str:
    """Drop finished ``<think>`` blocks, and an unfinished one with all that follows it."""
    if "<think" not in text:
        return text.rpartition("</think>")[2] if "</think>" in text else text
    return re.split(r"<think(?:ing)?>", _THINKING.sub("", text), maxsplit=1)[0]


# Numbers

_FIGURE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_FIGURES = re.compile(rf"(?:(?<![\w)\]}}.%])[-−]\s?)?[$£€¥]?(?<![\d.,])(?:{_FIGURE})(?:\s?/\s?\d+(?![\d/]))?")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_ONE_NUMBER = re.compile(
    rf"[-−+]?\s?[$£€¥]?\s?[-−]?(?:{_FIGURE})(?:\s?/\s?\d+)?\s?%?(?:\s?[^\W\d]+\.?){{0,4}}\.?"
)
_MARKED = re.compile(
    r"(?:\banswer\b[^.\n:=]{0,80}?(?:\bis\b|\bare\b|\bwould be\b|[:=])|####|答案[^。\n:]{0,20}?(?:是|为|:))\s*",
    re.IGNORECASE,
)


def _strict_number(text: str) -> Reading:
    """Read the number in ``\\boxed{}``: alone, or with its currency sign or unit."""
    values = set()
    for content in _BOX.findall(text):
        content = _typeset(content).strip()
        values.add(_number(content) if _ONE_NUMBER.fullmatch(content) else None)
    return Reading(next(iter(values))) if len(values) == 1 and None not in values else NOTHING


def _lenient_number(text: str) -> Reading:
    """Read a box, else the last marked number, else the last number.

    Several boxes that differ are no answer, unless the last is marked as the answer.
    """
    text = _own_part(text)
    boxes = [(box, value) for box in _BOX.finditer(text) if (value := _last_number(_typeset(box.group(1))))]
    if boxes:
        box, value = boxes[-1]
        line = text[: box.start()].rpartition("\n")[2]
        agree = len({value for _, value in boxes}) == 1
        return Reading(value) if agree or _CONCLUDING.search(line) else NOTHING
    text = fold(text)
    for marker in reversed(list(_MARKED.finditer(text))):
        rest = _typeset(text[marker.end() : marker.end() + _LINE].split("\n", 1)[0])
        if "=" in rest:  # "the answer is 9 * 2 = 18 dollars"
            rest = rest[rest.rfind("=") + 1 :]
        if (found := _FIGURES.search(rest)) and (value := _number(found.group())):
            return Reading(value)
    value = _last_number(_typeset(text[-_TAIL:])) or _last_number(_typeset(text))
    return (
        Reading(value, stated=_ONE_NUMBER.fullmatch(_typeset(text[:_TAIL])) is not None) if value else NOTHING
    )


_TAIL = 200  # characters at the end, where a last number mostly is
_LINE = 500  # characters read after a marker; a loop is a line without end
_ANSWER_LINE = re.compile(r"^ANSWER:.*$", re.MULTILINE)
_CONCLUDING = re.compile(r"\b(?:answer|therefore|thus|hence|so|finally)\b|答案|所以|因此", re.IGNORECASE)


def _own_part(text: str) -> str:
    """Cut a response that goes on, after its answer, with problems of its own making, as the examples do."""
    first = _ANSWER_LINE.search(text)
    return text[: first.end()] if first and "Reasoning:" in text[first.end() :] else text


def _typeset(text: str) -> str:
    """Return LaTeX as plain text: styles, spaces and signs dropped, fractions with a slash."""
    if "\\" in text or "{" in text:
        text = _FRACTION.sub(r"\1/\2", text)
        text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
        text = (
            text.replace("{,}", ",").replace("\\,", ",") if re.search(r"\d(?:\{,\}|\\,)\d{3}", text) else text
        )
        text = re.sub(r"\\[!,;: ]|\\(?=[$%])|[{}]", "", text)
    return text.replace("**", "")


def _last_number(text: str) -> str | None:
    found = _FIGURES.findall(text)
    return _number(found[-1]) if found else None


def _number(text: str) -> str | None:
    """Return a figure as canonical text: ``$1,800.00`` is ``1800``; None when it is none."""
    found = _FIGURES.search(text.replace("−", "-"))
    if found is None:
        return None
    figure = re.sub(r"[$£€¥,\s]", "", found.group())
    top, _, bottom = figure.partition("/")
    try:
        value = Decimal(top) / Decimal(bottom) if bottom else Decimal(top)
    except (InvalidOperation, ZeroDivisionError):
        return None
    text = f"{value:f}" if value == value.to_integral_value() else f"{value.normalize():f}"
    text = text.partition(".")[0] if value == value.to_integral_value() else text
    return "0" if text == "-0" else text


# Conclusions ("So the answer is X")

_SO = re.compile(r"So the answer is\s*:?\s*(.+)")
_CONCLUDED = re.compile(
    r"(?:\b(?:answer|conclusion|result)\b[^.\n:=]{0,60}?(?:\bis\b:?|\bwould be\b|:))\s*(\S.*)", re.IGNORECASE
)
_SHORT_WORDS = 12


def _conclusions(text: str, question: Question | None) -> tuple[Reading, Reading]:
    said = {_concluded(found.strip(), question, strictly=True) for found in _SO.findall(text)}
    strict = Reading(next(iter(said))) if len(said) == 1 and None not in said else NOTHING
    if strict.value and question is not None:
        return strict, strict
    folded = plain(text)
    said = {_concluded(found, question, strictly=False) for found in _CONCLUDED.findall(folded)} - {None}
    if said:
        return strict, Reading(next(iter(said))) if len(said) == 1 else NOTHING
    if question is not None:
        return strict, lenient_choice(text, question)
    if folded and "\n" not in folded and len(folded.split()) <= _SHORT_WORDS:
        return strict, Reading(_said(folded).replace(",", "") or None)
    return strict, NOTHING


def _concluded(found: str, question: Question | None, *, strictly: bool) -> str | None:
    if question is not None:
        if strictly:
            letter = re.fullmatch(r"\[?(?:\(([A-Z])\).*|([A-Z])[.\]]*)", found)
            value = (letter.group(1) or letter.group(2)) if letter else None
            return value if value and value in question.letters else None
        return lenient_choice(f"answer: {found}", question).value
    if strictly:
        return _said(found) or None
    # A sentence may go on: "valid, because ..."; a list of words may not be cut.
    found = re.split(r"\.(?:\s|$)|,? (?:because|since|as)\b", found, maxsplit=1)[0]
    return _said(found).replace(",", "") or None


def _said(text: str) -> str:
    """Fold case, blanks, a full stop and quotation marks; a bracket sequence keeps its brackets only."""
    text = " ".join(text.casefold().split()).strip("\"'“”‘’ ").removesuffix(".").strip("\"'“”‘’ ")
    if text and not any(map(str.isalnum, text)):
        return "".join(text.split())
    return text.strip("[] ")


# Code

_FENCE = re.compile(r"```[\w+]*\n(.*?)(?:```|\Z)", re.DOTALL)


def has_code(text: str, prompt: str) -> bool:
    """Return whether a response holds Python that compiles: fenced, bare, or as the prompt's continuation.

    Bare code may end in a fence that was never opened.
    """
    candidates = [code for code in (*_FENCE.findall(text), text.partition("```")[0]) if code.strip()]
    head = prompt[prompt.rfind("\ndef ") :] if "\ndef " in prompt else ""
    return any(_compiles(code) or (head and _compiles(f"{head}\n{code}")) for code in candidates)


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes: DeprecationWarning, later SyntaxWarning
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree)
    )
