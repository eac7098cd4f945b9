"""Stop strings token by token: at every step what decoding everything anew would say."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_eval.backends.transformers.stopping import (
    StopStrings,
    finish_text,
    full_decoder,
    part_decoder,
)

TEXT = (
    "Question: what is two plus three?\nAnswer: five.\n\nQuestion: und übermorgen?\nAnswer: \U0001f98a naïve 日本語。"
    " He said 'no', they don't know.\n\n\nThe end </s> of <|im_end|> it all: 12,345 x  y\t z. é"
) * 2
SPECIAL = ["<|pad|>", "<|turn|>", "<|end|>"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def sentencepiece_like() -> Tokenizer:
    """Blanks as a letter, the first one dropped, and unknown characters as bytes: Llama 2's kind."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", *SPECIAL, *every_byte],
        limit_alphabet=40,
        show_progress=False,
    )
    made.train_from_iterator(TEXT.split("\n"), trainer)
    state = json.loads(made.to_str())
    del state["added_tokens"][1 + len(SPECIAL) :]  # the bytes are text, not special
    return Tokenizer.from_str(json.dumps(state))


def word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["<unk>", *SPECIAL], show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "blanks": sentencepiece_like,
    "words": word_pieces,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[request.param](), pad_token="<|pad|>", eos_token="<|end|>"
    )


def random_tokens(tokenizer: Any, chance: random.Random) -> list[int]:
    """Text, pieces of it, tokens at random (broken characters among them), special tokens in between."""
    tokens: list[int] = []
    text = tokenizer.encode(TEXT, add_special_tokens=False)
    specials = tokenizer.convert_tokens_to_ids(SPECIAL)
    for _ in range(chance.randrange(1, 7)):
        kind = chance.randrange(5)
        start = chance.randrange(len(text))
        if kind < 2:
            tokens += text[start : start + chance.randrange(1, 40)]
        elif kind == 2:
            tokens += chance.choices(range(len(tokenizer)), k=chance.randrange(1, 30))
        elif kind == 3:
            tokens += chance.choices(specials, k=chance.choice([1, 2, 20]))
        else:
            tokens += [chance.choice(text)] * chance.choice([2, 5, 90])
    return tokens


def random_stops(text: str, chance: random.Random) -> tuple[str, ...]:
    stops = []
    for _ in range(chance.randrange(1, 5)):
        start = chance.randrange(len(text)) if text else 0
        cut = text[start : start + chance.choice([1, 2, 3, 5, 8, 20])]
        stops.append(chance.choice([cut, cut, cut[::-1], "never to be seen", "\n\n", "🦊", "Question:"]))
    return tuple(stop for stop in stops if stop and "\ufffd" not in stop) or ("\n",)


def check(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> int:
    """Compare with the definition up to the first stop string; return how many tokens were pushed."""
    decode = full_decoder(tokenizer)
    watch = StopStrings(stop, decode, part_decoder(tokenizer)).watch()
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[:end])
        expected = any(string in text for string in stop)
        assert watch.push(tokens[end - 1]) == expected, (tokens[:end], stop, text)
        if expected:
            first = min(text.index(string) for string in stop if string in text)
            assert finish_text(tokens[:end], stop, decode) == (text[:first], True)
            return end
    assert finish_text(tokens, stop, decode) == (decode(tokens), False)
    return len(tokens)


@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_as_decoding_everything(tokenizer: Any, seed: int):
    chance = random.Random(seed)
    lengths = []
    for _ in range(60):
        tokens = random_tokens(tokenizer, chance)
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lengths.append((check(tokenizer, tokens, random_stops(text, chance)), len(tokens)))
    assert sum(seen < all_ for seen, all_ in lengths) > 10
    assert sum(seen == all_ for seen, all_ in lengths) > 5


@pytest.mark.parametrize("kind", ["text", "one token", "broken characters", "special tokens"])
def test_the_work_grows_with_the_text_not_with_its_square(kind: str):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), pad_token="<|pad|>")
    text = tokenizer.encode(TEXT)
    (broken,) = set(tokenizer.encode("\U0001f98a")[:1])
    assert tokenizer.decode([broken]) == "\ufffd"
    tokens = {"text": text * 20, "one token": text[:1] * 3000, "broken characters": [broken] * 3000,
              "special tokens": [1] * 3000}[kind]  # fmt: skip
    decoded: list[int] = []
    part = part_decoder(tokenizer)

    def counted(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return part(tokens)

    def never(tokens: Sequence[int]) -> str:
        raise AssertionError("decoded in full without need")

    watch = StopStrings(("never: n", "tt\n\n\nTT", "QuestionAnswer"), never, counted).watch()
    assert not any(watch.push(token) for token in tokens)
    assert sum(decoded) < 60 * len(tokens)
    if kind == "text":
        assert sum(decoded) < 12 * len(tokens)


def test_only_the_whole_text_decides():
    """Parts may show what the whole does not; the watch goes on from the whole then."""
    pieces = ["a", "b", "|", "c"]

    def part(tokens: Sequence[int]) -> str:
        return "".join(pieces[token] for token in tokens)

    def whole(tokens: Sequence[int]) -> str:
        return part(tokens).replace("ab|", "x")

    watch = StopStrings(("b|", "xc"), whole, part).watch()
    assert [watch.push(token) for token in (0, 1, 2, 0, 1, 1, 2)] == [False] * 6 + [True]
    assert finish_text((0, 1, 2, 0, 1, 1, 2), ("b|", "xc"), whole) == ("xab", True)


def test_a_tokenizer_with_its_own_decoding_keeps_it():
    class Shouting(PreTrainedTokenizerFast):
        def decode(self, *arguments: Any, **settings: Any) -> Any:
            return str(super().decode(*arguments, **settings)).upper()

    tokenizer = Shouting(tokenizer_object=byte_level(), pad_token="<|pad|>")
    tokens = tokenizer.encode("what is it", add_special_tokens=False)
    assert part_decoder(tokenizer)(tokens) == "WHAT IS IT"
    watch = StopStrings(["IS"], full_decoder(tokenizer), part_decoder(tokenizer)).watch()
    assert any(watch.push(token) for token in tokens)


def test_no_and_empty_stop_strings():
    assert not StopStrings((), str).watch().push(3)
    assert StopStrings(("",), lambda tokens: "abc").watch().push(3)
    assert finish_text((1,), ("",), lambda tokens: "abc") == ("", True)
    assert finish_text((1,), (), lambda tokens: "abc") == ("abc", False)
