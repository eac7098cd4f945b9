"""``distill train`` as a user meets it: a recipe file, real data, several stages, JSON and plain lines."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.opening import check_same_data
from distill_eval.errors import DataError
from tests.distill.training import fakes
from tests.distill.training.conftest import metrics

RECIPE = """
about: "two stages of six steps"
teacher: {teacher}
student: {{attention_layers: [1]}}
data:
  text:
    sources: [{{path: {folder}/text.jsonl, text: text, held_out: 4}}]
stages: [align, distill]
align: {{data: text, target: block, train: [mixers], tokens: 768, lr: 1e-2, sequence_length: 32, batch_size: 4}}
distill: {{data: text, tokens: 768, lr: 1e-2, sequence_length: 32, batch_size: 4}}
training: {{log_every: 2, save_every: 4, measure_every: 3}}
"""


@pytest.fixture
def recipe(teacher, tmp_path):
    lines = [json.dumps({"text": f"The red fox number {i} jumps over {i * 7} lazy dogs."}) for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(teacher=teacher, folder=tmp_path))
    return path


@pytest.fixture
def cli(cache, tmp_path):
    def run(*arguments, world: int = 1, **variables: str):
        variables |= {"DISTILL_EVAL_CACHE": str(cache)}
        log = tmp_path / "cli.log"
        return fakes.launch("run_cli", *map(str, arguments), log=log, world=world, **variables)

    return run


def test_stages_on_real_data_and_json(cli, recipe, tmp_path):
    out = tmp_path / "out"
    codes, [text] = cli("train", recipe, "--out", out, "--set", "align.lr=5e-3", "--json", REAL_DATA="1")
    assert codes == [0], text
    *lines, last = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert last == {"students": {"align": str(out / "align"), "distill": str(out / "distill")}}
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("align", "distill") for step in (2, 3, 4, 6)
    ]
    assert "lr: 0.005" in (out / "recipe.yaml").read_text()
    for stage in ("align", "distill"):
        of_stage = [line for line in lines if line["stage"] == stage]
        assert of_stage[-1]["loss"] < of_stage[0]["loss"]
    # Run again, there is nothing left to do, and nothing changes.
    before = metrics(out)
    codes, [text] = cli("train", recipe, "--out", out, "--set", "align.lr=5e-3", REAL_DATA="1")
    assert codes == [0]
    assert "next: distill-eval compare" in text
    assert metrics(out) == before


def test_a_student_says_what_it_was_trained_on(cli, recipe, tmp_path):
    out, data = tmp_path / "out", tmp_path / "text.jsonl"
    assert cli("train", recipe, "--out", out, REAL_DATA="1")[0] == [0]
    record = json.loads((out / "distill" / "distill_provenance.json").read_text())
    [source] = record["data"]
    assert (source["path"], source["documents"], source["held_out"]) == ("text.jsonl", 60, 4)
    assert source["files"] == {"text.jsonl": hashlib.sha256(data.read_bytes()).hexdigest()}
    assert str(tmp_path) not in json.dumps(record)
    assert "| data | text.jsonl |" in (out / "distill" / "README.md").read_text()


def test_what_would_stop_a_later_stage_is_said_first(cli, recipe, tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "fox"}]}))
    chat = f"data.chat={{mask: completion, sources: [{{path: {tmp_path}/chat.jsonl}}]}}"
    for changes, message in (
        (["distill.sequence_length=1024", "distill.tokens=9000"], "more than the teacher's 512 positions"),
        ([chat, "distill.data=chat"], "no chat has an answer that counts"),
        ([chat, "distill.data=chat", "data.chat.sources.0.path=/none.jsonl"], "'/none.jsonl' does not exist"),
    ):
        sets = [part for change in changes for part in ("--set", change)]
        codes, [text] = cli("train", recipe, "--out", tmp_path / "out", *sets, REAL_DATA="1")
        assert codes == [2]
        assert message in text
        assert len(text.splitlines()) == 1  # and the folder takes the mended recipe


def test_what_was_cut_or_left_out_of_chats_is_said(cli, recipe, tmp_path):
    chats = [
        [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "rain " * n}] for n in (2, 99)
    ]
    lines = [json.dumps({"messages": chat}) for chat in (*chats, chats[0][:1])]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    sets = [
        "--set",
        "data.text.sources.0={path: " + str(tmp_path / "text.jsonl") + "}",
        "--set",
        "data.text.mask=completion",
    ]
    codes, [text] = cli("train", recipe, "--out", tmp_path / "out", *sets, REAL_DATA="1")
    assert codes == [0], text
    assert re.search(
        r"align: of [\d,]+ documents read of .*text.jsonl: [\d,]+ cut to sequence_length; [\d,]+ left out",
        text,
    )


def test_changed_data_is_refused():
    before = [
        {"path": "a.jsonl", "documents": 5, "files": {"a.jsonl": "12"}},
        {"path": "some/data", "documents": None},
    ]
    check_same_data(before, before, Path("out"))
    for change in ({"documents": 6}, {"files": {"a.jsonl": "34"}}):
        with pytest.raises(DataError, match=r"'a\.jsonl' has changed since 'out' was written"):
            check_same_data(before, [before[0] | change, before[1]], Path("out"))


def test_only_the_main_process_speaks(cli, recipe, tmp_path):
    codes, texts = cli("train", recipe, "--out", tmp_path / "out", world=2)
    assert codes == [0, 0]
    assert "distill  step 6/6  loss " in texts[0]
    assert "held-out KL" in texts[0]
    assert not texts[1]


def test_ctrl_c_says_how_to_go_on(cli, recipe, tmp_path):
    codes, texts = cli("train", recipe, "--out", tmp_path / "out", STOP_AT="4")
    assert codes == [130]
    assert f"stopped; to go on: the same command, with --out {tmp_path / 'out'}" in texts[0]
    codes, texts = cli("train", recipe, "--out", tmp_path / "out")
    assert codes == [0]
    assert "goes on from step" in texts[0]


def test_mistakes_are_one_line(cli, recipe, tmp_path):
    for arguments, message in (
        (["toyy", "--out", "x"], "no recipe 'toyy' is shipped; did you mean 'toy'?"),
        ([recipe, "--out", "x", "--set", "align.rl=1"], "align.rl"),
        ([recipe], "Missing option '--out'"),
        ([recipe, "--out", tmp_path, "--set", "align.lr=1e-2"], "holds something else"),
    ):
        codes, [text] = cli("train", *arguments)
        assert codes == [2]
        assert text.startswith("error: ")
        assert message in text
        assert len(text.splitlines()) == 1


def test_help_teaches_and_needs_no_torch():
    code = (
        "import sys; sys.argv = ['distill', 'train', '--help']\n"
        "from distill.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the same command goes on" in done.stdout
    assert done.stdout.endswith("False False\n")


@pytest.mark.slow
def test_an_evaluation_after_a_stage(cli, recipe, tmp_path):
    recipe.write_text(recipe.read_text() + "eval: {suite: demo, stages: [distill], limit: 2}\n")
    (tmp_path / "out" / "eval-distill").mkdir(parents=True)  # an earlier one broke off
    shutil.copy(recipe, tmp_path / "out" / "recipe.yaml")
    codes, texts = cli("train", recipe, "--out", tmp_path / "out", world=2)
    assert codes == [0, 0], texts
    assert not (tmp_path / "out" / "eval-align").exists()
    assert (tmp_path / "out" / "eval-distill" / "results.json").is_file()
