"""A GGUF written here from a tiny model comes back as that model."""

import json

import numpy as np
import pytest

from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import CheckpointError, OutputError

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def quiet(line: str) -> None:
    del line


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Order the rows of a query or key matrix as llama.cpp wants rotary pairs: neighbours, not halves."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder, path, *, pre="default", parts=1):
    """Write a tiny Llama checkpoint as GGUF in fp32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("made up")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    padding = config["vocab_size"] - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(padding)])
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * padding)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(special["<|end|>"])
    writer.add_eot_token_id(special["<|turn|>"])
    writer.add_bos_token_id(special["<|turn|>"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, weight in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem in WHOLE:
            writer.add_tensor(f"{WHOLE[stem]}.weight", weight)
            continue
        _, _, layer, inner = stem.split(".", 3)
        if inner.endswith(("q_proj", "k_proj")):
            heads = "num_attention_heads" if inner.endswith("q_proj") else "num_key_value_heads"
            weight = interleave(weight, config[heads])
        writer.add_tensor(f"blk.{layer}.{NAMES[inner]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def origin(tiny_model_folder):
    return tiny_model_folder()


@pytest.fixture
def gguf_file(origin, tmp_path):
    return write_gguf(origin, tmp_path / "tiny.gguf")


def test_the_model_comes_back(origin, gguf_file, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Files that happen to lie beside the GGUF are none of its business.
    (gguf_file.parent / "config.json").write_text('{"model_type": "gpt2"}')
    (gguf_file.parent / "tokenizer_config.json").write_text('{"chat_template": "wrong"}')
    lines = []
    checkpoint = resolve_checkpoint(str(gguf_file), cache_dir=tmp_path / "cache", on_progress=lines.append)
    assert (checkpoint.label, checkpoint.source, checkpoint.dtype) == ("tiny", "gguf", "bfloat16")
    assert lines == ["tiny.gguf: dequantising (once)"]
    assert checkpoint.folder.parent == tmp_path / "cache" / "checkpoints"
    assert checkpoint.max_positions == 512
    assert checkpoint.chat_template == (origin / "chat_template.jinja").read_text()

    tokenizer, expected_tokenizer = load_tokenizer(checkpoint), AutoTokenizer.from_pretrained(origin)
    text = "Question: what is two plus three? <|end|> 1234 Señor"
    ids = tokenizer(text)["input_ids"]
    assert ids == expected_tokenizer(text)["input_ids"]
    assert tokenizer.pad_token_id is not None
    expected = AutoModelForCausalLM.from_pretrained(origin)
    for weight in expected.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    assert model.generation_config.eos_token_id == [
        expected_tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|turn|>")
    ]
    batch = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(model(batch).logits, expected(batch).logits, rtol=1e-5, atol=1e-5)

    provenance = json.loads((checkpoint.folder / "provenance.json").read_text())
    assert provenance["gguf"] == "tiny.gguf"
    assert len(provenance["gguf_sha256"]) == 64
    assert not any(path.is_dir() for path in checkpoint.folder.iterdir())


def test_converted_once_whatever_it_is_called(gguf_file, tmp_path):
    lines = []
    first = resolve_checkpoint(str(gguf_file), cache_dir=tmp_path / "cache", on_progress=lines.append)
    renamed = gguf_file.rename(gguf_file.with_name("other.gguf"))
    second = resolve_checkpoint(f"b={renamed}", cache_dir=tmp_path / "cache", on_progress=lines.append)
    assert second.folder == first.folder
    assert (second.label, second.fingerprint) == ("b", first.fingerprint)
    assert len(lines) == 1


def test_digits_are_split_where_the_file_says_so(origin, tmp_path):
    path = write_gguf(origin, tmp_path / "digits.gguf", pre="smollm")
    checkpoint = resolve_checkpoint(str(path), cache_dir=tmp_path / "cache", on_progress=quiet)
    split = load_tokenizer(checkpoint).backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 12")
    assert [piece for piece, _ in split] == ["in", "Ġ", "1", "2"]


def complaint(path, tmp_path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(str(path), cache_dir=tmp_path / "cache", on_progress=quiet)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    converted = tmp_path / "cache" / "checkpoints"
    assert not converted.exists() or not [path for path in converted.iterdir() if path.is_dir()]
    return text


def test_not_a_gguf(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    assert "not a GGUF file" in complaint(path, tmp_path)
    path.write_bytes(b"")
    assert "not a GGUF file" in complaint(path, tmp_path)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.05, 0.001])
def test_truncated_gguf(share, gguf_file, tmp_path):
    gguf_file.write_bytes(gguf_file.read_bytes()[: int(gguf_file.stat().st_size * share)])
    assert "damaged or cut short" in complaint(gguf_file, tmp_path)


def test_split_gguf(origin, tmp_path):
    path = write_gguf(origin, tmp_path / "tiny-00001-of-00002.gguf", parts=2)
    assert "one part of a split GGUF" in complaint(path, tmp_path)


def test_architecture_transformers_cannot_read(tmp_path):
    import gguf

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "made-up")
    writer.add_tensor("x", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "holds no tokenizer" in complaint(path, tmp_path)
    writer = gguf.GGUFWriter(path, "made-up")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("x", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "cannot be dequantised: GGUF model with architecture made-up" in complaint(path, tmp_path)


def test_nowhere_to_write(gguf_file, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"cannot write the converted model to .*DISTILL_EVAL_CACHE"):
        resolve_checkpoint(str(gguf_file), cache_dir=tmp_path / "cache", on_progress=quiet)
