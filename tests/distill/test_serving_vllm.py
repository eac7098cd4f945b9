"""Students inside vLLM, where it is installed: the engine on a CPU, on a GPU the kernels that work in its pages."""

import importlib.util

import pytest
import torch

from tests.distill.conftest import CUDA_BARS, worst

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

# Prompts of one token, of several chunks, and of exactly a chunk, more of them than are read at once.
LENGTHS = (1, 2, 5, 17, 64, 65, 130, 3, 1)
NEW_TOKENS = 12


def add_noise(student):
    """Let every part of the mixers do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".self_attn." in name and not name.endswith(("A_log", "dt_bias")):
                parameter += 0.1 * torch.randn_like(parameter)


def open_engine(student, folder, monkeypatch, dtype):
    """Write ``student`` to ``folder`` and open it in vLLM, in this process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    from distill.serving import register

    register()
    from vllm import LLM

    student.save_pretrained(folder)
    return LLM(
        str(folder),
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/benchmarks/serving_gpu.py measures it there")
@pytest.mark.parametrize(
    ("mixer", "teacher", "layers"),
    [
        ("kda", "llama", (1, 3)),
        ("kda", "qwen2", ()),
        ("gated_deltanet", "qwen3", (2,)),
        ("mamba2", "llama", (1, 3)),
    ],
)
def test_the_engine_says_what_the_student_says(make_teacher, tmp_path, monkeypatch, mixer, teacher, layers):
    from vllm import SamplingParams

    from distill.conversion import convert

    # vLLM's attention on a CPU takes no heads of fewer than 32 channels.
    sizes = {"hidden_size": 128} | ({"head_dim": 64} if teacher == "qwen3" else {})
    student = convert(make_teacher(teacher, **sizes), attention_layers=layers, mixer=mixer)
    add_noise(student)
    engine = open_engine(student, tmp_path / "student", monkeypatch, "float32")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    settings = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        expected = student.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        assert list(output.outputs[0].token_ids) == expected[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs vLLM's CPU engine")
def test_every_weight_is_loaded_as_it_is(make_teacher, tmp_path, monkeypatch):
    from distill.conversion import convert

    teacher = make_teacher("llama", hidden_size=128).bfloat16()
    student = convert(teacher, attention_layers=(1, 3), mixer="kda")
    engine = open_engine(student, tmp_path / "student", monkeypatch, "bfloat16")
    (held,) = engine.apply_model(lambda model: {name: x.clone() for name, x in model.named_parameters()})
    (packed,) = engine.apply_model(lambda model: model.model.layers[0].self_attn.mixer.in_weight)
    for name, parameter in student.model.layers[0].self_attn.named_parameters():
        got = held[f"model.layers.0.self_attn.mixer.{name}"]
        assert got.dtype == parameter.dtype  # the decay's are float32
        assert torch.equal(got, parameter)
    assert torch.equal(packed[: student.config.hidden_size], student.model.layers[0].self_attn.q_proj.weight)


def serve(student, dtype, device):
    """Return the student's first mixer as vLLM has it."""
    from distill.serving_layers import ServedKDAMixer

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as vLLM makes its models
    try:
        with torch.device(device):
            mixer = ServedKDAMixer(student.config, 0)
    finally:
        torch.set_default_dtype(before)
    own = student.model.layers[0].self_attn
    for name, parameter in mixer.named_parameters():
        parameter.data.copy_(own.get_parameter(name))
    return mixer


def make_pages(student, dtype, device, scale=1.0):
    """Return caches of six pages that others have left, longer than the states, as attention's may be."""
    from distill.serving import state_dtypes, state_shapes

    shapes = zip(state_shapes(student.config), state_dtypes(student.config, dtype), strict=True)
    return [
        (scale * torch.randn(6, 2 * shape[0], *shape[1:], device=device)).to(kind)[:, : shape[0]]
        for shape, kind in shapes
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", CUDA_BARS, ids=str)
@pytest.mark.parametrize("choices", [{}, {"key_head_dim": 32}, {"conv_size": 0}])
def test_a_served_mixer_says_what_the_students_own_says(make_teacher, device, dtype, choices):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from distill.conversion import convert
    from distill.serving_layers import PagedStates

    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    student = convert(make_teacher("qwen3", **sizes), attention_layers=(), mixer="kda", **choices)
    add_noise(student)
    student = student.to(device=device, dtype=dtype)
    mixer = serve(student, dtype, device)
    torch.manual_seed(0)
    caches = make_pages(student, dtype, device, scale=1e4)
    pages = torch.tensor([4, 1, 2], device=device).int()
    sequences = [torch.randn(n, student.config.hidden_size, device=device).to(dtype) for n in (72, 3, 11)]
    read, said = [0, 0, 0], [[], [], []]

    def step(counts: dict[int, int]) -> None:
        chosen = list(counts)
        parts = [sequences[i][read[i] : read[i] + count] for i, count in counts.items()]
        known = torch.tensor([read[i] > 0 for i in chosen], device=device)
        if max(counts.values()) == 1:
            states = PagedStates(caches, pages[chosen], known, in_place=device == "cuda")
            got = mixer.mix(torch.stack(parts), None, states, None).unbind()
        else:
            states = PagedStates(caches, pages[chosen], known)
            ends = torch.tensor([0, *counts.values()], device=device).cumsum(0, dtype=torch.int32)
            got = mixer.mix(torch.cat(parts)[None], None, states, ends)[0].split(list(counts.values()))
        for i, count, out in zip(chosen, counts.values(), got, strict=True):
            read[i] += count
            said[i].append(out)

    with torch.inference_mode():
        for counts in ({0: 40}, {0: 30, 2: 9}, {1: 1}, {0: 1, 1: 1, 2: 1}, {2: 1, 0: 1, 1: 1}):
            step(counts)
        for sequence, parts in zip(sequences, said, strict=True):
            expected = student.model.layers[0].self_attn(sequence[None])[0][0]
            bar = 1e-5 if (device, dtype) == ("cpu", torch.float32) else CUDA_BARS[dtype]
            assert worst(torch.cat(parts).float(), expected.float()) < bar


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_head_dim", [None, 16])
def test_decoding_in_the_pages_is_decoding_beside_them(make_student, dtype, key_head_dim):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from distill.serving_layers import PagedStates

    student = make_student("kda", "pure", key_head_dim=key_head_dim)
    mixer = serve(student, dtype, "cuda")
    torch.manual_seed(0)
    tokens = torch.randn(3, 1, student.config.hidden_size, device="cuda", dtype=dtype)
    pages = torch.tensor([4, 1, 2], dtype=torch.int32, device="cuda")
    known = torch.tensor([True, False, True], device="cuda")
    caches = make_pages(student, dtype, "cuda")
    copies = [cache.clone() for cache in caches]
    with torch.inference_mode():
        fetched = mixer.mix(tokens, None, PagedStates(copies, pages, known), None)
        in_place = mixer.mix(tokens, None, PagedStates(caches, pages, known, in_place=True), None)
    torch.testing.assert_close(in_place, fetched, rtol=1e-2, atol=1e-2)
    for cache, copy in zip(caches, copies, strict=True):
        torch.testing.assert_close(cache, copy, rtol=1e-3, atol=1e-3)
