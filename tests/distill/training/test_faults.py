"""What goes wrong ends the run with one line that says what and where; the last good checkpoint stays."""

from dataclasses import replace

import pytest

from distill.recipe import EvalRecipe
from distill.strategies import start_accelerator
from distill.trainer import train as train_here
from distill_eval.errors import OptionError
from tests.distill.training.conftest import metrics
from tests.distill.training.fakes import make_recipe


# Alone, calls 13 to 16 are the fourth step's four micro-batches; with two processes, 7 and 8 are each one's two.
@pytest.mark.parametrize(
    ("world", "strategy", "variables", "message"),
    [
        (1, "auto", {"NAN_AT": "14"}, "the loss is nan; micro-batch 2 of 4 (rows 1 of the process's share), whose"),
        (1, "auto", {"BREAK_AT": "15"}, "micro-batch 3 of 4 (rows 2 of the process's share), first in student.model.l"),
        (1, "auto", {"BAD_GRADIENT_AT": "16"}, "the gradient's norm is nan; micro-batch"),
        (2, "ddp", {"NAN_AT": "8"}, "the loss is nan; process 0: micro-batch 2 of 2"),
        (2, "fsdp2", {"BAD_GRADIENT_AT": "7"}, "the gradient of model.norm.weight is not finite"),
    ],
)  # fmt: skip
def test_bad_numbers_stop_before_the_optimizer_steps(
    train, teacher, tmp_path, world, strategy, variables, message
):
    out = tmp_path / "out"
    codes, texts = train(make_recipe(teacher, stages=1, strategy=strategy), out, world, **variables)
    assert codes == [2] * world
    [line] = [line for line in texts[0].splitlines() if line.startswith("error:")]
    assert "stage 'distill', step 4: " in line
    assert message in line
    assert f"last good checkpoint: {out / 'checkpoints' / 'distill-00000002'}" in line
    assert "error" not in "".join(texts[1:])
    assert [record["step"] for record in metrics(out)] == [1, 2, 3]


def test_an_exploding_loss_stops_the_run(train, teacher, tmp_path):
    recipe = make_recipe(teacher, stages=1, steps=12)
    codes, texts = train(recipe, tmp_path / "out", EXPLODE_AT="45")
    assert codes == [2]
    assert "step 12: the loss is" in texts[0]
    assert "over 20 times its running mean" in texts[0]
    assert "micro-batch 1 of 4" in texts[0]


def test_a_lost_process_ends_the_others_with_a_message(train, teacher, tmp_path):
    codes, texts = train(make_recipe(teacher, stages=1), tmp_path / "out", 2, KILL_AT="5", KILL_RANK="1")
    assert codes == [2, -9]
    assert "another process of this run was lost" in texts[0]
    assert "Traceback" not in texts[0]


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_leaves_the_checkpoint_before(train, teacher, tmp_path, world):
    out, recipe = tmp_path / "out", make_recipe(teacher, stages=1)
    # A checkpoint flushes three files, their folder and the folder above; this one is in the stage's end.
    codes, texts = train(recipe, out, world, DISK_FULL_AT_FLUSH="7")
    assert codes == [2] * world
    assert f"checkpoint '{out / 'checkpoints' / 'distill-end'}' cannot be written: No space left" in texts[0]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["distill-00000002"]
    assert train(recipe, out, world)[0] == [0] * world


def test_what_is_not_installed_or_not_known_is_said_first(teacher, tmp_path):
    for field, message in (
        ({"wandb": "project"}, "training.wandb: the package 'wandb' is not installed"),
        ({"tensorboard": True}, "training.tensorboard: the package 'tensorboard' is not installed"),
        ({"strategy": "zero2"}, "training.strategy: zero2 needs DeepSpeed"),
    ):
        recipe = make_recipe(teacher, **field)
        with pytest.raises(OptionError, match=message):
            start_accelerator(recipe.training) if "strategy" in field else train_here(
                recipe, tmp_path / "out"
            )
    assert not (tmp_path / "out").exists()


def test_an_unknown_suite_and_a_foreign_folder_are_refused(train, teacher, tmp_path):
    recipe = replace(make_recipe(teacher), eval=EvalRecipe(suite="demmo"))
    codes, texts = train(recipe, tmp_path / "out")
    assert codes == [2]
    assert "did you mean 'demo'" in texts[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    codes, texts = train(make_recipe(teacher), tmp_path / "other")
    assert codes == [2]
    assert "other' holds something else: give --out a new folder" in texts[0]


def test_students_that_do_not_fit_the_teacher(train, teacher, tiny_model_folder, tmp_path):
    from distill.recipe import StudentRecipe

    others = {
        "tokens": tiny_model_folder("tokens", num_layers=3, sentences=["A text of its own, quite another."]),
        "depth": tiny_model_folder("depth", num_layers=2),
    }
    messages = {
        "tokens": "student.checkpoint: the tokenizers of 'tokens' and of its teacher 'teacher' differ",
        "depth": "student.checkpoint: 'depth' is a llama, not a student that distill made",
    }
    for name, folder in others.items():
        recipe = replace(make_recipe(teacher), student=StudentRecipe(checkpoint=str(folder)))
        codes, texts = train(recipe, tmp_path / name)
        assert codes == [2]
        assert messages[name] in texts[0]
