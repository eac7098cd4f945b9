"""Per item, the prompts and scores of lm-eval's own ``simple_evaluate`` over the same files."""

import pytest

from distill_eval.protocols import longbench
from tests.protocols.made_longbench import row, write_mirror

OUTPUTS = (
    " Orla Fenn",
    "Tam moved to Marlow Ferry and kept bees.\nNothing else.",
    "老王在河边种了苹果树。",
    "Paragraph 2 of 12",
    "",
    "    total += bees  # one\n    return total",
    "Individual title",
)
ANSWERS = {
    "passage_count": ["12"],
    "passage_retrieval_en": ["Paragraph 2"],
    "passage_retrieval_zh": ["段落2"],
    "lcc": ["    return total"],
    "repobench-p": ["    return total"],
    "lsht": ["Individual"],
}
CLASSES = {"all_classes": ["Individual", "Individual title"]}


def made_rows(task):
    change = {"answers": ANSWERS[task]} if task in ANSWERS else {}
    return [row(task, index, 2) | CLASSES | change for index in range(len(OUTPUTS))]


def test_every_task_scores_as_lm_eval_does(tmp_path):
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import quiet_engine, task_file

    class Fixed(LM):
        def generate_until(self, requests, disable_tqdm=True):
            return [OUTPUTS[request.doc_id] for request in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    names = longbench.task_names()
    bases = {name: name.removeprefix("longbench_") for name in names}
    mirror = write_mirror(
        tmp_path / "mirror", {base: made_rows(base.removesuffix("_e")) for base in bases.values()}
    )
    longbench.import_scorers()
    # lm-eval reads the files itself, through its own loader.
    folder = {"dataset_path": str(mirror / longbench.DATASET), "dataset_kwargs": {"cache_dir": str(tmp_path)}}
    configs = [load_yaml(task_file(name), resolve_func=True) | folder for name in names]
    with quiet_engine():
        manager = TaskManager(include_defaults=False)  # the index of all tasks takes 7 s
        theirs = simple_evaluate(model=Fixed(), tasks=configs, task_manager=manager, bootstrap_iters=0)
    for name in names:
        built = longbench.build(name, mirror)
        samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(OUTPUTS)
        for doc, sample, output in zip(built.docs, samples, OUTPUTS, strict=True):
            ((prompt, settings),) = sample["arguments"]
            assert built.engine.doc_to_text(doc) == prompt
            assert built.engine.config.generation_kwargs == settings
            scores = longbench.score(built.engine, name, doc, output)
            assert scores == {metric: sample[metric] for metric in sample["metrics"]}
        mean = sum(sample["score"] for sample in samples) / len(samples)
        assert theirs["results"][name]["score,none"] == pytest.approx(mean)
        assert 0 < mean < 1, "the fixed answers tell right from wrong"
