"""The objectives of stage 3 over all logits at once, in float64, and pairs of models to try them on."""

import math

import torch

from distill.recipe import LossRecipe

CASES = {
    "kl": LossRecipe(),
    "kl_warm": LossRecipe(temperature=2.5),
    "kl_ce": LossRecipe(ce_weight=0.3),
    "kl_warm_ce": LossRecipe(temperature=0.7, ce_weight=0.3),
    "kl_top_k": LossRecipe(top_k=5),
    "kl_top_k_warm_ce": LossRecipe(top_k=5, temperature=2.0, ce_weight=1.5),
    "reverse_kl": LossRecipe(objective="reverse_kl"),
    "reverse_kl_warm_ce": LossRecipe(objective="reverse_kl", temperature=2.0, ce_weight=0.5),
    "jsd": LossRecipe(objective="jsd"),
    "jsd_warm_ce": LossRecipe(objective="jsd", jsd_beta=0.1, temperature=2.0, ce_weight=0.5),
    "jsd_top_k": LossRecipe(objective="jsd", jsd_beta=0.9, top_k=5),
    "sft": LossRecipe(objective="sft"),
}
DIVERGENCES = [name for name, recipe in CASES.items() if recipe.objective != "sft"]


def brute_force(student, teacher, targets, recipe: LossRecipe):
    """Total, divergence and cross-entropy, and the total's gradients for ``student`` (hidden, head)."""
    hidden, head = (x.detach().double().cpu().requires_grad_() for x in student)
    logits = hidden @ head.T
    ce = kl = torch.zeros((), dtype=torch.float64)
    if recipe.ce_weight or recipe.objective == "sft":
        ce = -logits.log_softmax(1).gather(1, targets.cpu()[:, None]).sum()
    if recipe.objective != "sft":
        over = teacher[0].double().cpu() @ teacher[1].double().cpu().T
        if recipe.top_k:
            over[over < over.topk(recipe.top_k).values[:, -1:]] = -torch.inf
        s = (logits / recipe.temperature).log_softmax(1)
        t = (over / recipe.temperature).log_softmax(1)
        beta = {"kl": 1.0, "reverse_kl": 0.0}.get(recipe.objective, recipe.jsd_beta)
        if recipe.objective == "jsd":
            m = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
            kl = beta * _kl(t, m) + (1 - beta) * _kl(s, m)
        else:
            kl = _kl(t, s) if recipe.objective == "kl" else _kl(s, t)
        kl = kl * recipe.temperature**2
    total = ce if recipe.objective == "sft" else kl + recipe.ce_weight * ce
    return (
        float(total.detach()),
        float(kl.detach()),
        float(ce.detach()),
        torch.autograd.grad(total, (hidden, head)),
    )


def _kl(p, q):
    found = p > -torch.inf
    return (p.exp() * (p - q))[found].sum()


def make_models(
    seed: int, rows: int, width: int, vocabulary: int, *, apart: float, size: float = 1.0, shift: float = 0.0
):
    """A student's and a teacher's (hidden states, head), and targets: logits of deviation ``size``.

    The student's hidden states differ from the teacher's by ``apart``, its head for ``shift`` by a constant.
    """
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=rng)
    head = torch.randn(vocabulary, width, generator=rng) * (size / width**0.5)
    other = hidden + apart * torch.randn(rows, width, generator=rng)
    targets = torch.randint(vocabulary, (rows,), generator=rng)
    return (other, head + shift), (hidden, head), targets


def on_grid(model):
    """Hidden states and head rounded such that float32 holds their logits exactly (while those stay under 64)."""
    return (model[0] * 2**10).round() / 2**10, (model[1] * 2**6).round() / 2**6


def make_near_bfloat16(seed: int, rows: int, width: int, vocabulary: int, *, moved: float):
    """As ``make_models``, in bfloat16: ``moved`` of the student's head are the neighbouring values."""
    _, teacher, targets = make_models(seed, rows, width, vocabulary, apart=0, size=3.0)
    hidden, head = (x.bfloat16() for x in teacher)
    rng = torch.Generator().manual_seed(seed)
    bits = head.view(torch.int16) + (torch.rand(head.shape, generator=rng) < moved).to(torch.int16)
    return (hidden, bits.view(torch.bfloat16)), (hidden, head), targets


# Models that nearly agree, and how near their gradients come to brute force. Where divergences are near 1e-5 a row,
# rounding the logits to float32 moves gradients by 3e-4 whatever is done afterwards: "exact" has logits without
# rounding. "bf16" is twice half a unit in the last place.
NEAR = {
    "1e-3": (2e-2, 1e-4),
    "1e-3, exact": (2e-2, 1e-4),
    "1e-5": (2e-3, 5e-4),
    "1e-5, exact": (2e-3, 1e-4),
    "1e-4, bf16": (0.3, 2**-8),
    "1e-6, bf16": (0.01, 2**-8),
}


def make_near(kind: str, rows: int, width: int, vocabulary: int):
    """A pair of models of a kind of NEAR, with targets, and its bar."""
    apart, bar = NEAR[kind]
    if "bf16" in kind:
        return make_near_bfloat16(1, rows, width, vocabulary, moved=apart), bar
    student, teacher, targets = make_models(1, rows, width, vocabulary, apart=apart, size=3.0)
    if "exact" in kind:
        student, teacher = on_grid(student), on_grid(teacher)
    return (student, teacher, targets), bar


def relative(a, b) -> float:
    """The difference's norm relative to ``b``'s."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))
