"""Options of endpoints: which one serves which checkpoint, and what is refused without quoting it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_eval.backends.openai.endpoint import KEY_VARIABLE, check_endpoints, find_endpoint
from distill_eval.errors import OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.run import RunOptions

URL = "http://127.0.0.1:8000/v1"
SECRET = "hunter2hunter2"


@pytest.fixture
def pair(checkpoint: Checkpoint) -> list[Checkpoint]:
    return [dataclasses.replace(checkpoint, label=label) for label in ("teacher", "student")]


def options(*urls: str, run: dict[str, Any] | None = None, **endpoint: Any) -> RunOptions:
    return RunOptions(backend="openai", endpoint=EndpointOptions(base_urls=urls, **endpoint), **(run or {}))


def test_one_url_for_all_or_one_for_each(pair: list[Checkpoint]):
    found = [find_endpoint(options(URL), checkpoint) for checkpoint in pair]
    assert [endpoint.url for endpoint in found] == [URL, URL]
    asked = options(URL + "/", "student=HTTPS://Host/api/v1/", served_models=("student=org/model",))
    check_endpoints(asked, pair)
    teacher, student = (find_endpoint(asked, checkpoint) for checkpoint in pair)
    assert (teacher.url, teacher.served, teacher.on_loopback) == (URL, None, True)
    assert (student.url, student.served, student.on_loopback) == ("https://host/api/v1", "org/model", False)
    assert teacher.concurrency == 16
    assert find_endpoint(options(URL, run={"batch_size": 3}), pair[0]).concurrency == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (options(), "nothing serves checkpoint 'teacher': give --base-url http"),
        (options(f"student={URL}"), "nothing serves checkpoint 'teacher'"),
        (
            options(URL, f"studnet={URL}"),
            "--base-url: no checkpoint is called 'studnet'; did you mean 'student'",
        ),
        (options(URL, served_models=("x=y",)), "--served-model: no checkpoint is called 'x'"),
        (options(URL, URL), "--base-url: two without a label"),
        (options(f"student={URL}", f"student={URL}"), "--base-url: two for 'student'"),
        (options("student="), "--base-url: an empty value for 'student'"),
        (options("127.0.0.1:8000"), "--base-url must begin with http://"),
        (options("http://[::1"), "--base-url: not a URL"),
        (options("http://host:port/v1"), "--base-url: not a URL"),
        (options(f"http://me:{SECRET}@host/v1"), "--base-url holds a user or password"),
        (options(f"teacher=https://{SECRET}@host/v1", URL), "--base-url holds a user or password"),
        (options(f"http://host/v1?api_key={SECRET}"), "--base-url holds a query"),
        (options(f"http://host/v1#{SECRET}"), "--base-url holds a query"),
        (options(URL, api_key_env=f"sk-{SECRET}"), "--api-key-env takes the name of an environment variable"),
        (options(URL, api_key_env=SECRET), "--api-key-env names an environment variable that is not set"),
        (options(URL, requests_per_minute=0), "--requests-per-minute must be above 0, got 0"),
        (options(URL, timeout_s=-1), "--request-timeout must be above 0 seconds, got -1"),
        (options(URL, max_retries=-1), "--request-retries must be 0 or more, got -1"),
        (options(URL, run={"batch_size": 0}), "--batch-size: must be at least 1, got 0"),
        (options(URL, run={"dtype": "float32"}), "--dtype: with --backend openai this is the server's"),
        (options(URL, run={"device": "cpu"}), "--device: with --backend openai"),
        (options(URL, run={"max_memory_gib": 8}), "--max-memory: with --backend openai"),
        (options(URL, run={"backend_options": (("seed", "1"),)}), "--backend-option: with --backend openai"),
        (RunOptions(endpoint=EndpointOptions(base_urls=(URL,))), "are for --backend openai"),
    ],
)
def test_bad_options_are_one_line_without_secrets(pair: list[Checkpoint], asked: RunOptions, message: str):
    with pytest.raises(OptionError) as caught:
        check_endpoints(asked, pair)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_usual_key_is_not_sent_where_others_can_read_it(
    pair: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEAM_KEY", SECRET)
    for url, variable in (
        ("https://host/v1", KEY_VARIABLE),
        (URL, KEY_VARIABLE),
        ("http://[::1]:8000/v1", KEY_VARIABLE),
        ("http://host:8000/v1", None),
    ):
        assert find_endpoint(options(url), pair[0]).key_variable == variable
        assert find_endpoint(options(url, api_key_env="TEAM_KEY"), pair[0]).key_variable == "TEAM_KEY"
    with pytest.raises(OptionError, match="contains the key of TEAM_KEY") as caught:
        find_endpoint(options(f"https://host/{SECRET}/v1", api_key_env="TEAM_KEY"), pair[0])
    assert SECRET not in str(caught.value)


def test_opening_a_backend_touches_no_network(make_backend: Callable, tmp_path: Path):
    backend = make_backend(base_urls=("http://127.0.0.1:9/v1",))
    assert backend.notes == ()
    assert list(backend.generate([])) == []
