"""When a generation of vLLM's is over, by the rules of the transformers backend: end token, stop string, length.

vLLM stops at end tokens and at the length. Stop strings are looked for here, in text decoded as everywhere
else, every few tokens: what vLLM made after the one that completed a stop string is dropped.
"""

from collections.abc import Callable, Sequence

from distill_eval.schema.requests import GenerateRequest, GenerateResponse

Decode = Callable[[Sequence[int]], str]


def find_stop(tokens: Sequence[int], seen: int, request: GenerateRequest, decode: Decode) -> int | None:
    """Return with how many of ``tokens`` the text first holds a stop string; the first ``seen`` had none."""
    if not request.stop or not _holds_stop(tokens, len(tokens), len(tokens) - seen, request, decode):
        return None
    for end in range(seen + 1, len(tokens) + 1):
        if _holds_stop(tokens, end, 1, request, decode):
            text = decode(tokens[:end])
            if any(stop in text for stop in request.stop):
                return end
    return None


def respond(
    tokens: Sequence[int], reason: str, request: GenerateRequest, margins: Sequence[float], decode: Decode
) -> GenerateResponse:
    """Return the response to ``request`` of ``tokens``, its text cut before the first stop string in it."""
    text = decode(tokens)
    cuts = [text.index(stop) for stop in request.stop if stop in text]
    if cuts:
        text, reason = text[: min(cuts)], "stop_string"
    return GenerateResponse(tuple(tokens), text, reason, tuple(margins))


def _holds_stop(tokens: Sequence[int], end: int, new: int, request: GenerateRequest, decode: Decode) -> bool:
    """Whether a stop string shows in the last ``new`` of the first ``end`` tokens and what may begin it."""
    # A token may be a single byte of a character (four at most) or a special token (no text).
    window = 4 * max(map(len, request.stop)) + 8 + new - 1
    tail = decode(tokens[max(0, end - window) : end])
    return any(stop in tail for stop in request.stop)
