"""Requests to the completions route and what its answers mean; every server's dialect of it is here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.backends.openai.transport import Answer, EndpointError
from distill_eval.errors import BackendError
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse

ROUTE = "/completions"
Post = Callable[[str, Answer], Answer]

# A server takes its defaults from the model's generation_config.json: what is not asked for must be said.
PLAIN = {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
EXTRAS = {"repetition_penalty": 1.0, "min_p": 0.0, "skip_special_tokens": True, "return_token_ids": True}
NO_TOP_K = -1  # vLLM, SGLang and llama.cpp all take it for "off"; 0 is not that everywhere


@dataclass(frozen=True, slots=True)
class Dialect:
    """How generations are asked for. ``ids``: prompts go as token ids, else as text; ``extras``: beyond OpenAI's."""

    ids: bool
    extras: bool


GENERATION_DIALECTS = (Dialect(True, True), Dialect(True, False), Dialect(False, True), Dialect(False, False))

# How the log-probabilities of a prompt's tokens can be had: vLLM's own way, then that of the first completions API.
PROMPT_LOGPROBS = "prompt_logprobs"
SCORE_DIALECTS: tuple[Answer, ...] = (
    {PROMPT_LOGPROBS: 1, "max_tokens": 1},
    {"logprobs": 1, "echo": True, "max_tokens": 0},
    {"logprobs": 1, "echo": True, "max_tokens": 1},
)


class UnexpectedAnswer(BackendError):
    """An answer without what was asked for."""


def find_dialect(post: Post, model: str, tokens: Sequence[int], text: str) -> Dialect:
    """Try the ways of asking for one new token after ``tokens`` (``text``); raise what the last one met."""
    for dialect in GENERATION_DIALECTS:
        body = {
            "model": model,
            "prompt": tuple(tokens) if dialect.ids else text,
            "max_tokens": 1,
            "temperature": 0.0,
        }
        if dialect.extras:
            body |= {**EXTRAS, "top_k": NO_TOP_K, "stop_token_ids": []}
        try:
            answer = post(ROUTE, {**body, **PLAIN})
            _choice(answer)
        except (EndpointError, UnexpectedAnswer) as error:
            if isinstance(error, EndpointError) and error.status in (404, 405):
                raise BackendError(
                    f"{error}; the completions route is needed: prompts here have their chat template already, which "
                    "a server with the chat route alone would add again"
                ) from error
            if isinstance(error, EndpointError) and error.status not in (400, 422, 500, 501):
                raise
            if dialect == GENERATION_DIALECTS[-1]:
                raise
            continue
        if not dialect.ids or _usage(answer, "prompt_tokens") in (None, len(tokens)):
            return dialect
    raise AssertionError("the last way returns or raises")


def find_score_dialect(post: Post, model: str, tokens: Sequence[int]) -> Answer | None:
    """Return what makes the endpoint tell the log-probabilities of a prompt's tokens, None if nothing does."""
    request = ScoreRequest(tuple(tokens[:1]), tuple(tokens[1:]))
    for dialect in SCORE_DIALECTS:
        try:
            read_score(post(ROUTE, score_body(model, request, dialect)), request, dialect)
        except UnexpectedAnswer:
            continue
        except EndpointError as error:
            if error.status not in (400, 422, 500, 501):
                raise
            continue
        return dialect
    return None


def score_body(model: str, request: ScoreRequest, dialect: Answer) -> Answer:
    """Return the body that asks for the log-probabilities of all tokens of ``request``."""
    return {"model": model, "prompt": request.context + request.continuation, "temperature": 0.0, **dialect}


def read_score(answer: Answer, request: ScoreRequest, dialect: Answer) -> ScoreResponse:
    """Sum the log-probabilities of the continuation's tokens; UnexpectedAnswer where they are not those sent."""
    choice = _choice(answer)
    tokens = request.context + request.continuation
    start = len(request.context)
    if PROMPT_LOGPROBS in dialect:
        pairs = _prompt_logprobs(choice.get(PROMPT_LOGPROBS), tokens, start)
    else:
        pairs = _echoed_logprobs(choice.get("logprobs"), len(tokens), dialect["max_tokens"], start)
    # An own log-probability equal to the best is the argmax, or tied with it.
    return ScoreResponse(sum(own for own, _ in pairs), all(own >= best for own, best in pairs))


def generate_body(
    model: str, request: GenerateRequest, prompt: Any, dialect: Dialect, stop_tokens: Sequence[int]
) -> Answer:
    """Return the body that asks for one generation; ``prompt`` is the request's, as ids or text."""
    sampling = request.sampling
    body: Answer = {
        "model": model,
        "prompt": prompt,
        "max_tokens": request.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **PLAIN,
    }
    if not sampling.greedy:  # a seed of its own slows a server down and moves nothing in greedy decoding
        body["seed"] = int.from_bytes(request.digest()[:4], "little") & 0x7FFFFFFF
    if request.stop:
        body["stop"] = list(request.stop)
    if dialect.extras:
        body |= {**EXTRAS, "top_k": sampling.top_k or NO_TOP_K, "stop_token_ids": list(stop_tokens)}
        if not dialect.ids:
            body["add_special_tokens"] = False
    return body


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer as the endpoint gave it: ``tokens`` and ``num_tokens`` are None where it does not tell."""

    text: str
    finish_reason: str
    stop_reason: Any
    tokens: tuple[int, ...] | None
    num_tokens: int | None
    num_prompt_tokens: int | None


def read_generated(answer: Answer) -> Generated:
    """Return the one choice of an answer; UnexpectedAnswer where it is malformed."""
    choice = _choice(answer)
    tokens = choice.get("token_ids")
    if tokens is not None and not (isinstance(tokens, list) and all(isinstance(t, int) for t in tokens)):
        raise UnexpectedAnswer("token_ids that are no token ids")
    counted = _usage(answer, "completion_tokens")
    return Generated(
        text=choice["text"],
        finish_reason=str(choice.get("finish_reason")),
        stop_reason=choice.get("stop_reason"),
        tokens=None if tokens is None else tuple(tokens),
        num_tokens=counted if tokens is None else len(tokens),
        num_prompt_tokens=_usage(answer, "prompt_tokens"),
    )


def to_response(
    generated: Generated,
    request: GenerateRequest,
    tokens: tuple[int, ...],
    text: str,
    stop_tokens: frozenset[int],
    end_token: int | None,
) -> GenerateResponse:
    """Return the response of ``tokens`` and their ``text``, which is cut before a stop string here.

    ``end_token`` is added where the endpoint told text alone and ended it by itself. Raises UnexpectedAnswer where
    it ended the text for a reason of its own.
    """
    told, counted = generated.finish_reason, generated.num_tokens
    if told not in ("stop", "length"):
        raise UnexpectedAnswer(f"a text that ended with '{told}'")
    if told == "length" and counted is not None and counted < request.max_new_tokens:
        raise UnexpectedAnswer(
            f"a text cut after {counted} of {request.max_new_tokens} new tokens: the server allows no more (its "
            "context length, or max_new_tokens in the model's generation_config.json)"
        )
    reason = told
    if told == "stop" and request.stop:
        by_text = isinstance(generated.stop_reason, str)
        by_token = generated.tokens is not None and tokens and tokens[-1] in stop_tokens
        # Servers that tell neither are taken at the likelier: the string was asked for.
        reason = "stop_string" if by_text or not by_token else "stop"
    cuts = [text.index(stop) for stop in request.stop if stop in text]
    if cuts:
        text, reason = text[: min(cuts)], "stop_string"
    elif (
        reason == "stop_string"
    ):  # seen in the server's own rendering of the tokens, which may differ at the start
        text = generated.text
    if generated.tokens is None and reason == "stop" and end_token is not None:
        tokens = (*tokens, end_token)
    # How near another token was is not told; 0 says of every token that it may have been a near-tie.
    return GenerateResponse(tokens, text, reason, (0.0,) * len(tokens))


def _choice(answer: Answer) -> Answer:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UnexpectedAnswer("an answer without one choice")
    if not isinstance(choices[0].get("text"), str):
        raise UnexpectedAnswer("an answer without text")
    return choices[0]


def _usage(answer: Answer, name: str) -> int | None:
    usage = answer.get("usage")
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def _prompt_logprobs(entries: Any, tokens: Sequence[int], start: int) -> list[tuple[float, float]]:
    """Return (own, best) log-probability of each token from ``start`` on, out of vLLM's list of dicts by id."""
    if not isinstance(entries, list) or len(entries) != len(tokens):
        raise UnexpectedAnswer("no log-probabilities of the prompt's tokens")
    pairs = []
    for entry, token in zip(entries[start:], tokens[start:], strict=True):
        try:
            found = {key: float(value["logprob"]) for key, value in entry.items()}
            pairs.append((found[str(token)], max(found.values())))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnexpectedAnswer("log-probabilities of other tokens than the prompt's") from error
    return pairs


def _echoed_logprobs(logprobs: Any, length: int, num_new: int, start: int) -> list[tuple[float, float]]:
    """The same out of the two parallel lists of an echoed prompt; a server may add the new token after it."""
    own = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    top = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(own, list) or not isinstance(top, list) or not length <= len(own) <= length + num_new:
        raise UnexpectedAnswer("no log-probabilities of the prompt's tokens")
    try:
        return [
            (float(one), max(float(one), *map(float, best.values())))
            for one, best in zip(own[start:length], top[start:length], strict=True)
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise UnexpectedAnswer("log-probabilities of the prompt's tokens that are no numbers") from error
