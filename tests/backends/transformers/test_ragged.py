"""Reading many sequences as one row, for every kind of model: each token sees what it would see alone."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from distill_eval.backends.transformers import flash_slots, ragged
from distill_eval.backends.transformers.cached import CachedModel
from distill_eval.backends.transformers.flash_slots import make_slots
from distill_eval.backends.transformers.opening import open_ragged
from distill_eval.backends.transformers.ragged import RaggedModel
from distill_eval.backends.transformers.scoring import row_tokens
from tests.backends.transformers.made import SIZES, other_model


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    )


def llama(**options: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def student(mixer: str, attention_layers: list[int]) -> Any:
    from distill.conversion import convert

    return convert(llama(head_dim=8), attention_layers=attention_layers, mixer=mixer, key_head_dim=4)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "wide heads": lambda: llama(head_dim=16),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=8)),
    "scaled logits": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SIZES, logits_scaling=3.0, attention_multiplier=0.3)
    ),
    "learnt positions": gpt2,
    "kda": lambda: student("kda", [1]),
    "kda alone": lambda: student("kda", []),
    "mamba2": lambda: student("mamba2", [0, 2]),
    "gated deltanet": lambda: student("gated_deltanet", [3]),
}


def texts(*lengths: int) -> list[tuple[int, ...]]:
    chance = random.Random(0)
    return [tuple(chance.randrange(3, 97) for _ in range(length)) for length in lengths]


@torch.inference_mode()
def alone(model: Any, text: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([text]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", MODELS)
def test_reading_and_stepping_equal_each_text_alone(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ragged, "JOINED_TOKENS", 12)
    model = other_model(kind, MODELS)
    read, reason = open_ragged(model)
    assert reason == ""
    assert read is not None
    common, other, a, b, c, d = texts(9, 5, 6, 1, 14, 3)
    steps = texts(4, 4, 4, 4, 4)
    whole = [common + other + a, common + other + b, common + c, d, common + d]
    (first,), _ = read.read([(None, common)], [])
    (second,), _ = read.read([(first, other)], [])
    jobs = [(second, a), (second, b), (first, c), (None, d), (first, d)]
    places = range(sum(len(own) for _, own in jobs))
    segments, output = read.read(jobs, places)
    logits = read.logits(output)
    for text, segment, (_, own) in zip(whole, segments, jobs, strict=True):
        assert segment.length == len(text)
        torch.testing.assert_close(
            logits[segment.start : segment.end], alone(model, text)[-len(own) :], atol=2e-5, rtol=1e-4
        )
    slots = make_slots(read, 6, 40)
    slots.insert(segments[:2])
    tails = [list(text) for text in whole]
    active = [0, 1]

    def step(number: int) -> None:
        with torch.inference_mode():
            got = slots.forward(torch.tensor([steps[row][number] for row in active]))
        for place, row in enumerate(active):
            tails[row].append(steps[row][number])
            expected = alone(model, tuple(tails[row]))[-1]
            torch.testing.assert_close(got[place], expected, atol=2e-5, rtol=1e-4)

    step(0)
    slots.insert(segments[2:])
    active += [2, 3, 4]
    step(1)
    for source, target in slots.drop([0, 3]):
        active[target] = active[source]
    del active[slots.num_active :]
    assert sorted(active) == [1, 2, 4]
    step(2)
    slots.insert([segments[3]])
    active.append(3)
    tails[3] = list(whole[3])
    step(3)
    assert slots.drop(range(4)) == []
    assert slots.num_active == 0


@pytest.mark.parametrize(
    ("make_model", "reason"),
    [
        (
            lambda: transformers.Gemma3ForCausalLM(
                transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6)
            ),
            "layers of kind sliding_attention",
        ),
        (
            lambda: transformers.Lfm2ForCausalLM(
                transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)
            ),
            "layers of kind conv",
        ),
        (
            lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=6)),
            "sliding_window",
        ),
        (
            lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "longest text of a batch",
        ),
    ],
)
def test_models_that_cannot_be_read_so(make_model: Callable[[], Any], reason: str):
    model = make_model().eval()
    before = model.config._attn_implementation
    read, why = open_ragged(model)
    assert read is None
    assert reason in why
    assert model.config._attn_implementation == before


def test_a_wrong_state_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """A model whose shared cache lies is not read raggedly, and the figure is told."""
    model = other_model("kda", MODELS)
    real = ragged.gather_states

    def forgetful(layer: int, parents: Any, like: Any) -> Any:
        return real(layer, [None if n else parent for n, parent in enumerate(parents)], like)

    monkeypatch.setattr(ragged, "gather_states", forgetful)
    read, why = open_ragged(model)
    assert read is None
    assert "differ by" in why


def test_backend_says_so_and_scores_the_same(
    make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    from distill_eval.schema.requests import GREEDY, GenerateRequest
    from tests.backends.transformers.made import answers_of, random_prompts, random_requests, run_plan

    requests = random_requests(20)
    prompts = [GenerateRequest(prompt, 6, GREEDY) for prompt in random_prompts(6)]
    shared = make_backend()
    scores, answers = run_plan(shared, requests), answers_of(shared, prompts)
    assert shared.notes == ()

    def refuse(self: Any, model: Any) -> None:
        raise ragged.Unreadable("it is shy")

    def check(note: str) -> None:
        backend = make_backend()
        for one, other in zip(scores, run_plan(backend, requests), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [answer.tokens for answer in answers] == [a.tokens for a in answers_of(backend, prompts)]
        assert backend.notes == (note,)

    monkeypatch.setattr(RaggedModel, "__init__", refuse)
    check("tiny: texts are generated in padded batches: it is shy")
    monkeypatch.setattr(CachedModel, "begin", lambda self, _: {}["cache"])
    check("tiny: every text is read by itself: it is shy; KeyError: 'cache'")


def test_prompts_share_their_header(model: Any, make_backend: Callable[..., Any], monkeypatch: Any):
    """Generation reads a few-shot header once, and more slots than prompts are never made."""
    from distill_eval.schema.requests import GREEDY, GenerateRequest
    from tests.backends.transformers.made import naive_greedy

    header, *questions = texts(60, 5, 9, 3, 7, 4, 8)
    tokens: list[int] = []
    real = RaggedModel.read

    def counting(self: Any, jobs: Any, wanted: Any) -> Any:
        tokens.extend(len(own) for _, own in jobs)
        return real(self, jobs, wanted)

    backend = make_backend(batch_size=2)
    list(backend.generate([GenerateRequest((5,), 1, GREEDY)]))  # the model is loaded and tried
    monkeypatch.setattr(RaggedModel, "read", counting)
    requests = [GenerateRequest(header + question, 5, GREEDY) for question in questions]
    requests.append(GenerateRequest(header + questions[0], 5, GREEDY, repeat=1))
    answers = dict(backend.generate(requests))
    for index, request in enumerate(requests):
        expected = naive_greedy(model, request.prompt, 5, backend.stop_tokens)
        assert list(answers[index].tokens) == expected
    assert sum(tokens) <= len(header) + sum(map(len, questions)) + len(questions[0])


def test_steps_that_cannot_be_recorded_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """As where a model asks the device for a number: what warming up moved is put back."""
    from distill_eval.backends.transformers.stepping import Stepper
    from distill_eval.schema.requests import GREEDY

    model = other_model("llama", MODELS)
    read, _ = open_ragged(model)
    assert read is not None
    slots = make_slots(read, 2, 64)
    slots.insert(read.read([(None, text) for text in texts(5, 9)], [])[0])
    stepper, plain = Stepper(slots, GREEDY), Stepper(slots, GREEDY)
    tries = []

    def record(count: int) -> Any:
        tries.append(count)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(stepper, "_record", record)
    for _ in range(2):
        assert stepper._replay(2) is None
    assert tries == [2]
    assert "not permitted" in read.unrecordable
    assert plain._replay(2) is None  # the next wave does not try again


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the slots for flash attention be tried without a GPU."""

    def flash(query: Any, keys: Any, values: Any, *ends: Any, scaling: Any, used: Any, **_: Any) -> Any:
        count = len(query)
        mask = torch.arange(len(keys) // count)[None] < used[:, None]
        keys, values = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (keys, values))
        sees = {"attn_mask": mask[:, None, None], "scale": scaling, "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(query[:, :, None], keys, values, **sees)[
            :, :, 0
        ]

    monkeypatch.setattr(flash_slots, "uses_flash", lambda *_: True)
    monkeypatch.setattr(flash_slots, "flash_attention", flash)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("kind", ["llama", "kda"])
def test_long_contexts_are_stepped_a_few_at_a_time(
    kind: str, at_once: int, flash_on_cpu: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flash_slots, "LONG_CAPACITY", 30)
    device = SimpleNamespace(multi_processor_count=2 * at_once)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: device)
    model = other_model(kind, MODELS)
    read, _ = open_ragged(model)
    assert read is not None
    whole = texts(20, 9, 15)
    slots = make_slots(read, 3, 32)
    for text in whole:
        slots.fill(text[:-2], 100)
    for place in (-2, -1):
        logits = slots.forward(torch.tensor([text[place] for text in whole]))
    for row, text in enumerate(whole):
        torch.testing.assert_close(logits[row], alone(model, text)[-1], atol=2e-5, rtol=1e-4)


def test_rotary_positions_go_on_beyond_those_declared(flash_on_cpu: None):
    model = other_model("few positions", {"few positions": lambda: llama(max_position_embeddings=16)})
    read, _ = open_ragged(model)
    assert read is not None
    text = texts(30)[0]
    slots = make_slots(read, 1, 64)
    slots.fill(text[:20], 100)
    for place, token in enumerate(text[20:], start=20):
        logits = slots.forward(torch.tensor([token]))
        torch.testing.assert_close(logits[0], alone(model, text)[place], atol=2e-5, rtol=1e-4)


def test_unused_slots_stay_within_learnt_positions(flash_on_cpu: None):
    """A recorded step advances slots that hold nothing; their positions must not leave the model's table."""
    model = other_model("learnt positions", MODELS)
    read, reason = open_ragged(model)
    assert read is not None, reason
    long, short = texts(60, 4)
    segments, _ = read.read([(None, long), (None, short)], [])
    slots = make_slots(read, 2, 128)  # capacities are rounded up, beyond the 64 positions of this model
    slots.insert([segments[1], segments[0]])
    slots.drop([1])
    text = list(short)
    for token in range(3, 23):
        logits = slots.forward(torch.tensor([token, 0]))[0]
        text.append(token)
        torch.testing.assert_close(logits, alone(model, tuple(text))[-1], atol=2e-5, rtol=1e-4)


def test_folder_fixture_is_read_raggedly(tiny_model_folder: Callable[..., Path]):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder()).eval()
    assert open_ragged(model)[0] is not None


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 2.0],
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_a_long_text_does_not_move_a_short_one(
    rotation: dict[str, Any], make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    from distill_eval.backends.transformers import model as loading
    from distill_eval.schema.requests import GREEDY, GenerateRequest, ScoreRequest
    from tests.backends.transformers.made import answers_of, naive_greedy, run_plan

    most = 32 if rotation["rope_type"] == "dynamic" else 128
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = llama(max_position_embeddings=most, rope_parameters=rotation).eval()
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: model)
    backend = make_backend()
    short, other, long = texts(17, 21, 70)
    requests = [ScoreRequest(text, (4, 5, 6)) for text in (short, long, other)]
    requests.append(ScoreRequest(short, long))
    for request, answer in zip(requests, run_plan(backend, requests), strict=True):
        if rotation["rope_type"] == "dynamic" and len(row_tokens(request)) > most:
            continue  # transformers keeps the rotation of the longest text it ever saw
        logits = alone(model, row_tokens(request))[-len(request.continuation) :].log_softmax(-1)
        expected = logits[range(len(request.continuation)), list(request.continuation)].sum()
        assert answer.logprob == pytest.approx(float(expected), abs=1e-4)
    prompts = [GenerateRequest(text, 8, GREEDY) for text in (short, long, other)]
    for request, answer in zip(prompts, answers_of(backend, prompts), strict=True):
        if request.prompt == long and rotation["rope_type"] == "dynamic":
            continue  # every token rotates anew, which no cache follows
        assert list(answer.tokens) == naive_greedy(model, request.prompt, 8, backend.stop_tokens)
