"""Who answers: the served name, the server's version and, on this machine, the folder behind it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_eval.errors import BackendError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest
from tests.backends.openai.stub import StubServer

REQUEST = GenerateRequest((5, 6), 3, GREEDY)


def test_numerics_say_who_answers(make_backend: Callable, server: StubServer):
    backend = make_backend()
    numerics = backend.numerics
    assert numerics["engine"] == "openai"
    assert (numerics["endpoint"], numerics["served_model"], numerics["server"]) == (
        server.url,
        "tiny",
        "vllm 0.99",
    )
    assert server.requests == []
    server.owner, server.version = "llamacpp", None
    assert make_backend().numerics["server"] == "llamacpp"


@pytest.mark.parametrize("served", ["tiny", "/models/tiny", "FOLDER", "org/tiny"])
def test_the_served_name_may_be_any_of_the_checkpoints(
    make_backend: Callable, server: StubServer, checkpoint: Checkpoint, served: str
):
    server.model = str(checkpoint.folder) if served == "FOLDER" else served
    assert make_backend().numerics["served_model"] == server.model


def test_another_model_is_refused(make_backend: Callable, server: StubServer):
    server.model = "other"
    with pytest.raises(
        BackendError, match=r"serves 'other', and none of that is called its name; say which it is"
    ):
        make_backend().numerics["server"]
    assert make_backend(served_models=("tiny=other",)).numerics["served_model"] == "other"
    with pytest.raises(BackendError, match="does not serve 'third' but 'other'; start the right server"):
        list(make_backend(served_models=("third",)).generate([REQUEST]))


def test_two_models_of_the_name(make_backend: Callable, server: StubServer, monkeypatch: pytest.MonkeyPatch):
    entries = [{"id": "a/tiny"}, {"id": "b/tiny"}]
    monkeypatch.setattr(server, "models", lambda: {"data": entries})
    with pytest.raises(BackendError, match="serves 'a/tiny', 'b/tiny', more than one of which has its name"):
        make_backend().numerics["server"]


def test_a_url_that_is_none(make_backend: Callable, server: StubServer):
    wrong = server.url.removesuffix("/v1")
    with pytest.raises(
        BackendError, match=r"/models is not there \(HTTP 404\): check --base-url, which often ends"
    ):
        make_backend(base_urls=(wrong,)).numerics["server"]


def test_a_server_without_a_list_is_taken_at_its_word(make_backend: Callable, server: StubServer):
    backend = make_backend(base_urls=(server.url + "/deeper",), served_models=("tiny",))
    assert backend.numerics["served_model"] == "tiny"
    assert backend.numerics["server"] == "unknown"


def test_a_server_that_is_off_is_remembered(make_backend: Callable, server: StubServer):
    url = server.url
    numerics = make_backend().numerics
    server.model = "other"  # the port serves another checkpoint now
    later = make_backend()
    assert later.numerics == numerics
    with pytest.raises(BackendError, match="serves 'other', and none"):
        list(later.generate([REQUEST]))
    assert server.server is not None
    server.server.shutdown()
    server.server.server_close()
    assert make_backend(base_urls=(url,)).numerics == numerics


def test_a_server_that_changed_is_not_mixed_with_what_it_was(make_backend: Callable, server: StubServer):
    backend = make_backend()
    assert backend.numerics["server"] == "vllm 0.99"
    server.version = "1.0"
    with pytest.raises(
        BackendError, match=r"is now 'tiny' of vllm 1.0 and was 'tiny' of vllm 0.99; run the same"
    ):
        list(backend.generate([REQUEST]))
    assert len(list(make_backend().generate([REQUEST]))) == 1


def test_the_folder_behind_a_server_on_this_machine(
    make_backend: Callable,
    server: StubServer,
    checkpoint: Checkpoint,
    tiny_model_folder: Callable[..., Path],
    tmp_path: Path,
):
    def note() -> str:
        backend: Any = make_backend()
        list(backend.generate([REQUEST]))
        return backend.notes[0]

    assert "weights could not be checked" in note()
    server.root = "org/tiny"
    assert "weights could not be checked" in note()
    server.root = str(checkpoint.folder)
    assert "started from this checkpoint's own weights" in note()
    server.root = str(shutil.copytree(checkpoint.folder, tmp_path / "copy"))
    assert "started from this checkpoint's own weights" in note()
    server.root = str(tiny_model_folder(seed=1))
    with pytest.raises(
        BackendError, match=r"serves 'tiny' from .*, which is not the same as .*: serve that folder"
    ):
        note()
