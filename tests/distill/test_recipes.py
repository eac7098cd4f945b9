"""Recipes: the shipped ones say what the paper's tables say, and mistakes are named in one line."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from distill import conversion, recipe_checks, recipes
from distill.cli.recipes import recipes_command
from distill.recipe import Recipe
from distill.recipes import list_recipes, load_recipe, write_recipe
from distill_eval.errors import OutputError, RecipeError

SEVEN, FIVE = (0, 2, 6, 11, 13, 18, 21), (2, 11, 12, 17, 21)
WHOLE = ("mixers", "mlp", "norms")
M = 10**6
# Table 9.
STAGES = {
    "stage1": ("mixer", ("query_key",), "pretraining", 30 * M, 5e-4, 2048, 16, 8),
    "stage2": ("block", ("mixers",), "pretraining", 30 * M, 1e-4, 2048, 16, 8),
    "stage3a": (None, WHOLE, "pretraining", 500 * M, 2.5e-5, 2048, 64, 2),
    "stage3b": (None, WHOLE, "instruction", 500 * M, 2.5e-5, 4096, 64, 2),
}
# What differs without being the table's matter.
FREE = ("name", "about", "held_out", "split", "subset")
# What each row changes in the main recipe: the changed values in the order of the table's rows.
ROWS: dict[str, list[dict[str, Any]]] = {
    "2": [
        {},
        {"student.attention_layers": ()},
        {"student.attention_layers": (), "student.mixer": "mamba2"},
        {"student.mixer": "mamba2"},
    ],
    "3": [
        {"student.attention_layers": FIVE, "stage3a.tokens": tokens * M, "stage3b.tokens": 250 * M}
        for tokens in (100, 250, 500)
    ],
    "4": [
        {"data.instruction.sources.0.path": path}
        for path in (
            "a-m-team/AM-Qwen3-Distilled",
            "JunxiongWang/sftdatasetv3",
            "Mxode/Chinese-Instruct",
            "HuggingFaceTB/smoltalk2",
            "teknium/OpenHermes-2.5",
            "nvidia/Nemotron-Post-Training-Dataset-v1",
        )
    ],
    "5": [
        {"stage3b.loss.objective": objective, "data.instruction.mask": mask, "stage3b.tokens": tokens * M}
        for mask in ("all", "completion")
        for objective in ("sft", "kl")
        for tokens in (250, 500, 750)
    ],
    "6": [
        {"student.attention_layers": FIVE, "stage3b.train": train} for train in (("attention", *WHOLE), WHOLE)
    ],
    "10": [
        {
            "student.output_gate": gate,
            "student.post_norm": norm,
            "student.init": init,
            "stages": stages,
            "stage3a.tokens": 100 * M,
            "data.pretraining.sources.0.weight": 1,
            "data.pretraining.sources.1.path": None,
        }
        for gate, norm, init, stages in (
            ("silu", False, "vo", ("stage1", "stage2", "stage3a")),
            ("sigmoid", False, "vo", ("stage1", "stage2", "stage3a")),
            ("silu", True, "vo", ("stage1", "stage2", "stage3a")),
            ("silu", False, "qkvo", ("stage1", "stage2", "stage3a")),
            ("silu", False, "qkvo", ("stage2", "stage3a")),
            ("silu", False, "vo", ("stage2", "stage3a")),
            ("silu", False, "random", ("stage1", "stage2", "stage3a")),
        )
    ],
    "13": [
        {"stage3b.tokens": 250 * M, "stage3b.loss.top_k": top_k} for top_k in (None, 100, 500, 1000, 10000)
    ],
    "14": [
        {
            "student.attention_layers": FIVE,
            "stage3b.train": ("attention", *WHOLE),
            "stage3b.loss.ce_weight": weight,
        }
        for weight in (0.0, 0.1, 0.035, 0.01)
    ],
    "15": [
        {"stage3b.tokens": tokens * M, "stage3b.lr": lr}
        for tokens, lr in ((250, 2.5e-5), (500, 2.5e-5), (750, 2.5e-5), (100, 1e-5), (250, 1e-5), (500, 1e-5))
    ],
    "16": [
        {"stage3b.tokens": tokens * M, "stage3b.train": train}
        for train, budgets in ((WHOLE, (250, 500, 750)), (("mixers", "norms"), (100, 250, 500, 750)))
        for tokens in budgets
    ],
    "17": [{"stage3b.tokens": tokens * M} for tokens in (250, 500, 750)]
    + [
        {
            "stages": ("stage1", "stage2", "stage3"),
            "stage3.data": "pretraining+instruction",
            "stage3.mixing": mixing,
            "stage3.tokens": tokens * M,
            "stage3.lr": 2.5e-5,
            "stage3.sequence_length": 4096,
            "stage3.train": WHOLE,
            "stage3.loss.objective": "kl",
            "data.pretraining.sources.0.weight": english,
            "data.pretraining.sources.1.weight": chinese,
        }
        for mixing, tokens, english, chinese in (
            ((0.5, 0.5), 500, 29, 71),
            ((0.67, 0.33), 750, 29, 71),
            ((0.5, 0.5), 750, 29, 71),
            ((0.5, 0.5), 750, 1, 1),
            ((0.33, 0.67), 750, 29, 71),
            ((0.5, 0.5), 1000, 29, 71),
            ((0.25, 0.75), 1000, 29, 71),
            ((0.15, 0.85), 1000, 29, 71),
            ((0.1, 0.9), 1000, 29, 71),
            ((0.15, 0.85), 2000, 29, 71),
        )
    ],
}


@pytest.fixture(scope="module")
def shipped() -> list[Recipe]:
    return list_recipes()


@pytest.fixture
def write(tmp_path: Path):
    def write(body: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(body)
        return str(tmp_path / name)

    return write


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return a recipe's values by dotted key, as they are overridden; tuples of plain values stay whole."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and any(dataclasses.is_dataclass(entry) for entry in value):
        value = {str(i): entry for i, entry in enumerate(value)}
    if not isinstance(value, dict):
        return {place: value}
    found: dict[str, Any] = {}
    for key, entry in value.items():
        found |= flat(entry, f"{place}.{key}".removeprefix(".").removeprefix("stage."))
    return found


def fails(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(name, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_main_is_tables_8_and_9():
    main = load_recipe("main")
    assert (main.name, main.teacher, main.stages) == ("main", "Qwen/Qwen3-0.6B", tuple(STAGES))
    student = main.student
    assert (student.attention_layers, student.mixer, student.init) == (SEVEN, "kda", "vo")
    assert (student.output_gate, student.conv_size, student.post_norm) == ("silu", 4, False)
    for name, expected in STAGES.items():
        stage = main.stage[name]
        found = (stage.target, stage.train, stage.data, stage.tokens, stage.lr)
        assert (*found, stage.sequence_length, stage.batch_size, stage.micro_batch_size) == expected
        assert (stage.betas, stage.warmup, stage.decay, stage.min_lr_ratio) == ((0.9, 0.95), 0.1, 0.1, 0.02)
        assert (stage.weight_decay, stage.clip) == (0.1, 1.0)
        loss = stage.loss
        assert (loss.objective, loss.temperature, loss.ce_weight, loss.top_k) == ("kl", 1.0, 0.0, None)
    assert [source.weight for source in main.data["pretraining"].sources] == [29, 71]
    english, chinese = main.data["pretraining"].sources
    assert (english.min_score, chinese.min_score) == (4, None)
    assert (english.streaming, chinese.streaming) == (True, True)
    assert (main.data["pretraining"].mask, main.data["instruction"].mask) == ("all", "completion")
    assert main.data["instruction"].sources[0].path == "a-m-team/AM-Qwen3-Distilled"


@pytest.mark.parametrize("table", ROWS)
def test_every_row_is_one_recipe_that_changes_what_the_table_says(table: str, shipped: list[Recipe]):
    main = flat(load_recipe("main"))
    found = [
        flat(recipe)
        for recipe in shipped
        if recipe.about.startswith(f"Table {table}:") or (table == "2" and recipe.name == "main")
    ]
    assert len(found) == len(ROWS[table])
    for row in ROWS[table]:
        wanted = {key: value for key, value in (main | row).items() if not key.endswith(FREE)}
        # What neither main nor the row knows, like a stage that is not run, cannot differ.
        same = [
            all(got.get(key) == wanted[key] for key in wanted if key in got or key in row) for got in found
        ]
        assert same.count(True) == 1, row


def test_all_load_and_say_what_they_are(shipped: list[Recipe]):
    assert len({recipe.name for recipe in shipped}) == len(shipped) == len(list(recipes.FOLDER.iterdir()))
    assert all(recipe.about and len(recipe.about) < 110 for recipe in shipped)
    counts = Counter(recipe.about.split(":")[0].removeprefix("Table ") for recipe in shipped)
    assert {table: counts[table] + (table == "2") for table in ROWS} == {
        t: len(rows) for t, rows in ROWS.items()
    }
    assert [recipe.name for recipe in shipped][:2] == ["main", "table2-hybrid-mamba"]
    assert shipped[-1].name == "toy"


def test_initialisations_are_those_of_conversion():
    assert recipe_checks.INITIALISATIONS == conversion.INITIALISATIONS


def test_offline_recipes_run_every_stage(shipped: list[Recipe]):
    offline = [recipe for recipe in shipped if recipe.teacher == "demo:smollm2"]
    assert [recipe.name for recipe in offline] == ["smollm2-kda", "toy"]
    for recipe in offline:
        assert recipe.stages == tuple(STAGES)
        assert len(recipe.student.attention_layers) == 8
        paths = {source.path for data in recipe.data.values() for source in data.sources}
        assert paths == {"data/text.jsonl", "data/chat.jsonl"}


def test_written_recipes_read_back_equal(shipped: list[Recipe], tmp_path: Path):
    for recipe in shipped:
        write_recipe(recipe, tmp_path / "resolved.yaml")
        assert load_recipe(str(tmp_path / "resolved.yaml")) == recipe
    with pytest.raises(OutputError, match="cannot write"):
        write_recipe(shipped[0], tmp_path / "none" / "resolved.yaml")


def test_overrides():
    recipe = load_recipe(
        "main",
        [
            "stage3b.lr=1e-5",
            "stage3b.tokens=1.1B",
            "stage3b.betas=[0.9, 0.99]",
            "stage3b.loss={temperature: 2}",
            "stage1.tokens=1_000_000",
            "data.pretraining.sources.0.path=mine.jsonl",
            "eval.suite=quick",
            "eval.stages=[stage3b]",
            "student.output_gate=",
        ],
    )
    stage, source = recipe.stage["stage3b"], recipe.data["pretraining"].sources[0]
    assert (stage.lr, stage.tokens, stage.betas, stage.loss.temperature) == (
        1e-5,
        1_100_000_000,
        (0.9, 0.99),
        2,
    )
    assert recipe.stage["stage1"].tokens == M
    assert (source.path, source.min_score) == ("mine.jsonl", 4)
    assert recipe.eval is not None
    assert (recipe.eval.suite, recipe.eval.stages) == ("quick", ("stage3b",))
    assert recipe.student.output_gate is None


def test_a_file_extends_another_and_keeps_only_the_stages_it_runs(write):
    write("extends: main\nabout: between\nstage3b: {tokens: 5M}\n", "between.yaml")
    recipe = load_recipe(write("extends: between.yaml\nstages: [stage1, stage3b]\nstage3b: {lr: 1e-3}\n"))
    assert (recipe.name, recipe.about, list(recipe.stage)) == ("mine", "", ["stage1", "stage3b"])
    assert (recipe.stage["stage3b"].tokens, recipe.stage["stage3b"].lr) == (5 * M, 1e-3)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("extends: mine.yaml\n", "extends goes in a circle: mine.yaml > mine.yaml"),
        ("extends: other.yaml\n", "extends: there is no file"),
        ("extends: mian\n", "extends: no recipe 'mian' is shipped; did you mean 'main'?"),
        ("extends: [main]\n", "extends must be a text, got [main]"),
        ("extends: main\nteachr: x\n", "teachr is an unknown key; did you mean 'teacher'?"),
        ("extends: main\nstage3b: {lrr: 1}\n", "stage3b.lrr is an unknown key; did you mean 'lr'?"),
        ("extends: main\nstage3b: [lr]\n", "stage3b must be a mapping, got [lr]"),
        (
            "extends: main\nstages: [stage1, stage9]\n",
            "stage9 is among the stages, but nothing says what it is",
        ),
        ("extends: main\nstages: [data]\n", "stages must be names of letters, digits, _ and -"),
        ("extends: main\nstages: []\n", "stages must be a list of at least one, each once, got []"),
        ("extends: main\ndata: {a.b: {sources: [{path: x}]}}\n", "data.a.b must be named by letters"),
        ("teacher: x\nstages: [a]\na: {data: d, lr: 1}\ndata: {}\nstudent: {}\n", "a.tokens is missing"),
        ("stages: [a]\na: {data: d, lr: 1, tokens: 1M}\ndata: {}\nstudent: {}\n", "teacher is missing"),
        ("extends: main\nextends: main\n", "malformed YAML: key 'extends' is given twice"),
    ],
)
def test_mistakes_in_a_file_are_named(write, body: str, problem: str):
    message = fails(write(body))
    assert problem in message
    assert "mine.yaml" in message


def test_the_file_that_set_the_value_is_named(write):
    write("extends: main\nstage3b: {lr: -1}\n", "parent.yaml")
    assert "parent.yaml: stage3b.lr must be more than 0, got -1" in fails(write("extends: parent.yaml\n"))
    assert fails("main", "stage3b.lr=-1") == "--set stage3b.lr=-1: stage3b.lr must be more than 0, got -1"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stage3b.lr", "must be KEY=VALUE, like stage3b.lr=1e-5"),
        ("stage3b..lr=1", "must be KEY=VALUE"),
        ("stage3b.lr=2024-13-45", "the value is malformed YAML: month must be in 1..12"),
        ("eval.limit=5", "eval.suite is missing"),
        ("stage3b.lr=[", "the value is malformed YAML"),
        ("stage3b.lr.x=1", "stage3b.lr is a value and has no keys"),
        ("stage3b.lr=fast", "must be a number, got fast"),
        ("stage3b.lr=.nan", "must be a number"),
        ("stage3b.lr=true", "must be a number, got true"),
        ("stage3c.lr=1", "stage3c is an unknown key; did you mean 'stage"),
        ("stage3b.tokens=1.5", "must be a whole number, got 1.5"),
        (
            "stage3b.tokens=200K",
            "must be at least one step's (batch_size * sequence_length = 262144), got 200000",
        ),
        ("stage3b.data=instructions", "'instructions', which the recipe's data lacks; did you mean 'inst"),
        (
            "stage3b.data=pretraining+instruction",
            "mixing must hold one share for each of",
        ),
        ("stage3b.data=instruction+instruction", "must name each data once"),
        ("stage3b.mixing=[0.5, 0.4]", "must be shares above 0 that sum to 1"),
        ("stage3b.mixing=[0.5, 0.5]", "must hold one share for each of instruction (1)"),
        ("stage3b.micro_batch_size=3", "batch_size must be a multiple of micro_batch_size (3), got 64"),
        ("stage3b.warmup=0.95", "warmup + decay is 1.05"),
        ("stage3b.betas=[0.9]", "must be a list of 2, got 1"),
        ("stage3b.train=[mlps]", "must be a list, each once, of attention, mixers"),
        ("stage3b.train=[query_key]", "must not hold query_key without a target"),
        ("stage1.train=[mlp]", "must be [mixers] or [query_key] where target is mixer"),
        ("stage1.loss.top_k=5", "loss must be left out where target is mixer"),
        ("stage1.target=layer", "must be one of mixer, block, got layer"),
        ("stage3b.loss={objective: sft, temperature: 2}", "objective sft does not use it"),
        ("stage3b.loss={objective: jsd, top_k: 5}", "loss.top_k must be left out"),
        ("stage3b.activation_checkpointing=1", "must be true or false, got 1"),
        ("student.attention_layers=[0, 0]", "must be layers counted from 0, each once"),
        ("student.attention_layers=[-1]", "must be layers counted from 0, each once"),
        ("student.mixer=kada", "must be one of kda, mamba2, gated_deltanet, got kada"),
        ("data.pretraining.sources.2.path=x", "'2' must be an entry's number from 0 to 1"),
        ("data.pretraining.sources.0.weight=0", "data.pretraining.sources.0.weight must be more than 0"),
        ("data.pretraining.sources.0.messages=chat", "messages must be left out where text"),
        ("data.pretraining.mask=completion", "mask must be all: source 0"),
        ("data.pretraining.sources=[]", "must be a list of at least one source"),
        ("eval.suite=1", "eval.suite must be a text, got 1"),
        ("eval={suite: quick, stages: [stage4]}", "names 'stage4', which is none of the stages"),
        ("training.seed=-1", "must be 0 or more"),
    ],
)
def test_wrong_values_are_named(override: str, problem: str):
    message = fails("main", override)
    assert problem in message
    # What does not fit together may be said of the other value.
    assert message.startswith((f"--set {override}: ", "distill/recipes/main.yaml: stage3b."))


def test_an_override_of_a_stage_that_does_not_run_is_refused():
    message = fails("table17-50-50-500M", "stage3b.lr=1e-5")
    assert message == "--set stage3b.lr=1e-5: stage3b is not among the stages run: stage1, stage2, stage3"


def test_recipes_that_are_not_there():
    assert "did you mean 'table6-frozen'?" in fails("table6-frozn")
    assert "`distill recipes` lists them" in fails("qqq")
    assert "there is no file none.yaml" in fails("none.yaml")


def test_the_command_lists_them_and_prints_one(tmp_path: Path):
    app = typer.Typer()
    app.command()(recipes_command)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "120"})
        assert result.exit_code == 0
        return result.output

    listed = run()
    assert "table5-sft-all-500M" in listed
    assert max(len(line) for line in listed.splitlines()) <= 120
    rows = {row["name"]: row for row in json.loads(run("--json"))}
    assert (rows["main"]["table"], rows["toy"]["table"]) == ("2, 8, 9", "")
    assert rows["table13-full"] == {
        "name": "table13-full",
        "table": "13",
        "about": "KL over the full vocabulary, 250M tokens in stage 3b",
    }
    (tmp_path / "printed.yaml").write_text(run("table6-frozen"))
    assert load_recipe(str(tmp_path / "printed.yaml")) == load_recipe("table6-frozen")
    assert json.loads(run("table6-frozen", "--json"))["student"]["attention_layers"] == list(FIVE)
