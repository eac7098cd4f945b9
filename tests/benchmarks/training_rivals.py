"""What ``training_speed`` times beside this project: TRL's GKD trainer on given data, and a plain loop.

Both train the same student as ours (the model itself, with its fused norms and kernels) on the same tokens, as rows
[B, T] whose documents see each other: neither packs with isolation. "float32" keeps the student's weights in float32
under bfloat16 autocast; "bfloat16" trains bfloat16 weights, which is faster and rounds small steps away.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from distill.ops.documents import keep_on_host
from distill.stages import group_of
from tests.benchmarks.training_cases import (
    CLIP,
    GLOBAL_ROWS,
    OPTIMIZER,
    TRAINED,
    Clock,
    Options,
    largest_and_smallest,
    make_rows,
    make_student,
    make_teacher,
    timed,
)


def loop(options: Options, report: Callable[[dict[str, Any]], None], weights: torch.dtype) -> None:
    """Time a loop as a good user writes it: logits of both, KL of float32 log-probabilities, accumulation."""
    teacher = make_teacher(options)
    ids = make_rows(options)[0].to(options.device)
    predictions = ids.numel() - len(ids)
    cuda = options.device.startswith("cuda")

    def run(micro_rows: int) -> dict[str, Any]:
        student = make_frozen_student(teacher, weights)
        trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, fused=True, **OPTIMIZER)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = F.log_softmax(teacher(rows, use_cache=False).logits[:, :-1].float(), -1)
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda and weights == torch.float32):
                logits = student(rows, use_cache=False).logits[:, :-1]
            given = F.log_softmax(logits.float(), -1)
            return F.kl_div(given, wanted, reduction="sum", log_target=True) / predictions

        def step() -> torch.Tensor:
            total = torch.zeros((), device=options.device)
            for rows in ids.split(micro_rows):
                loss = loss_of(rows)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(trainable, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            return total

        return timed(step, ids.numel(), options)

    for found in largest_and_smallest(options, run):
        report({"contender": "loop", "weights": str(weights).removeprefix("torch."), **found})


def trl(
    options: Options, report: Callable[[dict[str, Any]], None], weights: torch.dtype, checkpointing: bool
) -> None:
    """Time TRL's GKD trainer with lmbda 0 (given data) and beta 0 (forward KL; its loss is at temperature 1)."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        import trl  # type: ignore[import-not-found]
        from trl.experimental.gkd import GKDConfig, GKDTrainer  # type: ignore[import-not-found]
    except ImportError as error:
        report({"contender": "trl", "failed": f"pip install trl==1.16.0 ({error})"})
        return
    from datasets import Dataset
    from transformers import TrainerCallback, default_data_collator

    ids = make_rows(options)[0]
    cuda = options.device.startswith("cuda")
    labels = ids.clone()
    labels[:, 0] = -100  # nothing predicts it; so the trainer's denominator is the number of predictions
    num_steps = options.warm_up + options.steps
    repeated = itertools.chain.from_iterable([range(len(ids))] * num_steps)
    rows = [
        {"input_ids": ids[i].tolist(), "attention_mask": [1] * ids.shape[1], "labels": labels[i].tolist()}
        for i in repeated
    ]
    dataset = Dataset.from_list(rows)

    class Timer(TrainerCallback):
        def __init__(self, clock: Clock) -> None:
            self.clock = clock

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clock.tick()

    def run(micro_rows: int) -> dict[str, Any]:
        teacher = make_teacher(options)  # anew: the trainer wraps its forward
        with tempfile.TemporaryDirectory() as folder:
            arguments = GKDConfig(
                output_dir=folder,
                lmbda=0.0,
                beta=0.0,
                per_device_train_batch_size=micro_rows,
                gradient_accumulation_steps=GLOBAL_ROWS // micro_rows,
                max_steps=num_steps,
                learning_rate=OPTIMIZER["lr"],
                lr_scheduler_type="constant",
                adam_beta1=OPTIMIZER["betas"][0],
                adam_beta2=OPTIMIZER["betas"][1],
                weight_decay=OPTIMIZER["weight_decay"],
                max_grad_norm=CLIP,
                bf16=cuda,
                use_cpu=not cuda,
                gradient_checkpointing=checkpointing,
                logging_first_step=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                train_sampling_strategy="sequential",
            )
            trainer = GKDTrainer(
                model=make_frozen_student(teacher, weights),
                teacher_model=teacher,
                args=arguments,
                data_collator=default_data_collator,
                train_dataset=dataset,
                processing_class=make_tokenizer(),
            )
            clock = Clock(ids.numel(), options)
            trainer.add_callback(Timer(clock))
            trainer.train()
            clock.loss(trainer.state.log_history[0]["loss"])
            return clock.found()

    for found in largest_and_smallest(options, run):
        report(
            {
                "contender": "trl",
                "weights": str(weights).removeprefix("torch."),
                "checkpointing": checkpointing,
                "trl": trl.__version__,
                **found,
            }
        )


def make_frozen_student(teacher: Any, weights: torch.dtype) -> Any:
    """Return a student that trains what ours trains."""
    student = make_student(teacher).train()
    if weights == torch.float32:
        student = student.float()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(group_of(name, student.config.layer_types) in TRAINED)
    read_as_documents(student.model)
    return student


def read_as_documents(model: Any) -> None:
    """Let the student read a batch's rows as packed documents: the same result, by kernels already tuned for ours."""
    forward = model.forward

    def packed(input_ids: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        num_rows, length = input_ids.shape
        ends = torch.arange(0, num_rows * length + 1, length, dtype=torch.int32)
        moved = ends.to(input_ids.device)
        keep_on_host(moved, ends)
        kwargs |= {"use_cache": False, "cu_seqlens": moved}
        outputs = forward(input_ids=input_ids.reshape(1, -1), **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.reshape(num_rows, length, -1)
        return outputs

    model.forward = packed


def make_tokenizer() -> Any:
    """Return a tokenizer, which TRL asks for and with given tokens never uses."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


CONTENDERS: dict[str, Callable[..., None]] = {
    "loop": lambda options, report: loop(options, report, torch.float32),
    "loop-bfloat16": lambda options, report: loop(options, report, torch.bfloat16),
    "trl": lambda options, report: trl(options, report, torch.float32, False),
    "trl-bfloat16": lambda options, report: trl(options, report, torch.bfloat16, False),
    "trl-checkpointing": lambda options, report: trl(options, report, torch.float32, True),
}
