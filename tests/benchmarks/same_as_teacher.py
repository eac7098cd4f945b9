"""A student with all its attention is its teacher: logits bit for bit, greedy text token for token.

python -m tests.benchmarks.same_as_teacher CHECKPOINT [CHECKPOINT ...] --out FIGURES.json
"""

import argparse
import json
import os
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from distill.conversion import convert
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.provenance import stamp

TEXTS = (
    "The lighthouse keeper counted the boats as they came in, and wrote each name into",
    "Question: a baker sells seven loaves in the morning and five after noon. How many is that?\nAnswer:",
    "def reverse(words):",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    figures = {**stamp(), "checkpoints": {}}
    cache = Path(os.environ.get("DISTILL_EVAL_CACHE", "~/.cache/distill-eval"))
    for name in arguments.checkpoints:
        checkpoint = resolve_checkpoint(name, cache_dir=cache)
        for dtype in arguments.dtypes.split(","):
            row = compare(checkpoint, dtype, arguments)
            figures["checkpoints"][f"{checkpoint.label} {dtype}"] = row
            print(f"{checkpoint.label} {dtype}: {row}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def compare(checkpoint, dtype: str, arguments) -> dict[str, bool | int]:
    teacher = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).to(arguments.device)
    student = convert(teacher, attention_layers=range(teacher.config.num_hidden_layers))
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(list(TEXTS), return_tensors="pt", padding=True).to(arguments.device)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    with torch.inference_mode():
        logits = [model(**inputs).logits for model in (teacher, student)]
        texts = [model.generate(**inputs, **options) for model in (teacher, student)]
    return {
        "logits_equal_bitwise": torch.equal(*logits),
        "greedy_tokens_equal": torch.equal(*texts),
        "tokens_generated": texts[0][:, batch.input_ids.shape[1] :].numel(),
    }


if __name__ == "__main__":
    main()
