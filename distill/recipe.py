"""A recipe: everything a training run is told, as plain values; ``distill.recipes`` reads them from YAML.

Defaults are the paper's (Tables 8 and 9, section 4.2), for Qwen3-0.6B.
"""

from dataclasses import dataclass, field

# The parts of a student that are frozen or trained as one.
GROUPS = ("attention", "mixers", "mlp", "embeddings", "norms")
ALIGNMENT_TARGETS = ("mixer", "block")
OBJECTIVES = ("kl", "reverse_kl", "jsd", "sft")
MASKS = ("all", "completion")
STRATEGIES = ("auto", "ddp", "fsdp2", "zero2")


@dataclass(frozen=True)
class StudentRecipe:
    """How the student is made of the teacher; ``checkpoint`` starts from a student there is instead."""

    attention_layers: tuple[int, ...] = (0, 2, 6, 11, 13, 18, 21)
    mixer: str = "kda"
    init: str = "vo"
    output_gate: str | None = "silu"
    post_norm: bool = False
    conv_size: int = 4
    conv_activation: str | None = None
    key_head_dim: int | None = None
    gate_rank: int | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class SourceRecipe:
    """Documents of one kind: a local .jsonl, .parquet or folder of them, or a dataset's name on the hub."""

    path: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    text: str | None = (
        None  # the column of plain text; this or messages; both None: whichever column is there
    )
    messages: str | None = None  # the column of chat messages
    weight: float = 1.0  # its share of the tokens, among the stage's sources
    min_score: float | None = None  # documents whose column "score" is lower are left out
    streaming: bool = False
    held_out: int = 0  # this many first documents are never trained on, but measured


@dataclass(frozen=True)
class DataRecipe:
    """Sources mixed by weight, cut or packed into rows."""

    sources: tuple[SourceRecipe, ...]
    mask: str = "all"  # "all": every token; "completion": what the assistant said
    shuffle: bool = True
    isolate_documents: bool = True


@dataclass(frozen=True)
class LossRecipe:
    """Stage 3's objective: objective + ce_weight * cross-entropy."""

    objective: str = "kl"
    temperature: float = 1.0
    ce_weight: float = 0.0
    top_k: int | None = None  # the teacher's tokens that count, renormalised; None: the full vocabulary
    jsd_beta: float = 0.5


@dataclass(frozen=True)
class StageRecipe:
    """One stage. ``target`` aligns layer by layer ("mixer", "block"); None trains the whole student on ``loss``."""

    data: str  # a name among the recipe's data; "a+b" mixes two
    tokens: int
    lr: float
    target: str | None = None
    mixing: tuple[float, ...] | None = None  # shares of the tokens of the data named in "a+b"
    train: tuple[str, ...] = (
        "mixers",
        "mlp",
        "norms",
    )  # groups of GROUPS, or "query_key" (the mixers' Q and K)
    loss: LossRecipe = field(default_factory=LossRecipe)
    sequence_length: int = 2048
    batch_size: int = 64  # sequences a step, over all processes
    micro_batch_size: int = 2  # sequences a process holds at once
    warmup: float = 0.1  # shares of the steps
    decay: float = 0.1
    min_lr_ratio: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class TrainingRecipe:
    """How and how often, whatever the stage."""

    strategy: str = "auto"
    dtype: str = "auto"  # of products and activations; auto: bfloat16 on CUDA, float32 elsewhere
    save_every: int = 200  # steps
    keep: int = 2  # checkpoints
    measure_every: int = 100  # steps between held-out measurements; 0: only at a stage's end
    log_every: int = 10
    max_loss_ratio: float = 20.0  # a loss this many times its running mean stops the run
    tune_kernels: bool = True  # False: triton takes what runs, which spares a short run its minutes of tuning
    tensorboard: bool = False
    wandb: str | None = None  # a project's name
    seed: int = 0


@dataclass(frozen=True)
class EvalRecipe:
    """A distill-eval suite run on the student after the named stages (all, when None)."""

    suite: str
    stages: tuple[str, ...] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole run: ``stages`` in order, each the name of an entry of ``stage``."""

    name: str
    teacher: str
    student: StudentRecipe
    data: dict[str, DataRecipe]
    stage: dict[str, StageRecipe]
    stages: tuple[str, ...]
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    eval: EvalRecipe | None = None
    about: str = ""  # one line: what it is, with the paper's table
