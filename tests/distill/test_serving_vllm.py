"""Students inside vLLM, where it is installed: the engine on a CPU, on a GPU the kernels that work in its pages."""

import importlib.util

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

# Prompts of one token, of several chunks, and of exactly a chunk, more of them than are read at once.
LENGTHS = (1, 2, 5, 17, 64, 65, 130, 3, 1)
NEW_TOKENS = 12


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/benchmarks/serving_gpu.py measures it there")
@pytest.mark.filterwarnings("default")
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
    from distill.conversion import convert
    from distill.serving import register

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    register()
    from vllm import LLM, SamplingParams

    # vLLM's attention on a CPU takes no heads of fewer than 32 channels.
    sizes = {"hidden_size": 128} | ({"head_dim": 64} if teacher == "qwen3" else {})
    student = convert(make_teacher(teacher, **sizes), attention_layers=layers, mixer=mixer)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".self_attn." in name and not name.endswith(("A_log", "dt_bias")):
                parameter += 0.1 * torch.randn_like(parameter)
    student.save_pretrained(tmp_path / "student")
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    engine = LLM(
        str(tmp_path / "student"),
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    for ids, output in zip(prompts, outputs, strict=True):
        expected = student.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        assert list(output.outputs[0].token_ids) == expected[0, len(ids) :].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_head_dim", [None, 16])
def test_decoding_in_the_pages_is_decoding_beside_them(make_student, dtype, key_head_dim):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from distill.serving import state_dtypes, state_shapes
    from distill.serving_layers import PagedStates, ServedKDAMixer

    student = make_student("kda", "pure", key_head_dim=key_head_dim)
    own = student.model.layers[0].self_attn
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as vLLM makes its models
    try:
        with torch.device("cuda"):
            mixer = ServedKDAMixer(student.config, 0)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in mixer.named_parameters():
        parameter.data.copy_(own.get_parameter(name))
    torch.manual_seed(0)
    tokens = torch.randn(3, 1, student.config.hidden_size, device="cuda", dtype=dtype)
    pages = torch.tensor([4, 1, 2], dtype=torch.int32, device="cuda")
    known = torch.tensor([True, False, True], device="cuda")
    # Pages longer than the states in them, as where attention's pages are larger.
    caches = [
        torch.randn(6, 2 * shape[0], *shape[1:], device="cuda").to(kind)[:, : shape[0]]
        for shape, kind in zip(state_shapes(student.config), state_dtypes(student.config, dtype), strict=True)
    ]
    copies = [cache.clone() for cache in caches]
    with torch.inference_mode():
        fetched = mixer.mix(tokens, None, PagedStates(copies, pages, known), None)
        in_place = mixer.mix(tokens, None, PagedStates(caches, pages, known, in_place=True), None)
    torch.testing.assert_close(in_place, fetched, rtol=1e-2, atol=1e-2)
    for cache, copy in zip(caches, copies, strict=True):
        torch.testing.assert_close(cache, copy, rtol=1e-3, atol=1e-3)
