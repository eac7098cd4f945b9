"""Data that the teacher makes: where prompts end, what is dropped, going on after a kill, what is recorded."""

import json
import random
import zlib
from collections import Counter
from dataclasses import replace

import pytest

from distill.data import teacher_made, teacher_writer
from distill.data.filters import Seen, answers_itself, refuse
from distill.data.teacher_made import make_data
from distill.data.teacher_writer import Making, Writer
from distill.data.topics import CHAT_KINDS, TEXT_KINDS, TOPICS, draw
from distill_eval.backends import open_backend
from distill_eval.backends.fake import FakeBackend
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import CheckpointError, DataError, OptionError, OutputError, UserError
from distill_eval.schema.run import RunOptions

# Both put in a system prompt of their own where there is none, as SmolLM2's and Qwen2.5's templates do.
SMOLLM2_LIKE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|turn|>system\nYou are "
    "Smol.<|end|>\n{% endif %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
QWEN_LIKE = (
    "{%- if messages[0].role == 'system' %}{{- '<|turn|>system\\n' + messages[0].content + '<|end|>\\n' }}"
    "{%- else %}{{- '<|turn|>system\\nYou are Qwen.<|end|>\\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if message.role != 'system' %}{{- '<|turn|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}{%- endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WORDS = [
    "fox", "bridge", "boat", "harbour", "rain", "clock", "baker", "bread", "rolls", "cake", "morning", "noon", "sky",
    "red",
]  # fmt: skip
FAKE = RunOptions(backend="fake")
MAKING = Making(chat_tokens=3000, text_tokens=2000, max_user_tokens=64, max_new_tokens=120, round_size=24)


@pytest.fixture(scope="module")
def teacher(tiny_model_folder, tmp_path_factory):
    """A maker of (checkpoint, tokenizer) of a tiny teacher with a template."""

    def make(template: str | None = SMOLLM2_LIKE, **changes):
        folder = tiny_model_folder("teacher", chat_template=template, **changes)
        checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path_factory.mktemp("cache"))
        return checkpoint, load_tokenizer(checkpoint)

    return make


@pytest.fixture(scope="module")
def plain(teacher):
    return teacher()


def say(prompt: str) -> str:
    """Return words that the prompt alone decides, among them what must be dropped."""
    rng = random.Random(zlib.crc32(prompt.encode()))
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 45)))
    return rng.choice([text] * 8 + ["", "bread " * 30, f"{text}\nAnswer: red", f"{text} <|turn|>user"])


class Asked(FakeBackend):
    """The fake backend, remembering its requests; ``ends_after`` calls the process is interrupted."""

    def __init__(self, checkpoint, tokenizer, answer=say, ends_after=None):
        super().__init__(FAKE, checkpoint, tokenizer, answer)
        self.requests, self.calls, self.ends_after = [], 0, ends_after

    def generate(self, requests):
        self.calls += 1
        self.requests += requests
        for number, found in enumerate(super().generate(requests)):
            if self.calls == self.ends_after and number == len(requests) // 2:
                raise KeyboardInterrupt
            yield found


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("template", [SMOLLM2_LIKE, QWEN_LIKE])
def test_a_user_turn_begins_where_the_template_lets_it(teacher, template):
    checkpoint, tokenizer = teacher(template)
    backend = Asked(checkpoint, tokenizer)
    writer = Writer(checkpoint, tokenizer, backend, MAKING)
    drafts = teacher_writer.make_chats(writer, range(60), Seen(3))
    prompts = [tokenizer.decode(request.prompt) for request in backend.requests]
    for draft, prompt in zip(drafts, prompts[:60], strict=True):
        system = draft.ask.system or ("You are Smol." if template == SMOLLM2_LIKE else "You are Qwen.")
        assert prompt == f"<|turn|>system\n{system}<|end|>\n<|turn|>user\n{draft.ask.beginning}"
    assert writer.markers == ("<|pad|>", "<|turn|>", "<|end|>")
    answered = [draft for draft in drafts if len(draft.said) >= 2]
    assert len(answered) > 20
    for draft, prompt in zip(answered, prompts[60:], strict=False):
        asked = [{"role": "user", "content": draft.said[0]}]
        # The steering system prompt is gone.
        assert prompt == tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert draft.said[0].startswith(draft.ask.beginning.strip())
    going_on = [draft for draft in answered if draft.why is None and draft.ask.turns == 2]
    seconds = [prompt for prompt in prompts[60 + len(answered) :] if prompt.endswith("<|turn|>user\n")]
    assert len(seconds) == len(going_on) > 0
    for draft, prompt in zip(going_on, seconds, strict=True):
        assert draft.ask.system in prompt
        assert prompt.endswith(f"{draft.said[1]}<|end|>\n<|turn|>user\n")


def test_a_template_without_system_prompts_is_not_steered(teacher):
    checkpoint, tokenizer = teacher(NO_SYSTEM)
    writer = Writer(checkpoint, tokenizer, Asked(checkpoint, tokenizer), MAKING)
    assert writer.user_prefix([], "You answer questions about birds.") == "[user] "
    assert "takes no system prompt" in writer.notes[0]
    assert writer.markers == ("<|pad|>", "<|turn|>", "<|end|>", "[assistant]")


def test_draws_are_many_and_depend_on_seed_and_index_alone():
    asks = [draw(CHAT_KINDS, 0, index) for index in range(4000)]
    assert asks == [draw(CHAT_KINDS, 0, index) for index in range(4000)]
    assert asks != [draw(CHAT_KINDS, 1, index) for index in range(4000)]
    assert len({(ask.kind, ask.topic) for ask in asks}) > 400
    assert {ask.kind for ask in asks} == {kind.name for kind in CHAT_KINDS}
    for ask in (*asks, *(draw(TEXT_KINDS, 0, index) for index in range(2000))):
        assert not set("{}") & set(ask.beginning + ask.system)
        assert ask.beginning == ask.beginning.rstrip(" ")  # the next token brings its own blank
    assert all(set(kind.topics) <= set(TOPICS) for kind in (*CHAT_KINDS, *TEXT_KINDS))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("What is the capital of France?", None),
        ("Why?", "short"),
        ("", "short"),
        ("How do I write <|im_start|> here", "markers"),
        ("a caf\ufffd on the corner", "broken characters"),
        ("She wants to bake. " * 12, "loop"),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 15 are numbers.", None),
        (" ".join(random.Random(0).choices([*WORDS, *"abcdefghij"], k=200)), None),
    ],
)
def test_what_is_refused(text, why):
    assert refuse(text, least_words=3, markers=("<|im_start|>",)) == why


def test_a_user_turn_with_its_answer():
    assert answers_itself("What is 2 plus 3?\nAnswer: 5")
    assert answers_itself("How much does he earn?\nA:")
    assert not answers_itself("Choose one.\nA) red\nB) blue\nExplain your answer: why?")


def test_duplicates_and_near_ones():
    rng = random.Random(0)
    text = [f"word{rng.randint(0, 500)}" for _ in range(120)]
    near = [*text[:60], "other", *text[61:]]
    far = [*text[:40], *(f"else{n}" for n in range(80))]
    seen = Seen(5)
    assert seen.add(" ".join(text)) is None
    assert seen.add("  ".join(text).upper()) == "duplicate"
    assert seen.add(" ".join(near)) == "near duplicate"
    assert seen.add(" ".join(far)) is None
    assert seen.add("Yes") is None
    seen.discard(" ".join(text))
    assert seen.add(" ".join(near)) is None


def test_rows_load_and_the_record_adds_up(plain, tmp_path):
    import datasets

    checkpoint, tokenizer = plain
    record = make_data(checkpoint, tokenizer, Asked(checkpoint, tokenizer), MAKING, tmp_path / "data")
    assert record == json.loads((tmp_path / "data" / "made.json").read_text())
    assert record["complete"]
    assert record["teacher"]["name"] == "teacher"
    assert record["teacher"]["fingerprint"] == checkpoint.fingerprint
    assert record["settings"]["answer"] == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert record["backend"]["engine"] == "fake"
    assert str(tmp_path) not in json.dumps(record)
    for name, wanted in (("chat", 3000), ("text", 2000)):
        part, rows = record["files"][name], read(tmp_path / "data" / f"{name}.jsonl")
        assert part["kept"] == len(rows)
        assert part["kept_tokens"] == sum(row["num_tokens"] for row in rows) >= wanted
        assert part["asked"] == part["kept"] + sum(part["dropped"].values())
        assert part["kinds"] == Counter(row["kind"] for row in rows)
        assert part["generated_tokens"] > part["kept_tokens"]
        assert len({row["index"] for row in rows}) == len(rows)
        assert part["rounds"] > 2
        loaded = datasets.load_dataset(
            "json", data_files=str(tmp_path / "data" / f"{name}.jsonl"), cache_dir=str(tmp_path / "cache")
        )["train"]
        assert len(loaded) == len(rows)
    chats, dropped = read(tmp_path / "data" / "chat.jsonl"), record["files"]["chat"]["dropped"]
    for why in ("user: empty", "user: loop", "user: markers", "user: answers itself", "answer: empty"):
        assert dropped[why] > 0
    assert {len(row["messages"]) for row in chats} == {2, 4}
    assert sum(record["files"]["chat"]["cut_short"].values()) > 0
    for row in chats:
        assert [message["role"] for message in row["messages"]][:2] == ["user", "assistant"]


@pytest.mark.parametrize("ends_after", [1, 2, 3, 9, 14])
def test_a_killed_run_goes_on_to_the_same_files(plain, tmp_path, ends_after):
    checkpoint, tokenizer = plain
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    backend = Asked(checkpoint, tokenizer)
    expected = make_data(checkpoint, tokenizer, backend, MAKING, whole)
    assert backend.calls > 14
    with pytest.raises(KeyboardInterrupt):
        make_data(checkpoint, tokenizer, Asked(checkpoint, tokenizer, say, ends_after), MAKING, killed)
    for name in ("chat.jsonl", "text.jsonl"):  # as far as the kill let a round be written
        with (killed / name).open("a") as file:
            file.write('{"messages": [{"ro')
    again = Asked(checkpoint, tokenizer)
    found = make_data(checkpoint, tokenizer, again, MAKING, killed)
    assert again.calls >= backend.calls - ends_after
    assert found["files"] == expected["files"]
    for name in ("chat.jsonl", "text.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert make_data(checkpoint, tokenizer, finished := Asked(checkpoint, tokenizer), MAKING, killed) == found
    assert finished.calls == 0


def test_a_real_model_interrupted_and_not(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_writer, "refuse", lambda text, **_: None)  # what it writes is noise
    checkpoint, tokenizer = teacher(num_tokens=320, std=0.05)
    making = Making(
        chat_tokens=0, text_tokens=1500, max_new_tokens=60, round_size=16, text=replace(MAKING.text, top_k=0)
    )

    def run(out, rounds=None):
        backend = open_backend(RunOptions(device="cpu", dtype="float32"), checkpoint, tokenizer)
        saved = []

        def stop(name, rows, kept, wanted, generated):
            saved.append(kept)
            if rounds and len(set(saved)) > rounds:
                raise KeyboardInterrupt

        try:
            make_data(checkpoint, tokenizer, backend, making, out, stop)
        finally:
            backend.close()

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", rounds=2)
    run(tmp_path / "parts")
    rows = read(tmp_path / "whole" / "text.jsonl")
    assert len(rows) > 16
    assert (tmp_path / "parts" / "text.jsonl").read_bytes() == (
        tmp_path / "whole" / "text.jsonl"
    ).read_bytes()


def test_a_text_ends_before_a_special_token(plain, tmp_path):
    checkpoint, tokenizer = plain
    written = " ".join(WORDS * 2)
    backend = Asked(checkpoint, tokenizer, lambda prompt: f"{written}{len(prompt)}<|turn|>user says more")
    making = replace(MAKING, chat_tokens=0, text_tokens=100)
    make_data(checkpoint, tokenizer, backend, making, tmp_path)
    for row in read(tmp_path / "text.jsonl"):
        assert row["text"].rstrip("0123456789").endswith(written)
    assert all(request.prompt[0] == tokenizer.eos_token_id for request in backend.requests)


def test_unfinished_answers_are_dropped_or_kept(plain, tmp_path):
    checkpoint, tokenizer = plain

    def long(prompt: str) -> str:
        rng = random.Random(prompt)
        return " ".join(rng.choices(WORDS, k=500 if prompt.endswith("assistant\n") else 9))

    making = replace(MAKING, chat_tokens=500, text_tokens=0)
    with pytest.raises(DataError, match=r"none of 24 chats could be kept \(answer: unfinished 2") as error:
        make_data(checkpoint, tokenizer, Asked(checkpoint, tokenizer, long), making, tmp_path / "dropped")
    assert "\n" not in str(error.value)
    making = replace(making, keep_unfinished=True)
    record = make_data(checkpoint, tokenizer, Asked(checkpoint, tokenizer, long), making, tmp_path / "kept")
    assert record["files"]["chat"]["kept"] > 0


def test_mistakes_are_one_line(plain, teacher, tmp_path):
    def make(out, making=MAKING, given=plain):
        return make_data(*given, Asked(*given), making, out)

    base = teacher(None)
    with pytest.raises(CheckpointError, match="has no chat template, so it can write no chats"):
        make(tmp_path / "base", given=base)
    make(tmp_path / "base", replace(MAKING, chat_tokens=0, text_tokens=50), base)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="neither empty nor teacher-made data"):
        make(tmp_path / "foreign")
    make(tmp_path / "data")
    with pytest.raises(OutputError, match="was made with settings seed 0, not 1"):
        make(tmp_path / "data", replace(MAKING, seed=1))
    with pytest.raises(OutputError, match="was made with teacher fingerprint"):
        make(tmp_path / "data", given=teacher(seed=5))
    (tmp_path / "data" / "chat.jsonl").write_text("")
    with pytest.raises(OutputError, match="has 0 bytes of the"):
        make(tmp_path / "data")
    (tmp_path / "data" / "made.json").write_text("[]")
    with pytest.raises(OutputError, match="no record of this version"):
        make(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="neither empty"):
        make(tmp_path / "file")
    with pytest.raises(DataError, match="no room"):
        make(tmp_path / "small", replace(MAKING, max_new_tokens=600))


def test_the_command(plain, tmp_path, monkeypatch, capsys):
    import typer

    from distill.cli.generate_data import generate_data_command, parse_count

    assert [parse_count("-", text) for text in ("2000", "2_000", "2k", "0.5M", "1G", "0")] == [
        2000, 2000, 2000, 500_000, 10**9, 0,
    ]  # fmt: skip
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(generate_data_command)
    monkeypatch.setattr(teacher_made, "SMALLEST_ROUND", 8)

    def run(*arguments):
        given = [str(plain[0].folder), str(tmp_path / "data"), "--backend", "fake", *arguments]
        app(given, standalone_mode=False)
        return capsys.readouterr()

    for arguments, message in (
        (("--chat-tokens", "many"), "--chat-tokens takes a whole number of tokens"),
        (("--text-tokens", "-5"), "--text-tokens takes a whole number of tokens"),
        (("--chat-tokens", "0", "--text-tokens", "0"), "are both 0"),
        (("--unfinished", "kep"), "did you mean 'keep'"),
        (("--text-temperature", "0"), "--text-temperature must be above 0"),
        (("--round-size", "0"), "--round-size must be at least 1"),
    ):
        with pytest.raises(OptionError, match=message) as error:
            run(*arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()
    # The fake backend's canned texts are all alike: nothing of a second round could be kept.
    sizes = ("--chat-tokens", "10", "--text-tokens", "0", "--max-new-tokens", "64")
    printed = run(*sizes, "--json")
    assert json.loads(printed.out)["complete"]
    assert printed.err == ""
    assert "chat.jsonl" in run(*sizes).out
    with pytest.raises(UserError, match="settings seed 0, not 3"):
        run(*sizes, "--seed", "3")
