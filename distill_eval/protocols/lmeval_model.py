"""The model behind lm-eval: token ids out to the cached client, scores back; no weights here."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from distill_eval.errors import DataError, OptionError
from distill_eval.schema.requests import ScoreRequest
from distill_eval.schema.run import RunOptions

ENCODED_AT_ONCE = 2048  # texts; bounds the tokenizer's working memory


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one of lm-eval's requests: token counts before truncation, and whether it was cut."""

    num_context_tokens: int
    num_continuation_tokens: int
    truncated: bool


class ClientLM(TemplateLM):
    """lm-eval's view of a checkpoint, tokenising and truncating as lm-eval's own ``HFLM`` does.

    ``sent`` maps lm-eval's request arguments (texts) to what was sent; ``spans`` holds start and end, in
    ``time.perf_counter`` seconds, of each call of the client. ``client`` may be None to render prompts only.
    """

    def __init__(self, client: Any, tokenizer: Any, options: RunOptions, label: str) -> None:
        super().__init__()
        self.client, self.tokenizer, self.options, self.label = client, tokenizer, options, label
        self.sent: dict[tuple[str, ...], Sent] = {}
        self.spans: list[tuple[float, float]] = []
        self._encoded: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        if self.tokenizer.bos_token_id is not None:
            return self.tokenizer.bos_token_id
        if self.tokenizer.eos_token_id is None:
            raise OptionError(
                f"{self.label}: the tokenizer has neither a start nor an end token to score after"
            )
        return self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int:
        return self.client.max_length

    @functools.cached_property
    def _prefix_text(self) -> str | None:
        no_prefix = self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None
        return None if no_prefix else self.tokenizer.decode(self.prefix_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is not None:
            return self.tokenizer.encode(string, verbose=False, add_special_tokens=add_special_tokens)
        if string not in self._encoded:
            self._encode_all([string])
        return self._encoded[string]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        # lm-eval encodes every context once for each of its choices, one text at a time; in batches, and
        # each text once, this takes half the time. What it asks for is known beforehand.
        pairs = [request.args for request in requests if request.args[0]]
        texts = (
            text for context, continuation in pairs for text in (context.rstrip(), context + continuation)
        )
        self._encode_all(list(dict.fromkeys(texts)))
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        finally:
            self._encoded.clear()

    def _encode_all(self, texts: Sequence[str]) -> None:
        # A templated prompt brings its own start token.
        started = [bool(self._prefix_text and text.startswith(self._prefix_text)) for text in texts]
        for own_start in set(started):
            chosen = [text for text, has in zip(texts, started, strict=True) if has == own_start]
            for first in range(0, len(chosen), ENCODED_AT_ONCE):
                part = chosen[first : first + ENCODED_AT_ONCE]
                # verbose=False: we cut what is too long ourselves, and count it.
                ids = self.tokenizer(part, add_special_tokens=not own_start, verbose=False)["input_ids"]
                self._encoded.update(zip(part, ids, strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        built = []
        for texts, context, continuation in requests:
            request, truncated = self._request(context, continuation)
            self.sent[texts] = Sent(len(context), len(continuation), truncated)
            built.append(request)
        return self._score(built)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts in windows of ``max_length``, each token once; all windows in one call."""
        built: list[ScoreRequest] = []
        owners: list[int] = []
        for owner, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            self.sent[(text,)] = Sent(1, len(tokens), False)
            windows = get_rolling_token_windows(
                token_list=tokens,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                built.append(self._request(context, continuation)[0])
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(built), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        raise NotImplementedError(
            "the log-likelihood protocol never generates; build_tasks refuses such tasks"
        )

    def _request(self, context: list[int], continuation: list[int]) -> tuple[ScoreRequest, bool]:
        """Cut from the left: the model reads at most ``max_length`` tokens; the last is only predicted."""
        if not continuation:
            raise DataError(f"{self.label}: a choice has no tokens of its own after its context")
        if len(continuation) > self.max_length:
            raise DataError(
                f"{self.label}: a choice has {len(continuation)} tokens, more than the model's "
                f"{self.max_length} positions"
            )
        kept = self.max_length + 1 - len(continuation)
        return ScoreRequest(tuple(context[-kept:]), tuple(continuation)), len(context) > kept

    def _score(self, requests: list[ScoreRequest]) -> list[tuple[float, bool]]:
        start = time.perf_counter()
        responses = self.client.score(requests, label=self.label)
        self.spans.append((start, time.perf_counter()))
        return [(response.logprob, response.is_greedy) for response in responses]

    @property
    def tokenizer_name(self) -> str:
        # lm-eval asks for it to key a request cache that we leave off.
        return getattr(self.tokenizer, "name_or_path", "").replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render with the checkpoint's template or the one asked for, thinking off where it knows that."""
        if not (self.options.chat_template or getattr(self.tokenizer, "chat_template", None)):
            raise OptionError(
                f"{self.label}: the checkpoint has no chat template; leave out --apply-chat-template or give "
                "one with --chat-template"
            )
        try:
            return self._render(chat_history, add_generation_prompt)
        except TemplateError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if self.options.system_prompt or len(others) == len(chat_history):
                raise OptionError(
                    f"{self.label}: the chat template refuses these messages ({error})"
                ) from error
            # As lm-eval's HFLM: a template that knows no system role gets a task's description left out.
            return self._render(others, add_generation_prompt)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        template = self.tokenizer.get_chat_template(self.options.chat_template)
        extra = {"enable_thinking": False} if "enable_thinking" in template else {}
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **extra,
        )
