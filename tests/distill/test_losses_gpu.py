"""Stage 3's objectives on CUDA, and the kernel of forward KL against float64 brute force.

Without a CUDA device, where triton is installed, ``TRITON_INTERPRET=1`` runs the kernel on the CPU (a few minutes).
"""

import os

import pytest
import torch

from distill import losses
from distill.losses import distillation_loss
from distill.recipe import LossRecipe
from tests.distill.brute_force import CASES, NEAR, brute_force, make_models, make_near, relative

# numpy, which interprets the kernel, warns of infinities less themselves in lanes that are then left out.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
VOCABULARIES = (151_936, 49_152, 1_003)
FORWARD = [name for name, recipe in CASES.items() if recipe.objective == "kl"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def with_kernel(monkeypatch):
    if CUDA:
        return
    if not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("no CUDA device")
    pytest.importorskip("triton")
    monkeypatch.setattr(losses, "_has_kernel", lambda logits: True)
    # As on CUDA: operands and gradients in the hidden states' dtype, products in float32.
    monkeypatch.setattr(losses, "_operand", lambda head, hidden: head.detach().to(hidden.dtype))
    monkeypatch.setattr(losses, "_product", lambda a, b: a.float() @ b.float())


def run(student, teacher, targets, recipe, scale=1.0, **options):
    hidden, head = (x.detach().to(DEVICE).requires_grad_() for x in student)
    teacher = (None, None) if recipe.objective == "sft" else [x.to(DEVICE) for x in teacher]
    found = distillation_loss(hidden, head, *teacher, targets.to(DEVICE), recipe, **options)
    (found.total * scale).backward()
    return found, (hidden.grad, head.grad)


def cast(models, dtype):
    student, teacher, targets = models
    return tuple(x.to(dtype) for x in student), tuple(x.to(dtype) for x in teacher), targets


@DTYPES
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name, vocabulary, dtype):
    models = cast(make_models(0, 7, 16, vocabulary, apart=0.3, size=3.0), dtype)
    total, kl, ce, gradients = brute_force(*models, CASES[name])
    found, ours = run(*models, CASES[name], scale=-0.37, chunk_bytes=8 * vocabulary * 16)
    assert [x.item() for x in found] == pytest.approx([total, kl, ce], rel=1e-4)
    for mine, exact in zip(ours, gradients, strict=True):
        assert mine.dtype == dtype
        assert relative(mine, -0.37 * exact) < (1e-4 if dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("name", ["kl", "kl_warm", "kl_ce", "reverse_kl", "jsd"])
def test_small_divergence_over_a_full_vocabulary(name, kind):
    models, bar = make_near(kind, 4, 8, VOCABULARIES[0])
    total, kl, ce, gradients = brute_force(*models, CASES[name])
    found, ours = run(*models, CASES[name])
    assert [x.item() for x in found] == pytest.approx([total, kl, ce], rel=1e-4)
    # In bfloat16 the logits' gradient is rounded too; in float32 the logits are, in an order of sums of the device's.
    bar *= 1 if "exact" in kind else 2
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < bar


@pytest.mark.parametrize("seed", range(40))
def test_never_negative_and_finite(seed):
    draw = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    vocabulary = int(2 + 9000 * draw[0])
    apart, size = float(10 ** (-9 * draw[1])), float(10 ** (5 * draw[2] - 2))
    models = make_models(seed, 3, 4, vocabulary, apart=apart, size=size)
    for name in FORWARD:
        recipe = LossRecipe(**vars(CASES[name]) | {"top_k": 2 if CASES[name].top_k else None})
        found, gradients = run(*models, recipe)
        assert found.kl >= 0
        assert found.ce >= 0
        assert all(x.isfinite().all() for x in (*found, *gradients))
        kl = brute_force(*models, recipe)[1]
        noise = 1e-6 * max(float((hidden @ head.T).abs().max()) for hidden, head in models[:2])
        assert found.kl.item() == pytest.approx(
            kl, rel=1e-3, abs=10 * (noise**2 + noise * max(kl, 0) ** 0.5) + 1e-9
        )


@DTYPES
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", ["kl", "kl_warm", "reverse_kl", "jsd"])
def test_the_teacher_itself_costs_nothing(name, vocabulary, dtype):
    _, teacher, targets = cast(make_models(2, 9, 64, vocabulary, apart=0, size=20.0), dtype)
    found, gradients = run(teacher, teacher, targets, CASES[name])
    assert found.total.item() == 0
    assert not any(x.any() for x in gradients)


def test_sums_are_independent_of_chunks():
    models = cast(make_models(4, 24, 16, 1003, apart=0.3, size=3.0), torch.bfloat16)
    whole, gradients = run(*models, CASES["kl_ce"])
    for rows in (1, 5):
        found, ours = run(*models, CASES["kl_ce"], chunk_bytes=8 * 1003 * rows)
        assert found.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
        assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 2**-7


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_states_are_not_hidden(name, bad):
    student, teacher, targets = make_models(8, 4, 8, 1003, apart=0.3)
    student[0][1, 2] = bad
    assert not run(student, teacher, targets, CASES[name])[0].total.isfinite()


@pytest.mark.parametrize("name", ["kl_ce", "jsd", "sft"])
def test_no_rows_and_no_gradients(name):
    models = cast(make_models(3, 0, 8, 97, apart=0.1), torch.bfloat16)
    found, gradients = run(*models, CASES[name])
    assert [x.item() for x in found] == [0, 0, 0]
    assert not gradients[1].any()
    models = cast(make_models(3, 5, 8, 97, apart=0.1), torch.bfloat16)
    with torch.no_grad():
        on_device = [x.to(DEVICE) for x in (*models[0], *models[1], models[2])]
        measured = distillation_loss(*on_device, CASES[name])
    assert measured.total.item() == run(*models, CASES[name])[0].total.item()


@pytest.mark.skipif(not CUDA, reason="measures the memory of a CUDA device")
def test_memory_is_that_of_a_chunk():
    student, teacher, targets = cast(make_models(6, 4096, 64, 151_936, apart=0.1), torch.bfloat16)
    hidden = student[0].cuda().requires_grad_()
    head, *teacher, targets = (x.cuda() for x in (student[1], *teacher, targets))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    distillation_loss(hidden, head, *teacher, targets, CASES["kl_ce"]).total.backward()
    # Both models' logits in float32 and their gradient in bfloat16; all rows' logits would be three times that.
    assert torch.cuda.max_memory_allocated() - before < 1.35 * losses.CHUNK_BYTES["cuda"]
