"""The shared makers of models do what other tests rely on."""


def test_same_seed_same_weights_in_another_folder(tiny_model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, second = tiny_model_folder(seed=3), tiny_model_folder("other", seed=3)
    assert first != second
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(first)
    text = "Question: how many boats? Señor 12"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|turn|>user\nhi<|end|>\n<|turn|>assistant\n"
    model = AutoModelForCausalLM.from_pretrained(first)
    assert len(tokenizer) <= model.config.vocab_size
