"""The stages as modules: a batch of packed documents in, the sum of a loss over its positions out.

Stages 1 and 2 (``Alignment``) train every replaced layer by itself: each reads the *teacher's* states and is asked for
the teacher's, so that one teacher pass feeds all layers and an early layer's error reaches none of the later ones.
Stage 3 (``Distillation``) runs the whole student. A stage's parameters are the student's alone; the teacher is no
submodule, so that no optimizer, wrapper or checkpoint takes it along.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from distill.data.batch import Batch
from distill.fused import fuse_all
from distill.losses import distillation_loss
from distill.packing import PACKED_SDPA, document_lengths, packed_positions
from distill.precision import PartlyTrainedLinear, join_rows, keep_masters
from distill.recipe import StageRecipe
from distill_eval.errors import ConfigError


class Stage(nn.Module, ABC):
    """What both kinds of stage share: the student with its trained part as float32 masters, and the frozen teacher."""

    def __init__(self, student: Any, teacher: Any, recipe: StageRecipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.student = student.train()
        self.recipe, self.dtype = recipe, dtype
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it: no submodule
        trained = _choose(student, recipe.train)
        if not trained:
            raise ConfigError(f"train: this student has no weights of '{', '.join(recipe.train)}'")
        keep_masters(student, trained)
        for model in (student, teacher):
            fuse_all(model)
        self._attention = teacher.config._attn_implementation
        teacher.config._attn_implementation = PACKED_SDPA  # others would let documents see each other
        if recipe.activation_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by its name in the student."""
        return {name: value for name, value in self.student.named_parameters() if value.requires_grad}

    def units(self) -> list[nn.Module]:
        """Return the modules that are called as a whole, in order: those an engine may shard."""
        return list(self.student.model.layers)

    def finish(self) -> None:
        """Give both models back in their ordinary form."""
        self.teacher.config._attn_implementation = self._attention
        for module in self.student.modules():
            if isinstance(module, PartlyTrainedLinear):
                join_rows(module)
        if self.recipe.activation_checkpointing:
            self.student.gradient_checkpointing_disable()

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Return how many positions the loss of ``batch`` is summed over."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return {"loss": the sum over the positions, float32, differentiable; and sums of its parts by name}."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Return what a token costs in a step: two operations a weight and product.

        Counted: the teacher's products, the student's, those of the gradients of its states, and those of the
        gradients of the weights that are trained. Not counted: attention's and the recurrences' own products,
        which grow with documents or are few.
        """


class Alignment(Stage):
    """Stages 1 and 2: the Euclidean distance of each replaced layer's output to the teacher's, a token.

    ``target`` "mixer" compares what the mixer gives with what attention gives; "block" the whole layer's outputs, the
    student's MLP run frozen. Neither model runs further than the last replaced layer; heads do not run at all.
    """

    def __init__(self, student: Any, teacher: Any, recipe: StageRecipe, dtype: torch.dtype) -> None:
        super().__init__(student, teacher, recipe, dtype)
        kinds = student.config.layer_types
        self.replaced = [index for index, kind in enumerate(kinds) if kind == "linear_attention"]
        if not self.replaced:
            raise ConfigError("student: none of its layers was replaced, there is nothing to align")

    def units(self) -> list[nn.Module]:
        layers: Any = self.student.model.layers
        if self.recipe.target == "block":
            return [layers[index] for index in self.replaced]
        return [layers[index].self_attn for index in self.replaced]

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        teacher, layers = self.teacher.model, self.student.model.layers
        with torch.no_grad():
            states = teacher.embed_tokens(batch.input_ids).to(self.dtype)
            arguments = layer_arguments(teacher, states, batch)
        losses: dict[str, torch.Tensor] = {}
        for index, layer in enumerate(teacher.layers[: self.replaced[-1] + 1]):
            if index not in self.replaced:
                with torch.no_grad():
                    states = layer(states, **arguments)
                continue
            with torch.no_grad():
                mixed = layer.self_attn(layer.input_layernorm(states), **arguments)[0]
                after = states + mixed
                if self.recipe.target == "block" or index < self.replaced[-1]:
                    after = after + layer.mlp(layer.post_attention_layernorm(after))
            own: Any = layers[index]
            if self.recipe.target == "block":
                distances = torch.linalg.vector_norm((own(states, **arguments) - after).float(), dim=-1)
            else:
                output = own.self_attn(own.input_layernorm(states), **arguments)[0]
                distances = torch.linalg.vector_norm((output - mixed).float(), dim=-1)
            losses[f"layer_{index}"] = batch.sum_tokens(distances)
            states = after
        loss = torch.stack(list(losses.values())).sum()
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}

    def flops_per_token(self) -> float:
        teacher, layers = self.teacher.model, self.student.model.layers
        block = self.recipe.target == "block"
        flops = 0.0
        for index, layer in enumerate(teacher.layers[: self.replaced[-1] + 1]):
            last = index == self.replaced[-1] and not block
            flops += 2 * _weights(layer.self_attn if last else layer)
        for index in self.replaced:
            part = layers[index] if block else layers[index].self_attn
            flops += 2 * _weights(part) + 2 * _trained_weights(part)
            # The states' gradients stop at the mixer's first products.
            first = sum(
                _weights(module) for name, module in _products(layers[index].self_attn) if _reads(name)
            )
            flops += 2 * (_weights(part) - first)
        return flops


class Distillation(Stage):
    """Stage 3: teacher and student read the same documents; the loss compares what they predict.

    Positions that do not count are dropped before the heads, which are most of a small model's arithmetic.
    """

    def count(self, batch: Batch) -> int:
        return batch.num_supervised

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        rows = batch.rows if batch.num_supervised < batch.supervised.numel() else None
        teacher_hidden = teacher_head = None
        if self.recipe.loss.objective != "sft":
            with torch.no_grad():
                teacher_hidden = _gather(self._teacher_states(batch), rows)
                teacher_head = self.teacher.lm_head.weight
        student = self.student.model
        states = student.embed_tokens(batch.input_ids).to(self.dtype)
        hidden = student(inputs_embeds=states, cu_seqlens=batch.cu_seqlens, use_cache=False).last_hidden_state
        losses = distillation_loss(
            _gather(hidden, rows),
            self.student.lm_head.weight,
            teacher_hidden,
            teacher_head,
            _gather(batch.targets[None, :, None], rows)[:, 0],
            self.recipe.loss,
        )
        parts = {} if self.recipe.loss.objective == "sft" else {"kl": losses.kl}
        if self.recipe.loss.ce_weight:
            parts["ce"] = losses.ce
        return {"loss": losses.total} | parts

    def _teacher_states(self, batch: Batch) -> torch.Tensor:
        """Return the teacher's last hidden states [1, N, d]."""
        model = self.teacher.model
        states = model.embed_tokens(batch.input_ids).to(self.dtype)
        arguments = layer_arguments(model, states, batch)
        for layer in model.layers:
            states = layer(states, **arguments)
        return model.norm(states)

    def flops_per_token(self) -> float:
        head = self.student.lm_head.weight.numel()
        teacher = 0 if self.recipe.loss.objective == "sft" else _weights(self.teacher.model) + head
        student = _weights(self.student.model) + head
        trained = _trained_weights(self.student.model) + head * self.student.lm_head.weight.requires_grad
        return 2.0 * (teacher + 2 * student + trained)


def make_stage(student: Any, teacher: Any, recipe: StageRecipe, dtype: torch.dtype) -> Stage:
    """Return the stage of ``recipe``; both models are changed in place: trained weights become float32 masters.

    Products run in ``dtype``. Raises ConfigError.
    """
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"student: its vocabulary has {student.config.vocab_size:,} tokens, the teacher's "
            f"{teacher.config.vocab_size:,}; they must share one tokenizer"
        )
    return (Distillation if recipe.target is None else Alignment)(student, teacher, recipe, dtype)


def layer_arguments(model: Any, states: torch.Tensor, batch: Batch) -> dict[str, Any]:
    """Return the arguments with which a decoder layer of ``model`` reads the packed ``states`` [1, N, d]."""
    position_ids = packed_positions(batch.cu_seqlens, states.shape[1])
    return {
        "attention_mask": None,
        "position_ids": position_ids,
        "position_embeddings": model.rotary_emb(states, position_ids=position_ids),
        "past_key_values": None,
        "use_cache": False,
        "cu_seqlens": batch.cu_seqlens,
        "document_lengths": document_lengths(batch.cu_seqlens),
    }


def group_of(name: str, layer_types: list[str]) -> str:
    """Return the group (``distill.recipe.GROUPS``) of a student's parameter."""
    parts = name.split(".")
    if parts[0] == "lm_head" or "embed_tokens" in parts:
        return "embeddings"
    if "self_attn" in parts:
        return "attention" if layer_types[int(parts[2])] == "full_attention" else "mixers"
    return "mlp" if "mlp" in parts else "norms"


def _choose(student: Any, groups: Iterable[str]) -> list[nn.Parameter]:
    """Return the parameters of ``groups``; what makes queries and keys comes from whatever the mixer calls them."""
    groups = set(groups)
    kinds = student.config.layer_types
    chosen = [value for name, value in student.named_parameters() if group_of(name, kinds) in groups]
    if "query_key" in groups and "mixers" not in groups:
        for index, kind in enumerate(kinds):
            if kind == "linear_attention":
                chosen += student.model.layers[index].self_attn.query_key_parameters()
    return chosen


def _gather(states: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of ``states`` [1, N, d] as [M, d]."""
    return states[0] if rows is None else states[0].index_select(0, rows)


def _products(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _reads(name: str) -> bool:
    """Whether a mixer's product reads the layer's input, not what was made of it."""
    return name not in ("o_proj", "out_proj", "f_b_proj", "g_b_proj")


def _weights(module: Any) -> int:
    return sum(part.weight.numel() for _, part in _products(module))


def _trained_weights(module: Any) -> int:
    trained = 0
    for _, part in _products(module):
        if isinstance(part, PartlyTrainedLinear):
            trained += part.rows.numel()
        elif part.weight.requires_grad:
            trained += part.weight.numel()
    return trained
