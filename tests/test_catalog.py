"""Task and suite files: what is shipped, and that every mistake is one line that says what would be right."""

import json

import pytest
from typer.testing import CliRunner

from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.content import content_path, default_cache_dir
from distill_eval.errors import OptionError, TaskError

APPENDIX_B = [
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "winogrande",
    "piqa",
    "lambada_openai",
    "mmlu",
    "mmlu_redux",
    "cmmlu",
    "ceval",
    "bbh",
    "gsm8k",
    "humaneval",
    "ifeval",
    "truthfulqa",
]

GOOD = """
title: Mine
category: test
chance: 0.25
loglikelihood:
  tasks: [arc_easy]
  dataset: someone/something
  metric: acc
  item_key: {question: question, options: choices.text}
generative: null
"""


@pytest.fixture(scope="module")
def catalog():
    return load_catalog()


def write(folder, text, name="mine.yaml"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text)
    return folder


def test_settings_are_those_of_appendix_b(catalog):
    assert set(APPENDIX_B) <= set(catalog.tasks)
    shots = {name: catalog.tasks[name].generative for name in APPENDIX_B if catalog.tasks[name].generative}
    assert {name: spec.num_fewshot for name, spec in shots.items() if spec.num_fewshot} == {
        "mmlu": 5,
        "ceval": 5,
        "gsm8k": 4,
    }
    redux = catalog.tasks["mmlu_redux"]
    assert redux.generative.num_fewshot == 0
    assert any("5-shot" in text for text in redux.differs), "the deviation from Appendix B must be said"


def test_metrics_and_protocols(catalog):
    for name in ("arc_easy", "arc_challenge", "hellaswag", "piqa"):
        assert catalog.tasks[name].loglikelihood.metric == "acc_norm"
        assert set(catalog.tasks[name].loglikelihood.metrics) == {"acc", "acc_norm"}
    assert catalog.tasks["winogrande"].loglikelihood.metric == "acc"
    assert catalog.tasks["lambada_openai"].loglikelihood.metrics == ("acc", "perplexity")
    without_loglikelihood = {name for name in APPENDIX_B if catalog.tasks[name].loglikelihood is None}
    assert without_loglikelihood == {"gsm8k", "bbh", "ifeval", "humaneval"}
    assert [name for name in APPENDIX_B if catalog.tasks[name].generative is None] == ["lambada_openai"]
    assert [name for name in APPENDIX_B if getattr(catalog.tasks[name].generative, "runs_code", False)] == [
        "humaneval"
    ]
    counts = {name: len(catalog.tasks[name].loglikelihood.tasks) for name in ("mmlu", "cmmlu", "ceval")}
    assert counts == {"mmlu": 57, "cmmlu": 67, "ceval": 52}


def test_suites(catalog):
    assert catalog.suites["paper"].tasks == tuple(APPENDIX_B)
    table1 = select_tasks(catalog, "table1")
    both = [task.name for task in table1 if task.loglikelihood and task.generative]
    assert both == ["arc_easy", "arc_challenge", "hellaswag", "winogrande"]
    assert [task.name for task in table1][4:] == ["gsm8k", "humaneval", "ifeval"]
    assert {"knowledge", "quick"} <= set(catalog.suites)


def test_select_keeps_order_and_drops_repeats(catalog):
    names = ["gsm8k", "arc_easy", "gsm8k"]
    assert [task.name for task in select_tasks(catalog, names=names)] == ["gsm8k", "arc_easy"]
    with pytest.raises(TaskError, match="unknown task 'arc_eazy'; did you mean 'arc_easy'"):
        select_tasks(catalog, names=["arc_eazy"])
    with pytest.raises(TaskError, match="unknown suite 'tabel1'; did you mean 'table1'"):
        select_tasks(catalog, "tabel1")
    with pytest.raises(OptionError, match="exclude each other"):
        select_tasks(catalog, "table1", ["gsm8k"])
    with pytest.raises(OptionError, match="no task given"):
        select_tasks(catalog)


def test_a_user_adds_a_task_and_a_suite(tmp_path):
    write(tmp_path, GOOD)
    write(tmp_path / "suites", "title: Mine\ntasks: [mine, gsm8k]\n", "ours.yaml")
    catalog = load_catalog([tmp_path])
    assert [task.name for task in select_tasks(catalog, "ours")] == ["mine", "gsm8k"]
    task = catalog.tasks["mine"]
    assert (task.namespace, task.chance, task.loglikelihood.metrics) == ("mine", 0.25, ("acc",))
    assert load_catalog([tmp_path, tmp_path]).tasks.keys() == catalog.tasks.keys()


def test_own_items_need_no_engine_names(tmp_path):
    text = """
title: Mine
category: test
items: questions.jsonl
chance: 1/options
loglikelihood: {metric: acc, options: {prompt: "{question}\\n{choices}\\nAnswer:", target: letter}}
generative: {metric: exact_match, options: {prompt: "{question}"}}
"""
    task = load_catalog([write(tmp_path, text)]).tasks["mine"]
    assert task.loglikelihood.tasks == ("mine",)
    assert task.generative.benchmark == "mine"
    assert task.loglikelihood.item_key == task.generative.item_key
    for prompt in ("no question", "{question} {answer}", "{question} {"):
        with pytest.raises(TaskError, match=r"options\.prompt m"):
            load_catalog([write(tmp_path, text.replace('"{question}"', f'"{prompt}"'))])


def test_arms(catalog):
    # Prompts that ask for a letter at once. MMLU, MMLU-Redux, CMMLU and C-Eval want or show reasoning first.
    forms = {name: task.generative.letters for name, task in catalog.tasks.items() if task.generative}
    assert {name for name, form in forms.items() if form} == {
        "arc_easy", "arc_challenge", "hellaswag", "winogrande", "piqa", "truthfulqa",
    }  # fmt: skip
    arms = {name: task.generate_until for name, task in catalog.tasks.items() if task.generate_until}
    assert set(arms) == {"gsm8k", "bbh", "ifeval", "humaneval"}
    for name, spec in arms.items():
        assert spec.num_fewshot == catalog.tasks[name].generative.num_fewshot
    assert len(arms["bbh"].tasks) == 27


@pytest.mark.parametrize(
    ("letters", "key", "message"),
    [
        (
            "ANSWER: A",
            ", options: choices.text",
            r"generative\.letters must contain \{letter\} once.*'ANSWER: A'",
        ),
        ("{letter}{letter}", ", options: choices.text", r"generative\.letters must contain \{letter\} once"),
        ("ANSWER: {letter}", "", r"generative\.letters needs a task whose prompt shows options by letter"),
    ],
)
def test_letters_need_a_form_and_options(tmp_path, letters, key, message):
    spec = (
        f"{{benchmark: arc, dataset: a/b, metric: acc, item_key: {{question: q{key}}}, letters: '{letters}'}}"
    )
    write(tmp_path, GOOD.replace("generative: null", f"generative: {spec}"))
    with pytest.raises(TaskError, match=message):
        load_catalog([tmp_path])


def test_arms_of_own_items(tmp_path):
    text = """
title: Mine
category: test
items: questions.jsonl
generative: {metric: exact_match, letters: "{letter}", options: {prompt: "{question} {choices}", target: letter}}
"""
    assert load_catalog([write(tmp_path, text)]).tasks["mine"].generative.letters == "{letter}"
    with pytest.raises(TaskError, match=r"letters needs a task whose prompt shows options by letter"):
        load_catalog([write(tmp_path, text.replace(", target: letter", ""))])
    with pytest.raises(TaskError, match=r"generate_until needs a task of lm-eval's"):
        load_catalog([write(tmp_path, f"{text}generate_until: {{tasks: gsm8k}}\n")])


MISTAKES = [
    ("category: test", "category: test\nfewshot: 3", r"unknown key 'fewshot'"),
    ("metric: acc", "metirc: acc", r"unknown key 'loglikelihood\.metirc'; did you mean 'metric'"),
    (
        "question: question",
        "qestion: q",
        r"unknown key 'loglikelihood\.item_key\.qestion'; did you mean 'question'",
    ),
    ("metric: acc", "metric: acc\n  num_fewshot: -1", r"num_fewshot must be >= 0, got -1"),
    ("metric: acc", "metric: acc\n  num_fewshot: 1.5", r"num_fewshot must be a whole number, got 1\.5"),
    ("metric: acc", "metric: acc\n  num_fewshot: true", r"num_fewshot must be a whole number, got True"),
    ("metric: acc", "metric: acc\n  metrics: [acc_norm]", r"metric 'acc' is not among metrics"),
    ("metric: acc", "metric: 3", r"metric must be a text, got 3"),
    ("  metric: acc\n", "", r"loglikelihood\.metric is required"),
    (
        "metric: acc",
        "metric: acc\n  options: {confg: {}}",
        r"unknown key 'loglikelihood\.options\.confg'.*'config'",
    ),
    ("tasks: [arc_easy]", "tasks: []", r"tasks must be a text or a list of texts"),
    ("tasks: [arc_easy]", "tasks: [arc_easy, 3]", r"tasks must be a text or a list of texts"),
    ("chance: 0.25", "chance: 1.0", r"chance must be a number in \[0, 1\), '1/options' or null, got 1\.0"),
    ("chance: 0.25", "chance: 1/choices", r"chance must be"),
    ("chance: 0.25", "chance: .nan", r"chance must be"),
    ("chance: 0.25", "cluster: passage", r"cluster must be one of subset, options, question"),
    ("chance: 0.25", "direction: up", r"direction must be one of higher, lower"),
    ("chance: 0.25", "max_new_tokens: 0", r"max_new_tokens must be >= 1"),
    ("title: Mine\n", "", r"title is required"),
    ("title: Mine", "title: Mine\ntitle: Yours", r"mine\.yaml:3: malformed YAML: key 'title' is given twice"),
    ("category: test", "category: [test", r"mine\.yaml:\d+: malformed YAML"),
    ("loglikelihood:", "loglikelihood: null\nother:", r"unknown key 'other'"),
    ("generative: null", "generate_until: {tasks: gsm8k}", r"generate_until\.metric is required"),
    (
        "generative: null",
        "generate_until: {task: gsm8k}",
        r"unknown key 'generate_until\.task'; did you mean 'tasks'",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_each_mistake_is_one_line(tmp_path, old, new, message):
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TaskError, match=message) as caught:
        load_catalog([tmp_path])
    text = str(caught.value)
    assert "\n" not in text
    assert "mine.yaml" in text


def test_a_task_needs_a_protocol(tmp_path):
    write(tmp_path, "title: a\ncategory: b\nloglikelihood: null\ngenerative: null\n")
    with pytest.raises(TaskError, match="both null"):
        load_catalog([tmp_path])


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_a_file_must_be_a_mapping(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(TaskError, match="must be a mapping"):
        load_catalog([tmp_path])


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00title")
    with pytest.raises(TaskError, match=r"cannot read .*mine\.yaml"):
        load_catalog([tmp_path])


def test_a_name_claimed_twice_names_both_files(tmp_path):
    write(tmp_path, GOOD, "gsm8k.yaml")
    with pytest.raises(
        TaskError, match=r"task 'gsm8k' is defined twice: in tasks/gsm8k\.yaml and in .*gsm8k"
    ):
        load_catalog([tmp_path])
    write(tmp_path / "a", GOOD)
    write(tmp_path / "b", "name: mine\n" + GOOD, "other.yaml")
    with pytest.raises(TaskError, match=r"a/mine\.yaml and in .*b/other\.yaml"):
        load_catalog([tmp_path / "a", tmp_path / "b"])


def test_suites_are_checked(tmp_path):
    for text, message in (
        ("title: x\ntasks: [gsm8]\n", "unknown task 'gsm8'; did you mean 'gsm8k'"),
        ("title: x\ntasks: [gsm8k, gsm8k]\n", "'gsm8k' is listed twice"),
        ("title: x\ntask: gsm8k\n", "unknown key 'task'; did you mean 'tasks'"),
        ("title: x\n", "tasks is required"),
    ):
        write(tmp_path / "suites", text, "bad.yaml")
        with pytest.raises(TaskError, match=message):
            load_catalog([tmp_path])


def test_a_tasks_folder_must_exist(tmp_path):
    with pytest.raises(TaskError, match="does not exist"):
        load_catalog([tmp_path / "absent"])


def test_content_and_cache_places(monkeypatch, tmp_path):
    assert (content_path("tasks") / "gsm8k.yaml").is_file()
    with pytest.raises(FileNotFoundError, match="installation"):
        content_path("no/such")
    monkeypatch.delenv("DISTILL_EVAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "distill-eval"
    monkeypatch.setenv("DISTILL_EVAL_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def invoke(command, *arguments):
    import typer

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "100"})


def test_tasks_list_and_show(catalog):
    from distill_eval.cli.tasks import tasks_list_command, tasks_show_command

    text = invoke(tasks_list_command).stdout
    for name in APPENDIX_B:
        assert name in text
    assert "table1: arc_easy, arc_challenge, hellaswag, winogrande, gsm8k, humaneval, ifeval" in text
    assert max(map(len, text.split("suites")[0].splitlines())) <= 100
    listed = json.loads(invoke(tasks_list_command, "--json").stdout)
    assert set(listed["tasks"]) == set(catalog.tasks)
    shown = invoke(tasks_show_command, "mmlu_redux").stdout
    assert "EvalScope 1.14.1 runs MMLU-Redux without examples" in shown
    assert json.loads(invoke(tasks_show_command, "gsm8k", "--json").stdout)["generative"]["num_fewshot"] == 4
    with pytest.raises(TaskError, match="unknown task 'nope'"):
        invoke(tasks_show_command, "nope")
