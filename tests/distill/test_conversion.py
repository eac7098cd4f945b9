"""Teacher to student: what stays is the teacher bit for bit; sizes are the paper's; mistakes are told."""

import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.conversion import convert
from distill.export import count_parameters
from distill.hybrid import HybridForCausalLM
from distill.hybrid_config import TEACHERS, HybridConfig
from distill_eval.errors import ConfigError

PAPER_LAYERS = (0, 2, 6, 11, 13, 18, 21)


def same_as_teacher(teacher, tokens):
    student = convert(teacher, attention_layers=range(teacher.config.num_hidden_layers))
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    with torch.no_grad():
        for arguments in ({}, {"attention_mask": mask}):
            for use_cache in (True, False):
                ours = student(tokens, use_cache=use_cache, **arguments).logits
                assert torch.equal(ours, teacher(tokens, use_cache=use_cache, **arguments).logits)
        options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert student.generate(tokens, **options).tolist() == teacher.generate(tokens, **options).tolist()


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_all_attention_is_the_teacher_bitwise(make_teacher, tokens, kind, attention):
    teacher = make_teacher(kind)
    teacher.set_attn_implementation(attention)
    same_as_teacher(teacher, tokens)


@pytest.mark.parametrize("kind", TEACHERS)
def test_also_in_bfloat16(make_teacher, tokens, kind, tmp_path):
    make_teacher(kind).save_pretrained(tmp_path)
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    same_as_teacher(teacher, tokens)


@pytest.mark.slow
def test_all_attention_is_smollm2_bitwise(demo_teacher):
    from transformers import AutoTokenizer

    teacher = AutoModelForCausalLM.from_pretrained(demo_teacher.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher.folder)
    text = ["The lighthouse keeper counted the boats as they", "Question: what is two plus three?\nAnswer:"]
    tokens = tokenizer(text, return_tensors="pt", padding=True, padding_side="left").input_ids
    same_as_teacher(teacher, tokens)


def test_hidden_states_and_tuple_outputs(make_teacher, tokens):
    teacher = make_teacher("qwen3")
    student = convert(teacher, attention_layers=range(4))
    with torch.no_grad():
        theirs = teacher(tokens, output_hidden_states=True).hidden_states
        ours = student(tokens, output_hidden_states=True).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(student(tokens, return_dict=False)[0], student(tokens).logits)


@pytest.mark.parametrize(("mixer", "millions"), [("kda", 613.0), ("mamba2", 641.0)])
def test_sizes_at_qwen3_0_6b(mixer, millions):
    """The paper's 613M and 641M: all parameters, the tied embedding once (it calls them non-embedding)."""
    from transformers import Qwen3Config

    teacher = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        student = HybridForCausalLM(
            HybridConfig.from_teacher(teacher, attention_layers=PAPER_LAYERS, mixer=mixer)
        )
        whole = HybridForCausalLM(HybridConfig.from_teacher(teacher, attention_layers=range(28)))
    assert count_parameters(whole)["total"] == 596_049_920
    assert abs(count_parameters(student)["total"] / 1e6 - millions) < 0.5


def test_the_seed_decides_and_the_callers_generator_is_left_alone(make_teacher):
    teacher = make_teacher()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    students = [convert(teacher, attention_layers=(0,), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    weights = [student.model.layers[1].self_attn.q_proj.weight for student in students]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_student_keeps_the_teachers_dtype_and_generation_config(make_teacher):
    teacher = make_teacher().to(torch.bfloat16)
    teacher.generation_config.temperature = 0.3
    student = convert(teacher, attention_layers=(1,))
    assert {p.dtype for name, p in student.named_parameters() if "proj" in name} == {torch.bfloat16}
    assert student.generation_config.temperature == 0.3


def test_config_survives_its_json(make_student, tmp_path):
    config = make_student(
        "gated_deltanet", "linear_first", teacher="qwen3", post_norm=True, key_head_dim=7
    ).config
    config.save_pretrained(tmp_path)
    again = HybridConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.vocab_size, again.head_dim, again.num_hidden_layers) == (97, 12, 4)
    assert again.get_text_config() is again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_layers": (9,)}, "layers 0 to 3; 9 is not among them"),
        ({"attention_layers": (-1,)}, "-1 is not among them"),
        ({"attention_layers": (1, 1)}, "named twice"),
        ({"attention_layers": (1.5,)}, "whole numbers"),
        ({"attention_layers": (True,)}, "whole numbers"),
        ({"attention_layers": (1,), "layer_types": []}, "'layer_types' is unknown"),
        ({"attention_layers": (1,), "conv_size": 4.5}, "0 .none. or at least 2, got 4.5"),
        ({"attention_layers": (1,), "conv_size": None}, "0 .none. or at least 2, got None"),
        ({"attention_layers": (1,), "post_norm": "no"}, "true or false"),
        ({"attention_layers": (1,), "mixer": "mamba2", "gate_rank": 4}, "full rank"),
        ({"attention_layers": (1,), "mixer": "kdaa"}, "did you mean 'kda'"),
        ({"attention_layers": (1,), "initialisation": "qkv"}, "did you mean 'qkvo'"),
        ({"attention_layers": (1,), "initialisation": "qkvo", "key_head_dim": 4}, "use initialisation 'vo'"),
        ({"attention_layers": (1,), "output_gate": "tanh"}, "silu, sigmoid or null"),
        ({"attention_layers": (1,), "conv_activation": "relu"}, "silu or null"),
        ({"attention_layers": (1,), "conv_size": 1}, "0 .none. or at least 2"),
        ({"attention_layers": (1,), "key_head_dim": 0}, "key_head_dim must be a whole number from 1"),
        ({"attention_layers": (1,), "post_nrom": True}, "did you mean 'post_norm'"),
    ],
)
def test_what_cannot_be_built_is_told(make_teacher, arguments, message):
    with pytest.raises(ConfigError, match=message):
        convert(make_teacher(), **arguments)


def test_teachers_that_are_not_supported_are_told(make_teacher):
    from transformers import GPT2Config, Qwen2Config

    with pytest.raises(ConfigError, match="'gpt2' is none of llama, qwen2, qwen3"):
        HybridConfig.from_teacher(GPT2Config(n_layer=2), attention_layers=())
    sliding = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ConfigError, match="sliding-window"):
        HybridConfig.from_teacher(sliding, attention_layers=())


@pytest.mark.parametrize("teacher_config", [{}, {"model_type": "gpt2"}, {"model_type": None}])
def test_a_config_file_without_a_teacher_is_told(teacher_config):
    with pytest.raises(ConfigError, match="is none of llama, qwen2, qwen3"):
        HybridConfig(teacher_config=teacher_config)


def test_a_student_shares_nothing_with_its_teacher(make_teacher, tokens):
    teacher = make_teacher()
    student = convert(teacher, attention_layers=(1,))
    student(tokens)
    student.config.vocab_size = 5
    student.generation_config.temperature = 0.1
    assert teacher.config.vocab_size == 97
    assert teacher.config._attn_implementation == "sdpa"
    assert teacher.generation_config.temperature != 0.1


def test_students_can_be_pickled_and_are_found_by_auto_model(make_student, tokens, tmp_path):
    from transformers import AutoModel

    student = make_student()
    again = pickle.loads(pickle.dumps(student))
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, student(tokens).logits)
        body = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(body(tokens).last_hidden_state, student.model(tokens).last_hidden_state)


def test_a_bias_the_config_does_not_declare_is_told(make_teacher):
    teacher = make_teacher()
    for layer in teacher.model.layers:
        layer.self_attn.v_proj.bias = torch.nn.Parameter(torch.ones(16))
    with pytest.raises(ConfigError, match="has a bias where its config says otherwise"):
        convert(teacher, attention_layers=(1,))
