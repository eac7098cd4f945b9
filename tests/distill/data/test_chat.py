"""Completion masks: what the assistant emits, no more and no less, in any template."""

import numpy as np
import pytest

from distill.data.chat import Encoder
from distill_eval.errors import DataError
from tests.conftest import TINY_CHAT_TEMPLATE

CHAT = [
    {"role": "user", "content": "What is two plus three?"},
    {"role": "assistant", "content": "  Five – 五 🦊, or so.\n"},
    {"role": "user", "content": "assistant\nFive"},
    {"role": "assistant", "content": "Five"},
]
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|turn|>system\nBe brief.<|end|>\n{% endif %}"
    "{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)
# No special token ends a turn, and the header ends with a space.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# As Qwen3's: the last answer has its thinking, or an empty one, and earlier answers have none.
THINKING = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n{{ m.get('thought', '') }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def said(tokenizer, chat=CHAT) -> list[str]:
    """The runs of counted tokens, decoded."""
    (ids, counts), *_ = Encoder(tokenizer).chats([chat], ["here"], completion=True)
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert ids.tolist() == whole
    borders = np.flatnonzero(np.diff(counts.astype(int), prepend=0, append=0))
    return [tokenizer.decode(ids[a:b]) for a, b in borders.reshape(-1, 2)]


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(
    ("template", "end"),
    [(TINY_CHAT_TEMPLATE, "<|end|>"), (CHATML, "<|end|>"), (MARKED, "<|end|>")],
    ids=["plain", "default system", "marked"],
)
def test_every_answer_counts_with_its_end(make_tokenizer, template, end, trim_offsets) -> None:
    tokenizer = make_tokenizer(template, trim_offsets=trim_offsets)
    expected = [m["content"] + end for m in CHAT if m["role"] == "assistant"]
    assert said(tokenizer) == expected
    system = [{"role": "system", "content": "You are a fox."}, *CHAT]
    assert said(tokenizer, system) == expected


def test_without_an_end_token_the_whole_turn_counts(make_tokenizer) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Five."}]
    runs = said(make_tokenizer(PLAIN), chat * 2)
    assert [run.strip() for run in runs] == ["Five.", "Five."]
    assert runs[1].endswith("\n\n")


def test_turns_that_the_template_rewrites_are_history(make_tokenizer) -> None:
    tokenizer = make_tokenizer(THINKING)
    assert said(tokenizer) == ["<think>\n\n</think>\n\nFive<|end|>"]
    chat = [*CHAT[:-1], CHAT[-1] | {"thought": "2 + 3"}]
    assert said(tokenizer, chat) == ["<think>\n2 + 3\n</think>\n\nFive<|end|>"]
    encoder = Encoder(tokenizer)
    encoder.chats([CHAT, CHAT[:2]], ["a", "b"], completion=True)
    assert encoder.num_rewritten == 1


def test_a_template_whose_prompt_does_not_begin_the_answer(make_tokenizer) -> None:
    template = TINY_CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
    with pytest.raises(DataError, match=r"^f\.jsonl, line 3: in this chat template the last answer"):
        Encoder(make_tokenizer(template)).chats([CHAT], ["f.jsonl, line 3"], completion=True)


def test_what_the_template_refuses_and_a_missing_template(make_tokenizer) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    chat = [{"role": "system", "content": "x"}]
    with pytest.raises(DataError, match=r"here: the chat template refuses these messages .*no system"):
        Encoder(make_tokenizer(template)).chats([chat], ["here"], completion=False)
    with pytest.raises(DataError, match="here: the tokenizer has no chat template"):
        Encoder(make_tokenizer(None)).chats([chat], ["here"], completion=False)
    with pytest.raises(DataError, match="end-of-text"):
        Encoder(make_tokenizer(eos_token=None))


def test_mask_all_and_text_count_everything(tokenizer) -> None:
    encoder = Encoder(tokenizer)
    (ids, counts), (again, _) = encoder.chats([CHAT, CHAT], ["a", "b"], completion=False)
    assert counts.all()
    assert ids.tolist() == again.tolist() == tokenizer.apply_chat_template(CHAT, return_dict=False)
    (ids, counts), (empty, _) = encoder.texts(["The red fox", ""])
    assert counts.all()
    assert ids.tolist() == [*tokenizer("The red fox")["input_ids"], tokenizer.eos_token_id]
    assert len(empty) == 0


def test_the_copy_of_the_tokenizer_neither_truncates_nor_changes_the_original(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer("The red fox", truncation=True, max_length=2, padding="max_length")
    (ids, _), *_ = Encoder(tokenizer).texts(["The red fox sleeps"])
    assert tokenizer.decode(ids) == "The red fox sleeps<|end|>"
    assert tokenizer.backend_tokenizer.truncation is not None


@pytest.mark.slow
def test_on_a_real_tokenizer(demo_teacher) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_teacher.folder)
    for chat in ([*CHAT, {"role": "user", "content": "Sure?"}], CHAT[:2], CHAT):
        answers = [m["content"] + "<|im_end|>" for m in chat if m["role"] == "assistant"]
        # Its pieces join the header's newline to a space after it; the model never emits that token.
        assert said(tokenizer, chat) == [answer.removeprefix(" ") for answer in answers]
