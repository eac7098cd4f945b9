"""Which option an answer names: in the form the prompt asks for, or as a reader would take it.

EvalScope's own extraction is kinder than its prompt and falls back to the last capital letter of the text, so
that ``so A dog`` chooses A; here an answer is a statement of one option, or nothing.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST_OPTIONS = 10  # where neither prompt nor record says how many there are
ENTIRE, LAST, ALONE = "entire", "last line", "alone"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response is taken to answer.

    ``value`` is None without an answer; ``stated``: the text gives it as its answer, so that what follows, or
    a missing end, does not change it. A last number or an option mentioned in passing is not stated.
    """

    value: str | None
    stated: bool = True


NOTHING = Reading(None, False)


@dataclass(frozen=True, slots=True)
class Question:
    """What a prompt offers, ``options`` being empty when it shows none, and where it wants which word and letter."""

    letters: str
    options: tuple[str, ...]
    place: str
    word: str


_FIRST_OPTION = re.compile(r"^([(（]?)A([).:、．）])\s*(?=\S)", re.MULTILINE)
_PROMPT_END = re.compile(r"<[|｜]|</s>|\[/INST\]|<end_of_turn>|\n\s*\n|\n(?=A: Let's think)|\nAnswer:|\n答案")


def read_question(prompt: str, num_options: int | None = None) -> Question:
    """Return what a prompt offers and asks for; ``num_options`` is believed where the prompt shows no options."""
    options: tuple[str, ...] = ()
    for first in reversed(list(_FIRST_OPTION.finditer(prompt))):
        options = _options_from(prompt, first)
        if len(options) > 1:
            break
    shown = options if len(options) > 1 else ()
    letters = LETTERS[: len(shown) or num_options or _MOST_OPTIONS]
    for word in ("ANSWER", "答案"):
        if re.search(rf"{word}[:：] ?\[LETTER\]", prompt):
            whole = "entire content of your response" in prompt or "全部内容" in prompt
            return Question(letters, shown, ENTIRE if whole else LAST, word)
    return Question(letters, shown, ALONE, "")


def _options_from(prompt: str, first: re.Match[str]) -> tuple[str, ...]:
    """Return the texts of the options listed from ``first``, marked like it."""
    opening, closing = re.escape(first.group(1)), re.escape(first.group(2))
    options, start = [], first.end()
    for letter in LETTERS[1:]:
        following = re.compile(rf"^{opening}{letter}{closing}\s*(?=\S)", re.MULTILINE).search(prompt, start)
        if following is None:
            break
        options.append(prompt[start : following.start()].strip())
        start = following.end()
    return (*options, _PROMPT_END.split(prompt[start:], maxsplit=1)[0].strip())


_ASKED = {word: re.compile(rf"{word}:\s*(?:([A-Z])|\[([A-Z])\])") for word in ("ANSWER", "答案")}
_LONE = re.compile(r"\(?([A-Z])[).]?")


def strict_choice(text: str, question: Question) -> Reading:
    """Read ``ANSWER: B``: the whole text or its last line, as the prompt asks; without such a prompt, ``B``.

    The letter may stand in the square brackets that the prompt prints; the width of characters does not matter.
    """
    text = fold(text).strip()
    if question.place == ALONE:
        return _letter(_LONE.fullmatch(text), question)
    asked = _ASKED[question.word]
    if question.place == ENTIRE:
        return _letter(asked.fullmatch(text), question)
    readings = [
        _letter(found, question) for line in text.splitlines() if (found := asked.fullmatch(line.strip()))
    ]
    last = _letter(asked.fullmatch(text[text.rfind("\n") + 1 :].strip()), question)
    return last if all(reading == last for reading in readings) else NOTHING


def _letter(found: re.Match[str] | None, question: Question) -> Reading:
    letter = found.group(found.lastindex or 0) if found else ""
    return Reading(letter) if letter and letter in question.letters else NOTHING


def lenient_choice(text: str, question: Question) -> Reading:
    """Read any statement of one option: a marked answer, a labelled line, or an option's text.

    Different answers in one response are no answer; ``not A but C`` is C.
    """
    text = _own_part(plain(text))
    if not text:
        return NOTHING
    if len(text) == 1 and text.upper() in question.letters:
        return Reading(text.upper())
    patterns = _patterns(question.letters)
    stated = _stated(text, question, patterns)
    if stated:
        return Reading(next(iter(stated))) if len(stated) == 1 and None not in stated else NOTHING
    labelled = _labelled(text, question, patterns)
    if labelled:
        return Reading(labelled) if labelled in question.letters else NOTHING
    named = _named_option(text, question)
    if named is None:
        return NOTHING
    # A response that is an option's text and nothing else states it.
    return Reading(named, _words(text) == _words(question.options[question.letters.index(named)]))


_ASKED_LINE = re.compile(r"^[^\w\n]*(?:answer|答案)\s*:.*$", re.IGNORECASE | re.MULTILINE)


def _own_part(text: str) -> str:
    """Cut a response that goes on, after its answer, with questions and answers of its own making."""
    first = _ASKED_LINE.search(text)
    if first is None:
        return text
    rest = text[first.end() :]
    return text[: first.end()] if _FIRST_OPTION.search(rest) and _ASKED_LINE.search(rest) else text


_LATEX_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_STYLE = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mathsf|bf)\s*\{([^{}]*)\}")
_LATEX_SIGNS = re.compile(r"\\[()\[\]]|\$")
_EMPHASIS = re.compile(r"[*`]+|(?<!\w)__?|__?(?!\w)")


def plain(text: str) -> str:
    """Drop what only sets text (markdown, LaTeX, width of characters); a LaTeX box becomes ``answer: ...``."""
    text = fold(text)
    if "\\" in text or "$" in text:
        text = _LATEX_STYLE.sub(r"\1", text)
        text = _LATEX_BOX.sub(r" answer: \1 ", text)
        text = _LATEX_SIGNS.sub("", text)
    return _EMPHASIS.sub("", text).strip()


def fold(text: str) -> str:
    """Return ``text`` with full-width letters and signs as ASCII."""
    return (
        text if text.isascii() else unicodedata.normalize("NFKC", text).replace("【", "[").replace("】", "]")
    )


@dataclass(frozen=True, slots=True)
class _Patterns:
    marked: re.Pattern[str]
    chosen: re.Pattern[str]
    correct: re.Pattern[str]
    label: re.Pattern[str]
    token: re.Pattern[str]
    denied: re.Pattern[str]


_FILLER = re.compile(
    r"(?:\b(?:the|most|likely|probably|definitely|clearly|therefore|option|letter|choice|answer|correct|following)\b"
    r"|选项|应该|[应是为选:\s])+",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"(?:both|either|neither)\b", re.IGNORECASE)


@lru_cache(maxsize=64)
def _patterns(letters: str) -> _Patterns:
    upper = f"[{letters[0]}-{letters[-1]}]"
    either = f"[{letters[0]}-{letters[-1]}{letters[0].lower()}-{letters[-1].lower()}]"
    end = r"(?![A-Za-z0-9_+\-]|['’]\w|\.\w)"
    # "a planet" is no choice: an A before a word counts only where the word goes on about the choice.
    upright = (
        rf"(?!A\s+(?!because|since|as\b|for\b|due|which|with\b|and\b|or\b|but\b|is\b|not\b|based|according)[a-z])"
        rf"{upper}{end}"
    )
    bracketed = rf"[(\[{{<\"“]\s*(?:option\s+)?{either}\s*[)\]}}>\"”.]"
    closed = rf"{either}(?:[).:](?!\w)|\s*$|\s*\n)"
    token = rf"(?:{bracketed}|{upright}|{closed})"
    return _Patterns(
        marked=re.compile(
            r"(?:\banswers?\b|\bchoice\b|\boption\b|\bsolution\b|\bcorrect one\b)[^.\n:=?]{0,60}?"
            r"(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|\bmust be\b|[:=]|->|→)"
            rf"|\b(?:answer|correct option|correct choice)(?=\s+\(?{upper}\b(?!\w))"
            r"|(?:答案|正确选项|正确的选项|正确的是|选项|结论)[^。\n:A-Za-z]{0,12}?(?:应该是|应为|是|为|选|:)"
            r"|(?:应选|故选|因此选|所以选|我选|选择|选)(?:了|项|的是)?",
            re.IGNORECASE,
        ),
        chosen=re.compile(
            r"\b(?:choose|chose|select|selected|pick|picked|go with|going with|opt for|it is|it's|it must be)\s+"
            rf"(?:(?:the\s+)?(?:option|answer|choice|letter)\s+)?(?={token})",
            re.IGNORECASE,
        ),
        correct=re.compile(
            rf"(?:^|(?<=[\s(\[\"“，。,]))[(\[]?({upright})[)\].:]?(?:\s[^.\n]{{0,80}}?)?\s*"
            r"(?:(?:is|would be|seems)\s+(?:the\s+|most\s+|likely\s+|also\s+)*"
            r"(?:correct|right|best|true|answer|appropriate)\b|(?:是|项)?正确)"
        ),
        label=re.compile(
            rf"^[^\S\n]*(?:[-•]\s+)?(?:option\s+)?[(\[]?({upper}|{either}(?=[)\]]))(?:[)\].:、]+(?!\w\.)|\s*$)",
            re.MULTILINE,
        ),
        token=re.compile(token),
        denied=re.compile(rf"(?:not|isn't|不是|不选)\s*(?:option\s+)?{token}", re.IGNORECASE),
    )


_JOINED = re.compile(
    r"\s*(?:(?:,|/|\bor\b|\band\b|&|、|或者?|和|与)\s*)+(?:option\s+|answer\s+)?", re.IGNORECASE
)
_INSTEAD = re.compile(r"\s*[,;]?\s*(?:but|rather|it's|it is|instead|而是|是)\s*", re.IGNORECASE)
_STATEMENT = 200  # characters read after a marker
_MARKING = ("answer", "choice", "option", "solution", "correct one", "答案", "选", "正确", "结论")
_CHOOSING = (
    "choose",
    "chose",
    "select",
    "pick",
    "go with",
    "going with",
    "opt for",
    "it is",
    "it's",
    "it must be",
)
_LISTED = re.compile(r"\b(?:choices|options)\b", re.IGNORECASE)
_BEFORE_NOT = re.compile(r"(?:not|n't|never|incorrect|wrong|不|非|错误)\W*(?:\w+\W+)?$", re.IGNORECASE)


def _stated(text: str, question: Question, patterns: _Patterns) -> set[str | None]:
    """Return the letters that statements name, with None for a statement that names several or denies one."""
    found: set[str | None] = set()
    folded, rests = text.casefold(), set()
    for pattern, words in ((patterns.marked, _MARKING), (patterns.chosen, _CHOOSING)):
        if any(word in folded for word in words):  # much faster than the search it spares
            markers = (marker for marker in pattern.finditer(text) if not _LISTED.search(marker.group()))
            rests |= {text[marker.end() :].split("\n\n", 1)[0][:_STATEMENT] for marker in markers}
    for rest in rests:
        found |= _after_marker(rest, question, patterns)
    for match in patterns.correct.finditer(text):
        between, after = text[match.end(1) : match.end()], text[match.end(1) :].split("\n", 1)[0]
        echoed = question.options and _words(after) in _option_words(question.options)
        if not echoed and not _BEFORE_NOT.search(text[: match.start(1)][-20:]) and " not " not in between:
            found.add(None if _contradicted(match.group(1), after, question) else match.group(1))
    if None in found and len(found) > 1 and len(found - {None}) == 1:
        # "It is not A. The answer is C."
        found.discard(None)
    return found


def _after_marker(rest: str, question: Question, patterns: _Patterns) -> set[str | None]:
    rest = rest.lstrip()
    named = _leading_option(rest, question)
    if named:
        return {named}
    denied = patterns.denied.match(rest)
    if denied:
        instead = _INSTEAD.match(rest, denied.end())
        return _after_marker(rest[instead.end() :], question, patterns) or {None} if instead else {None}
    first = patterns.token.match(rest)
    if first is None:
        filler = _FILLER.match(rest)
        if filler is None or not filler.end():
            return set()
        rest = rest[filler.end() :].lstrip()
        named = _leading_option(rest, question)
        if named:
            return {named}
        first = patterns.token.match(rest)
        if first is None:
            return {None} if _SEVERAL.match(rest) else set()
    letters = {_bare(first.group())}
    place = first.end()
    if _contradicted(next(iter(letters)), rest[place:], question):
        return {None}
    while joined := _JOINED.match(rest, place):
        following = patterns.token.match(rest, joined.end())
        if following is None:
            break
        letters.add(_bare(following.group()))
        place = following.end()
    if len(letters) > 2 and letters >= set(question.letters):
        return set()  # "Choose A, B, C, or D": the prompt's words, no answer
    return {next(iter(letters))} if len(letters) == 1 else {None}


def _contradicted(letter: str, after: str, question: Question) -> bool:
    """Return whether a letter is followed by the text of another option: two answers in one."""
    named = _leading_option(after.split("\n", 1)[0], question)
    return named is not None and named != letter


def _is_option(letter: str, said: str, question: Question) -> bool:
    texts = dict(zip(question.letters, _option_words(question.options), strict=False))
    return bool(said.strip()) and _words(said) == texts.get(letter)


def _bare(token: str) -> str:
    return re.sub(r"option", "", token, flags=re.IGNORECASE).strip('()[]{}<>"“”.: \n\t').upper()


def _labelled(text: str, question: Question, patterns: _Patterns) -> str | None:
    """Return the letter of labelled lines ("B) Earth"), "?" for two answers or all options, None without an answer."""
    labels = list(patterns.label.finditer(text))
    if not labels:
        return None
    letters = [label.group(1).upper() for label in labels]
    at_start = text[: labels[0].start(1)].strip("([-• ").casefold() in ("", "option ")
    if len(set(letters)) > 1 and (letters[:2] == ["A", "B"] or not at_start):
        # A full list in the response's own words must not be read for the one option that it quotes exactly.
        return "?" if set(letters) >= set(question.letters) else None
    lines = {label.group(1).upper(): text[label.end() :].split("\n", 1)[0] for label in labels}
    exact = [letter for letter, line in lines.items() if _is_option(letter, line, question)]
    if len(exact) > 1:
        return "?"
    return "?" if _contradicted(letters[0], text[labels[0].end() :], question) else letters[0]


@lru_cache(maxsize=4096)
def _option_words(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_words(option) for option in options)


def _words(text: str) -> str:
    """Lower-case words with single spaces; every CJK character is a word of its own."""
    return " ".join(re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", fold(text).casefold()))


def _leading_option(rest: str, question: Question) -> str | None:
    """Return the letter of the option whose text ``rest`` begins with, the longest where several do."""
    if not question.options:
        return None
    said = _words(rest) + " "
    starts = [
        (len(option), number)
        for number, option in enumerate(_option_words(question.options))
        # An option that is a letter cannot be told from a label.
        if option and said.startswith(option + " ") and option.upper() not in question.letters
    ]
    if not starts:
        return None
    longest = [number for length, number in starts if length == max(starts)[0]]
    return question.letters[longest[0]] if len(longest) == 1 else None


_DENIED_BEFORE = re.compile(r" (?:not|isn t|never|except|不 是|非) (?:\w+ )?$")


def _named_option(text: str, question: Question) -> str | None:
    """Return the letter of the only option whose text occurs in ``text`` and is not denied there."""
    said = f" {_words(text)} "
    hits = {}
    for number, option in enumerate(_option_words(question.options)):
        place = said.find(f" {option} ") if len(option) > 1 else -1
        if place >= 0:
            hits[number] = (place, place + len(option))
    spans = set(hits.values())
    # "Earth" inside "Earth and Moon" is the longer option's.
    kept = [
        number
        for number, (start, end) in hits.items()
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in spans)
    ]
    if len(kept) != 1 or _DENIED_BEFORE.search(said[: hits[kept[0]][0] + 1]):
        return None
    return question.letters[kept[0]]
