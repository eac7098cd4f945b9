"""Stop strings: whether the text so far holds one, told token by token, and the text cut before it."""

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]

# Tokens decoded again at each look. A character is four tokens at most, so a cut between whole characters is found
# among the last few tokens unless the text is no text; then it is cut anywhere.
_MOST, _LEFT, _BROKEN = 12, 4, 32
_REPLACEMENT = "\ufffd"  # what bytes that are no character decode to


def full_decoder(tokenizer: Any) -> Decode:
    """Return what decodes a response: without special tokens, white space as it is."""

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return decode


def part_decoder(tokenizer: Any) -> Decode:
    """Return the same decoder, without transformers' overhead where the tokenizer is one of ``tokenizers``."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    own = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and own.decode is PreTrainedTokenizerBase.decode
        and own._decode is PreTrainedTokenizerFast._decode
    ):
        return tokenizer.backend_tokenizer.decode  # leaves special tokens out unless told otherwise
    return full_decoder(tokenizer)


def finish_text(tokens: Sequence[int], stop: Sequence[str], decode: Decode) -> tuple[str, bool]:
    """Return the text of ``tokens``, cut before the first stop string, and whether there was one."""
    text = decode(tokens)
    cuts = [text.index(string) for string in stop if string in text]
    return (text[: min(cuts)], True) if cuts else (text, False)


class StopStrings:
    """A list of stop strings and what is known of the tokens; shared by the requests that have this list.

    ``decode`` says what the text of a response is; ``decode_part`` the same of a part of it, if there is a
    cheaper way.
    """

    def __init__(self, stop: Sequence[str], decode: Decode, decode_part: Decode | None = None) -> None:
        self.stop = tuple(stop)
        self.decode = decode
        self.decode_part = decode_part or decode
        self.longest = max(map(len, self.stop), default=0)
        self.matters: dict[int, bool] = {}
        self._last = frozenset(string[-1:] for string in self.stop)
        # A decoder may take the first blank of what it is given, and "" is in every text.
        self._any_token = bool(self._last & {"", " "})

    def watch(self) -> "StopWatch":
        """Return the watch over one request."""
        return StopWatch(self)

    def look_at(self, token_id: int) -> bool:
        """Return, and remember, whether a stop string can end in this token, bytes of characters included."""
        piece = "" if self._any_token else self.decode_part([token_id])
        matters = self._any_token or _REPLACEMENT in piece or not self._last.isdisjoint(piece)
        self.matters[token_id] = matters
        return matters


class StopWatch:
    """Follows one response; only tokens in which a stop string may end are decoded when they come."""

    def __init__(self, strings: StopStrings) -> None:
        self._strings = strings
        self._matters = strings.matters
        self._tokens: list[int] = []
        self._start = 0  # tokens from here on are decoded at the next look
        self._before = ""  # the end of the text of those before

    def push(self, token_id: int) -> bool:
        """Add a token and return whether the text of all tokens now holds a stop string."""
        self._tokens.append(token_id)
        matters = self._matters.get(token_id)
        if matters is None:
            matters = self._strings.look_at(token_id)
        return matters and self._look()

    def _look(self) -> bool:
        strings = self._strings
        recent = self._tokens[self._start :]
        text = self._before + strings.decode_part(recent)
        if any(string in text for string in strings.stop):
            whole = strings.decode(self._tokens)
            if any(string in whole for string in strings.stop):
                return True
            # The parts do not add up to the whole: go on from the whole.
            self._start = max(self._start, len(self._tokens) - _LEFT)
            rest = strings.decode_part(self._tokens[self._start :])
            self._before = whole[: max(0, len(whole) - len(rest))][-strings.longest :]
        elif len(recent) > _MOST:
            self._move_on(recent, text)
        return False

    def _move_on(self, recent: list[int], text: str) -> None:
        """Leave all but the last few tokens behind, at a place where the text of both sides is the whole."""
        decode, rest = self._strings.decode_part, ""
        for left in (*range(_LEFT, 2 * _LEFT), *((_BROKEN // 2,) if len(recent) > _BROKEN else ())):
            rest = decode(recent[-left:])
            if left == _BROKEN // 2 or (rest and rest[0] != _REPLACEMENT and text.endswith(rest)):
                self._before = text[: max(0, len(text) - len(rest))][-self._strings.longest :]
                self._start = len(self._tokens) - left
                return
