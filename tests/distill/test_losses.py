"""Stage 3's objectives against float64 brute force, on the CPU."""

import pytest
import torch

from distill import losses
from distill.losses import distillation_loss
from distill.recipe import LossRecipe
from distill_eval.errors import ConfigError, OptionError
from tests.distill.brute_force import CASES, DIVERGENCES, NEAR, brute_force, make_models, make_near, relative

VOCABULARY = 151_936
SMALL_CHUNKS = 8 * 97 * 5  # five rows of both models' logits


def run(student, teacher, targets, recipe, scale=1.0, **options):
    hidden, head = (x.detach().clone().requires_grad_() for x in student)
    found = distillation_loss(hidden, head, *(teacher or (None, None)), targets, recipe, **options)
    (found.total * scale).backward()
    return found, (hidden.grad, head.grad)


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    student, teacher, targets = make_models(0, 23, 8, 97, apart=0.6, size=3.0)
    recipe = CASES[name]
    total, kl, ce, gradients = brute_force(student, teacher, targets, recipe)
    models = None if recipe.objective == "sft" else teacher
    found, ours = run(student, models, targets, recipe, scale=-0.37, chunk_bytes=SMALL_CHUNKS)
    assert all(x.dtype == torch.float32 and x.shape == () for x in found)
    assert [found.total.item(), found.kl.item(), found.ce.item()] == pytest.approx([total, kl, ce], rel=1e-5)
    for mine, exact in zip(ours, gradients, strict=True):
        assert relative(mine, -0.37 * exact) < 1e-5


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("name", ["kl", "kl_warm", "reverse_kl", "jsd"])
def test_small_divergence_over_a_full_vocabulary(name, kind):
    models, bar = make_near(kind, 2, 8, VOCABULARY)
    total, kl, _, gradients = brute_force(*models, CASES[name])
    found, ours = run(*models, CASES[name])
    assert 1e-7 < kl / 2 < 3e-3
    assert found.total.item() == pytest.approx(total, rel=1e-4)
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < bar


@pytest.mark.parametrize("seed", range(150))
def test_never_negative_and_finite(seed):
    rng = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, generator=rng)
    models = make_models(
        seed,
        rows=3,
        width=4,
        vocabulary=int(2 + 60 * draw[0]),
        apart=float(10 ** (-9 * draw[1])),
        size=float(10 ** (5 * draw[2] - 2)),
        shift=float(100 * draw[3]) if seed % 3 == 0 else 0.0,
    )
    for name in DIVERGENCES:
        recipe = LossRecipe(**vars(CASES[name]) | {"top_k": 2 if CASES[name].top_k else None})
        found, gradients = run(*models, recipe)
        assert found.kl >= 0
        assert found.ce >= 0
        assert all(x.isfinite().all() for x in (*found, *gradients))
        kl = brute_force(*models, recipe)[1]
        # What rounding the logits to float32 alone changes.
        noise = 1e-6 * max(float((hidden @ head.T).abs().max()) for hidden, head in models[:2])
        assert found.kl.item() == pytest.approx(
            kl, rel=1e-3, abs=10 * (noise**2 + noise * max(kl, 0) ** 0.5) + 1e-9
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", [name for name in DIVERGENCES if not (CASES[name].ce_weight or CASES[name].top_k)]
)
def test_the_teacher_itself_costs_nothing(name, dtype):
    _, teacher, targets = make_models(2, 9, 8, 1003, apart=0, size=20.0)
    teacher = tuple(x.to(dtype) for x in teacher)
    found, gradients = run(teacher, teacher, targets, CASES[name])
    assert found.total.item() == 0
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("name", CASES)
def test_no_rows(name):
    student, teacher, targets = make_models(3, 0, 8, 97, apart=0.1)
    found, gradients = run(student, teacher, targets, CASES[name])
    assert [x.item() for x in found] == [0, 0, 0]
    assert found.total.requires_grad
    assert gradients[0].shape == (0, 8)
    assert not gradients[1].any()


@pytest.mark.parametrize("name", ["kl_warm_ce", "jsd", "sft"])
def test_sums_are_independent_of_chunks_and_of_calls(name):
    student, teacher, targets = make_models(4, 24, 8, 97, apart=0.3, size=3.0)
    whole, gradients = run(student, teacher, targets, CASES[name])
    for chunk_bytes in (1, SMALL_CHUNKS):
        found, ours = run(student, teacher, targets, CASES[name], chunk_bytes=chunk_bytes)
        assert found.total.item() == pytest.approx(whole.total.item(), rel=1e-6)
        assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 1e-5
    hidden, head = (x.clone().requires_grad_() for x in student)
    total = 0.0
    for rows in torch.arange(24).tensor_split(
        (1, 4, 4, 9, 15, 16, 22)
    ):  # eight uneven calls, one of them empty
        part = distillation_loss(hidden[rows], head, teacher[0][rows], teacher[1], targets[rows], CASES[name])
        part.total.backward()
        total += part.total.item()
    assert total == pytest.approx(whole.total.item(), rel=1e-6)
    assert max(relative(a, b) for a, b in zip((hidden.grad, head.grad), gradients, strict=True)) < 1e-5


def test_backward_may_run_twice():
    student, teacher, targets = make_models(5, 6, 8, 97, apart=0.3)
    hidden = student[0].clone().requires_grad_()
    total = distillation_loss(hidden, student[1], *teacher, targets, LossRecipe()).total
    first = torch.autograd.grad(total / 7, hidden, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(total / 7, hidden)[0])


def test_a_float32_head_under_bfloat16_hidden_states():
    student, teacher, targets = make_models(6, 12, 8, 97, apart=0.3, size=3.0)
    student, teacher = (student[0].bfloat16(), student[1]), tuple(x.bfloat16() for x in teacher)
    exact = brute_force((student[0], student[1].bfloat16()), teacher, targets, CASES["kl_ce"])
    found, (d_hidden, d_head) = run(student, teacher, targets, CASES["kl_ce"])
    assert (d_hidden.dtype, d_head.dtype) == (torch.bfloat16, torch.float32)
    assert found.total.item() == pytest.approx(exact[0], rel=1e-5)
    assert relative(d_hidden, exact[3][0]) < 2**-8
    assert relative(d_head, exact[3][1]) < 1e-5


@pytest.mark.parametrize("name", ["kl_ce", "jsd", "sft"])
def test_gradients_are_only_worked_out_where_wanted(name, monkeypatch):
    student, teacher, targets = make_models(7, 6, 8, 97, apart=0.3)
    kept, inner = [], losses._run_chunk
    monkeypatch.setattr(losses, "_run_chunk", lambda *x: (kept.append(x[-1]), inner(*x)))
    measured = distillation_loss(*student, *teacher, targets, CASES[name])
    hidden = student[0].clone().requires_grad_()
    with torch.no_grad():
        distillation_loss(hidden, student[1], *teacher, targets, CASES[name])
    assert kept == [None, None]
    assert not measured.total.requires_grad
    with torch.inference_mode():
        teacher = tuple(x.clone() for x in teacher)
    found = distillation_loss(hidden, student[1], *teacher, targets, CASES[name])
    assert found.total.item() == measured.total.item()
    assert [x.requires_grad for x in found] == [True, False, False]
    found.total.backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_states_are_not_hidden(name, bad):
    student, teacher, targets = make_models(8, 4, 8, 97, apart=0.3)
    student[0][1, 2] = bad
    assert not run(student, teacher, targets, CASES[name])[0].total.isfinite()


def test_mistakes():
    student, teacher, targets = make_models(9, 4, 8, 97, apart=0.3)
    with pytest.raises(OptionError, match="top_k"):
        run(student, teacher, targets, LossRecipe(objective="reverse_kl", top_k=4))
    with pytest.raises(OptionError, match="jsd_beta"):
        run(student, teacher, targets, LossRecipe(objective="jsd", jsd_beta=1.0))
    with pytest.raises(OptionError, match="targets"):
        run(student, teacher, None, LossRecipe(ce_weight=0.1))
    with pytest.raises(ConfigError, match=r"97 tokens .* 96"):
        run(student, (teacher[0], teacher[1][:-1]), targets, LossRecipe())
