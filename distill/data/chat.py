"""Documents as token ids, and which of a chat's tokens the assistant said."""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from distill_eval.errors import DataError

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]  # characters, the second not included
Document = tuple[
    np.ndarray, np.ndarray
]  # ids [n] int32; which of them count as something to be predicted [n] bool


class Encoder:
    """A tokenizer as training uses it: a copy of its own, so that another thread may use the original.

    ``num_rewritten`` counts assistant turns that do not count because the template writes them otherwise once they are
    history (see ``chats``). Raises DataError for a tokenizer without a fast backend or an end-of-text token.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(f"{type(tokenizer).__name__} gives no offsets; training needs a fast tokenizer")
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-text token (eos_token), which ends documents")
        backend = tokenizer.backend_tokenizer
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self.eos = int(tokenizer.eos_token_id)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._tokenizer = tokenizer
        special = {
            *tokenizer.all_special_tokens,
            *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special),
        }
        self._end_of_turn = re.compile(rf"(?:{'|'.join(map(re.escape, special))})(\s*)\Z")
        self.num_rewritten = 0

    def texts(self, texts: Sequence[str]) -> list[Document]:
        """Plain text, with what the tokenizer itself puts around text and an end-of-text token; all of it counts."""
        documents = []
        for encoding in self._backend.encode_batch_fast(texts):
            ids = encoding.ids
            if ids and ids[-1] != self.eos:
                ids.append(self.eos)
            documents.append((np.array(ids, np.int32), np.ones(len(ids), bool)))
        return documents

    def chats(
        self, chats: Sequence[list[dict[str, Any]]], places: Sequence[str], *, completion: bool
    ) -> list[Document]:
        """Chats in the tokenizer's template; with ``completion`` only what the assistant emits counts.

        That is each assistant turn's content and the token that ends it, not its header, nor what the template
        writes after the end. The template's own ``{% generation %}`` marks decide where it has some. Else a turn is
        what stands between ``chat[:i]`` with the generation prompt and ``chat[:i + 1]``, in the rendering of the
        whole. Where one of the two does not begin the whole (templates that drop the thinking of earlier turns), the
        turn is history, which the model would never emit, and does not count. Raises DataError with the chat's place.
        """
        texts, spans = [], []
        for chat, place in zip(chats, places, strict=True):
            text, marked = self._render(chat, place, marks=completion)
            if completion and marked is None:
                marked = self._assistant_spans(chat, text, place)
            texts.append(text)
            spans.append(marked)
        if not completion:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            return [(np.array(e.ids, np.int32), np.ones(len(e.ids), bool)) for e in encodings]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int32), _inside(encoding.offsets, marked))
            for encoding, marked in zip(encodings, spans, strict=True)
        ]

    def _render(
        self, chat: list[dict[str, Any]], place: str, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span] | None]:
        """A chat in the template, and what it marks (None when it has no marks, or none are asked for)."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            template = self._tokenizer.get_chat_template()
        except ValueError:
            raise DataError(
                f"{place}: the tokenizer has no chat template; give it one, or train on text"
            ) from None
        marks = marks and _MARKS.search(template) is not None
        try:
            rendered: Any = render_jinja_template(
                [chat],
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # what a template raises is its own affair
            raise DataError(f"{place}: the chat template refuses these messages ({error})") from error
        (text,), spans = rendered
        return text, spans[0] if marks else None

    def _assistant_spans(self, chat: list[dict[str, Any]], text: str, place: str) -> list[Span]:
        spans = []
        for i, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            last = i + 1 == len(chat)
            before, _ = self._render(chat[:i], place, prompt=True)
            after = text if last else self._render(chat[: i + 1], place)[0]
            if text.startswith(before) and text.startswith(after):
                turn = after[len(before) :]
                end = self._end_of_turn.search(turn)
                spans.append((len(before), len(before) + (end.start(1) if end else len(turn))))
            elif last:
                raise DataError(
                    f"{place}: in this chat template the last answer does not go on from the generation prompt; "
                    "use mask: all, or a template with {% generation %} marks"
                )
            else:
                self.num_rewritten += 1
        return spans


def _inside(offsets: list[tuple[int, int]], spans: Sequence[Span]) -> np.ndarray:
    """Which tokens lie wholly within one of the spans of characters."""
    if not offsets:
        return np.zeros(0, bool)
    begin, end = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T
    # Some tokenizers leave a token's leading space out of its offsets; it is the token's all the same.
    begin = np.minimum(begin, np.concatenate([[0], end[:-1]]))
    inside = np.zeros(len(offsets), bool)
    for first, last in spans:
        inside |= (begin >= first) & (begin < last) & (end > first) & (end <= last)
    return inside
