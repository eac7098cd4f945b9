"""The ``openai`` backend: a checkpoint that a server answers for.

Prompts are token ids, made here, so templates and tokenization are those of every other backend. The weights
behind a URL cannot be fingerprinted from here: what can be is checked (the served name, and the folder of a server
on this machine), and the rest is said in the run's notes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from distill_eval.backends.base import PathUnavailable
from distill_eval.backends.openai import completions, identity
from distill_eval.backends.openai.endpoint import ENGINE, find_endpoint
from distill_eval.backends.openai.transport import Answer, Transport
from distill_eval.backends.transformers.model import read_stop_tokens
from distill_eval.content import default_cache_dir
from distill_eval.errors import BackendError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

# Raised whenever a change of this package can move a number: it is part of every cache key.
REVISION = 1
# Requests in a batch of scores, which is committed as a whole, per request under way at once.
BATCHES_AHEAD = 4
PROBE_TEXT = "The sky is blue."


class ScoresUnavailable(BackendError, PathUnavailable):
    """An endpoint that generates only."""


class OpenAIBackend:
    """Asks an endpoint for one checkpoint; see ``distill_eval.backends.base.Backend`` for the contract."""

    def __init__(self, options: RunOptions, checkpoint: Checkpoint, tokenizer=None) -> None:
        self.checkpoint = checkpoint
        self.endpoint = find_endpoint(options, checkpoint)
        self.stop_tokens = frozenset(read_stop_tokens(checkpoint.folder))
        self._where = f"checkpoint '{checkpoint.label}'"
        self._cache_dir = (options.cache_dir or default_cache_dir()).expanduser()
        self._tokenizer = tokenizer
        self._transport = Transport(self.endpoint, self._where)
        self._identity: identity.Identity | None = None
        self._served: identity.Served | None = None
        self._same_weights = False
        self._dialect = completions.Dialect(ids=True, extras=True)
        self._score_dialect: Answer | None = None
        self._num_retokenized = 0
        self._num_other_prompts = 0

    @property
    def numerics(self) -> dict[str, str]:
        # The URL tells apart two servers of one model (in two dtypes, say), which nothing else here would.
        if self._identity is None:
            self._identity = self._find_identity()
        return {
            "engine": ENGINE,
            "revision": str(REVISION),
            "endpoint": self.endpoint.url,
            "served_model": self._identity.served,
            "server": self._identity.server,
            "stop_tokens": ",".join(map(str, sorted(self.stop_tokens))),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        label, url = self.checkpoint.label, self.endpoint.url
        if self._identity is None:
            return ()
        weights = (
            "started from this checkpoint's own weights"
            if self._same_weights
            else "whose weights could not be checked against the checkpoint's"
        )
        found = [
            f"{label}: answered by {url} as '{self._identity.served}' ({self._identity.server}), {weights}; dtype and "
            "batching are the server's, so answers may change with what else it does, and near-ties are unknown"
        ]
        if not self._dialect.ids:
            found.append(
                f"{label}: the endpoint takes no token ids: prompts were sent as text, and {self._num_other_prompts} "
                "of them were not the same number of tokens there"
            )
        if self._num_retokenized:
            found.append(
                f"{label}: the endpoint tells no token ids: those of {self._num_retokenized} generations were made "
                "from their text and may be fewer or more than it generated"
            )
        return tuple(found)

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        # Contexts in order: a server that keeps prefixes finds them while they are fresh.
        order = sorted(range(len(requests)), key=lambda i: (requests[i].context, requests[i].continuation))
        size = BATCHES_AHEAD * self.endpoint.concurrency
        return [order[start : start + size] for start in range(0, len(order), size)]

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        for request in batch:
            if not request.context or not request.continuation:
                raise BackendError(f"{self._where}: a log-likelihood needs a context and a continuation")
        if not batch:
            return []
        served = self._connect()
        # A server generates at least one token.
        self._check_length(max(len(r.context) + len(r.continuation) for r in batch), 1, served.max_length)
        if self._score_dialect is None:
            self._score_dialect = self._find_score_dialect(served.identity.served)
        dialect = self._score_dialect
        bodies = [completions.score_body(served.identity.served, request, dialect) for request in batch]
        responses: dict[int, ScoreResponse] = {}
        for index, answer in self._transport.post_all(completions.ROUTE, bodies):
            try:
                responses[index] = completions.read_score(answer, batch[index], dialect)
            except completions.UnexpectedAnswer as error:
                raise self._unexpected(error) from error
        return [responses[index] for index in range(len(batch))]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        for request in requests:
            if not request.prompt or request.max_new_tokens < 1:
                raise BackendError(f"{self._where}: a generation needs a prompt and at least one new token")
        if not requests:
            return
        served = self._connect()
        longest = max(requests, key=lambda r: len(r.prompt) + r.max_new_tokens)
        self._check_length(len(longest.prompt), longest.max_new_tokens, served.max_length)
        if not self._dialect.extras and any(request.sampling.top_k for request in requests):
            raise BackendError(
                f"{self._where}: endpoint {self.endpoint.url} takes no top_k, so answers would be drawn from other "
                "tokens than asked; give --top-k 0, or --greedy"
            )
        bodies = [
            completions.generate_body(
                served.identity.served,
                request,
                request.prompt if self._dialect.ids else self._prompt_text(request.prompt),
                self._dialect,
                sorted(self.stop_tokens),
            )
            for request in requests
        ]
        for index, answer in self._transport.post_all(completions.ROUTE, bodies):
            try:
                yield index, self._response(answer, requests[index])
            except completions.UnexpectedAnswer as error:
                raise self._unexpected(error) from error

    def close(self) -> None:
        self._transport.close()
        self._served = None  # who answers there is checked again

    def _find_identity(self) -> identity.Identity:
        """Return what the endpoint is, from itself or, while it is off, from when it was last seen."""
        url, asked = self.endpoint.url, self.endpoint.served
        try:
            return self._ask_identity(retries=0).identity
        except BackendError:
            known = identity.recall_identity(self._cache_dir, self.checkpoint, url, asked)
            return known or self._ask_identity(retries=None).identity

    def _ask_identity(self, retries: int | None) -> identity.Served:
        served = identity.ask_identity(self._transport, self.checkpoint, retries=retries)
        url, asked = self.endpoint.url, self.endpoint.served
        identity.remember_identity(self._cache_dir, self.checkpoint, url, asked, served.identity)
        return served

    def _connect(self) -> identity.Served:
        """Make sure, before the first request, that the right model answers; find out how to ask it."""
        if self._served is not None:
            return self._served
        named = self.numerics
        served = self._ask_identity(retries=None)
        now = served.identity
        if (now.served, now.server) != (named["served_model"], named["server"]):
            raise BackendError(
                f"{self._where}: {self.endpoint.url} is now '{now.served}' of {now.server} and was "
                f"'{named['served_model']}' of {named['server']}; run the same command again to ask this one"
            )
        if self.endpoint.on_loopback:
            self._same_weights = identity.check_root(
                served, self.checkpoint, self._cache_dir, self.endpoint.url
            )
        tokens = self._probe_tokens()
        try:
            self._dialect = completions.find_dialect(
                self._transport.post, now.served, tokens, self._prompt_text(tokens)
            )
        except completions.UnexpectedAnswer as error:
            raise self._unexpected(error) from error
        self._served = served
        return served

    def _find_score_dialect(self, model: str) -> Answer:
        found = completions.find_score_dialect(self._transport.post, model, self._probe_tokens())
        if found is None or not self._dialect.ids:
            raise ScoresUnavailable(
                f"{self._where}: endpoint {self.endpoint.url} tells no log-probabilities of a prompt's tokens, so "
                "there is no log-likelihood; run tasks that only generate, with --arms none, or serve the checkpoint "
                "with vLLM"
            )
        return found

    def _response(self, answer: Answer, request: GenerateRequest) -> GenerateResponse:
        generated = completions.read_generated(answer)
        tokenizer = self._load_tokenizer()
        if generated.tokens is not None:
            tokens, text = generated.tokens, self._decode(generated.tokens)
        else:
            text = generated.text
            tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
            self._num_retokenized += 1
        if generated.num_prompt_tokens not in (None, len(request.prompt)):
            self._num_other_prompts += 1
        return completions.to_response(
            generated, request, tokens, text, self.stop_tokens, tokenizer.eos_token_id
        )

    def _check_length(self, num_given: int, num_new: int, served: int | None) -> None:
        """Raise BackendError where a text does not fit the model's positions or the server's context."""
        most, owner = (
            served,
            f"{self.endpoint.url} has room for; start it with a longer context (--max-model-len)",
        )
        if most is None:
            most, owner = self.checkpoint.max_positions, "the checkpoint has positions for"
        if most is not None and num_given + num_new > most:
            raise BackendError(
                f"{self._where}: a text of {num_given} tokens and {num_new} new ones exceeds the {most} that {owner}"
            )

    def _unexpected(self, error: BackendError) -> BackendError:
        return BackendError(f"{self._where}: endpoint {self.endpoint.url} gave {error}")

    def _probe_tokens(self) -> tuple[int, ...]:
        return tuple(self._load_tokenizer().encode(PROBE_TEXT, add_special_tokens=False))

    def _prompt_text(self, tokens: Sequence[int]) -> str:
        return self._load_tokenizer().decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._load_tokenizer().decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from distill_eval.checkpoints import load_tokenizer

            self._tokenizer = load_tokenizer(self.checkpoint)
        return self._tokenizer
