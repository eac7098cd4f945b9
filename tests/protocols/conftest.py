"""What tests of the protocols share: canned and tiny clients, made items, made mirrors."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec
from tests.protocols.made_tasks import arc_rows, arc_task

OWN_ROWS = (
    ("Which colour is the sky at noon?", ("blue", "green stripes", "a loud red"), "blue", "sky"),
    ("What is two plus three?", ("five", "seven boats", "nobody"), "five", "sums"),
    ("Who sells bread?", ("the red fox", "a baker", "the clock"), "a baker", "work"),
    ("What left the harbour?", ("boats", "the sky", "small cakes"), "boats", "work"),
)


class TorchClient:
    """The client's contract over a model in memory; ``calls`` keeps what it was asked."""

    def __init__(self, folder, max_length: int | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.max_length = max_length or self.model.config.max_position_embeddings
        self.checkpoint = SimpleNamespace(label="tiny", fingerprint="f" * 64)
        self.calls: list[tuple[str, list[ScoreRequest]]] = []

    def score(self, requests: Sequence[ScoreRequest], *, label: str) -> list[ScoreResponse]:
        import torch

        self.calls.append((label, list(requests)))
        responses = []
        for request in requests:
            ids = torch.tensor([[*request.context, *request.continuation][:-1]])
            with torch.inference_mode():
                logits = self.model(input_ids=ids).logits[0]
            logprobs = logits[-len(request.continuation) :].float().log_softmax(-1)
            wanted = torch.tensor(request.continuation)
            total = logprobs.gather(1, wanted[:, None]).sum().item()
            responses.append(ScoreResponse(total, bool((logprobs.argmax(-1) == wanted).all())))
        return responses


@pytest.fixture(scope="session")
def ranker_folder(tiny_model_folder) -> Path:
    return tiny_model_folder("ranker", std=0.5)


@pytest.fixture
def torch_client(ranker_folder) -> Callable[..., TorchClient]:
    """A maker of clients; ``max_length`` is the model's own unless given."""
    return lambda max_length=None: TorchClient(ranker_folder, max_length)


@pytest.fixture
def client(torch_client) -> TorchClient:
    return torch_client()


@pytest.fixture
def own_rows() -> list[dict]:
    names = ("question", "options", "answer", "subset")
    return [dict(zip(names, (q, list(options), *rest), strict=True)) for q, options, *rest in OWN_ROWS]


@pytest.fixture
def own(tmp_path, own_rows) -> Callable[..., TaskSpec]:
    """A maker of tasks over rows of one's own, written as a user would."""

    def make(rows=None, metric="acc_norm", target="option", **changes) -> TaskSpec:
        lines = [json.dumps(row) + "\n" for row in (own_rows if rows is None else rows)]
        (tmp_path / "items.jsonl").write_text("".join(lines))
        spec = LoglikelihoodSpec(
            tasks=("mine",),
            dataset="",
            metric=metric,
            item_key=ItemKey(question=("question",), options=("options",), subset="subset"),
            options={"prompt": "Question: {question}\n{choices}\nAnswer:", "target": target},
        )
        task = TaskSpec(
            "mine", "Mine", "made", spec, None, chance="1/options", namespace="mine", items="items.jsonl",
            source_file=str(tmp_path / "mine.yaml"),
        )  # fmt: skip
        return replace(task, **changes)

    return make


@pytest.fixture
def mirror(tmp_path) -> Callable[..., Path]:
    """A maker of a mirror that holds one data set of made rows."""

    def make(dataset: str, rows: list[dict], split: str = "test", config: str = "default") -> Path:
        import datasets

        folder = tmp_path / "mirror" / dataset
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        files = f"  data_files:\n  - split: {split}\n    path: {split}.parquet\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n{files}---\n")
        return tmp_path / "mirror"

    return make


@pytest.fixture
def engine_task() -> Callable[..., TaskSpec]:
    """A maker of tasks over one of lm-eval's."""

    def make(name: str, dataset: str, metric: str, key: ItemKey, **spec) -> TaskSpec:
        ranked = LoglikelihoodSpec((name,), dataset, metric, key, **spec)
        return TaskSpec(name, name, "made", ranked, None, namespace=name)

    return make


@pytest.fixture
def hellaswag(engine_task) -> Callable[..., TaskSpec]:
    def make(metric="acc_norm", **spec) -> TaskSpec:
        key = ItemKey(("ctx_a", "ctx_b"), ("endings",), subset="")
        return engine_task("hellaswag", "Rowan/hellaswag", metric, key, **spec)

    return make


@pytest.fixture
def lambada(engine_task) -> TaskSpec:
    return engine_task("lambada_openai", "EleutherAI/lambada_openai", "acc", ItemKey(("text",), subset=""))


@pytest.fixture
def swag_row() -> Callable[..., dict]:
    def make(label: str, number: int = 0, **more) -> dict:
        endings = ["sails away.", "eats the bridge.", "counts to ten.", "closes the shop."]
        row = {"ind": number, "activity_label": "Boating", "ctx_a": f"Boat {number} is ready."}
        return row | {"ctx_b": "the crew", "endings": endings, "label": label, **more}

    return make


class CannedClient:
    """What ``generative.score`` needs of a client; ``answers``: prompt token ids -> text."""

    def __init__(self, tokenizer: Any, max_length: int = 100_000, finish_reason: str = "stop") -> None:
        self.tokenizer, self.max_length, self.finish_reason = tokenizer, max_length, finish_reason
        self.checkpoint = SimpleNamespace(label="model", fingerprint="f" * 64)
        self.answers: dict[bytes, str] = {}

    def answer(self, requests: Sequence[GenerateRequest], texts: Sequence[str]) -> None:
        for request, text in zip(requests, texts, strict=True):
            self.answers[request.digest()] = text

    def lookup_generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse | None]:
        return [self._response(self.answers.get(request.digest())) for request in requests]

    def _response(self, text: str | None) -> GenerateResponse | None:
        if text is None:
            return None
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return GenerateResponse(tokens, text, self.finish_reason, (1.0,) * len(tokens))


@pytest.fixture
def canned_client() -> type[CannedClient]:
    return CannedClient


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_folder: Callable[..., Path]) -> Any:
    """A real tokenizer with a chat template, of a checkpoint too small to matter."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder())


@pytest.fixture
def arc(made_data):
    data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
    from distill_eval.protocols import generative

    return generative.load(arc_task(), data_dir)


@pytest.fixture
def gsm8k_data(made_data):
    def row(a: int, b: int) -> dict:
        return {"question": f"Ann has {a} pens and buys {b}. How many?", "answer": f"{a} + {b}\n#### {a + b}"}

    train = [row(n, 1) for n in range(5)]
    # A test question that is also an example must not change that question's key.
    test = [train[0], row(20, 3), row(1000, 234), row(40, 5)]
    return made_data("made/gsm8k", {"main": {"train": train, "test": test}})
