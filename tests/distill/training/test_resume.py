"""A run that was killed, stopped or spread over processes leaves what an undisturbed one leaves."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distill.training.conftest import metrics, weights
from tests.distill.training.fakes import make_recipe


def assert_same(one, other, stages=("align", "distill")):
    assert metrics(one) == metrics(other)
    for stage in stages:
        a, b = weights(one, stage), weights(other, stage)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(teacher, tmp_path_factory):
    """The folder of a run of one process or of two that nothing happened to."""
    made = {}

    def get(train, world: int):
        if world not in made:
            out = made[world] = tmp_path_factory.mktemp("undisturbed") / "out"
            assert train(make_recipe(teacher, log_every=3), out, world)[0] == [0] * world
        return made[world]

    return get


# 2 stages of 4 steps; a process alone runs 4 micro-batches a step. At 11 the last checkpoint is of step 2 of the first.
@pytest.mark.parametrize(("world", "calls"), [(1, ("11", "7")), (2, ("6",))])
def test_a_killed_run_goes_on_bit_for_bit(train, undisturbed, teacher, tmp_path, world, calls):
    out, recipe = tmp_path / "out", make_recipe(teacher, log_every=3)
    for call in calls:
        codes, _ = train(recipe, out, world, KILL_AT=call, KILL_RANK=str(world - 1))
        assert codes[-1] == -9
    assert train(recipe, out, world)[0] == [0] * world
    assert_same(undisturbed(train, world), out)


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(train, undisturbed, teacher, tmp_path):
    out, recipe = tmp_path / "out", make_recipe(teacher, log_every=3)
    for rename in (
        "1",
        "2",
        "2",
    ):  # of a step's checkpoint, of the first stage's end, of its student's folder
        assert train(recipe, out, KILL_AT_RENAME=rename)[0] == [-9]
    assert train(recipe, out)[0] == [0]
    assert_same(undisturbed(train, 1), out)
    assert not list(out.glob("checkpoints/.*"))


def test_ctrl_c_saves_and_the_next_run_goes_on(train, undisturbed, teacher, tmp_path):
    out, recipe = tmp_path / "out", make_recipe(teacher, log_every=3)
    assert train(recipe, out, STOP_AT="5")[0] == [130]  # in step 2; the next is told to be the last
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "align-00000002",
        "align-00000003",
    ]
    assert train(recipe, out)[0] == [0]
    assert_same(undisturbed(train, 1), out)


def test_two_processes_learn_what_one_does(train, teacher, tmp_path):
    losses = {}
    for strategy, world in (("auto", 1), ("ddp", 2), ("fsdp2", 2)):
        out = tmp_path / strategy
        # Adam divides by the root of tiny squares, and at a larger rate makes rounding visible.
        stage = {"lr": 1e-4, "batch_size": 5, "tokens": 4 * 5 * 16}  # one of two has a row more
        recipe = make_recipe(teacher, strategy=strategy, measure_every=2, stage=stage)
        assert train(recipe, out, world)[0] == [0] * world
        losses[strategy] = metrics(out)
    for strategy in ("ddp", "fsdp2"):
        for one, other in zip(losses["auto"], losses[strategy], strict=True):
            assert one.keys() == other.keys()
            for key in one.keys() & {"loss", "kl", "held_out_kl", "held_out_perplexity"}:
                assert other[key] == pytest.approx(one[key], rel=1e-6)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_more_processes_than_rows_and_a_resume_on_fewer(train, teacher, tmp_path):
    stage = {"lr": 1e-4, "batch_size": 1, "tokens": 4 * 16}
    recipe = make_recipe(teacher, strategy="fsdp2", stage=stage)
    assert train(recipe, tmp_path / "whole")[0] == [0]
    assert train(recipe, tmp_path / "out", 2, STOP_AT="3")[0] == [130, 130]
    assert train(recipe, tmp_path / "out", 1)[0] == [0]
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "out"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_what_a_run_leaves(train, undisturbed, teacher):
    out = undisturbed(train, 1)
    assert sorted(path.name for path in out.iterdir()) == [
        "align", "checkpoints", "distill", "metrics.jsonl", "recipe.yaml",
    ]  # fmt: skip
    lines = metrics(out)
    assert [(line["stage"], line["step"], line["tokens"]) for line in lines] == [
        ("align", 3, 192), ("align", 4, 256), ("distill", 3, 192), ("distill", 4, 256),
    ]  # fmt: skip
    assert lines[-1]["lr"] == pytest.approx(3e-3)
    assert {"held_out_kl", "held_out_perplexity", "held_out_teacher_perplexity"} <= lines[1].keys()
    assert lines[-1]["held_out_kl"] < lines[1]["held_out_kl"]

    start, end = weights(out, "align"), weights(out)
    for name in end:  # trained in float32 and moved, or frozen and bit for bit as it was
        trained = "embed_tokens" not in name and "layers.1.self_attn" not in name and "lm_head" not in name
        assert torch.equal(start[name], end[name]) != trained, name
    student = load_file(out / "distill" / "model.safetensors")
    kept = ("A_log", "dt_bias")
    assert all(
        value.dtype == (torch.float32 if name.endswith(kept) else torch.bfloat16)
        for name, value in student.items()
    )
    assert all(
        torch.equal(student[name].float(), end[name].to(student[name].dtype).float()) for name in student
    )
    record = json.loads((out / "distill" / "distill_provenance.json").read_text())
    assert record["stage"] == "distill"
    assert [source["path"] for source in record["data"]] == ["toy"]
    assert record["teacher"]["name"] == teacher.name
    assert record["training"]["steps"] == 8
    assert record["training"]["metrics"]["held_out_kl"] == lines[-1]["held_out_kl"]
    assert str(teacher.parent) not in (out / "distill" / "distill_provenance.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(out / "distill").dtype == torch.bfloat16


def test_a_changed_recipe_is_refused_and_what_moves_no_number_is_not(train, undisturbed, teacher):
    out, recipe = undisturbed(train, 1), make_recipe(teacher, log_every=3)
    changed = replace(recipe, stage={**recipe.stage, "align": replace(recipe.stage["align"], lr=1.0)})
    codes, texts = train(changed, out)
    assert codes == [2]
    assert "was begun with stage.align.lr = 0.003, now it is 1.0" in texts[0]
    free = replace(recipe, about="other", training=replace(recipe.training, log_every=1, keep=5))
    assert train(free, out)[0] == [0]
