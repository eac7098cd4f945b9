"""A small server on loopback with OpenAI's completions route, which can be told to misbehave."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Misbehave = Callable[[BaseHTTPRequestHandler], None]


def logprob_of(token: int) -> float:
    """What the stub's model says of every token, wherever it stands; token 4 is the likeliest."""
    return -0.25 * (abs(token - 4) + 1)


class StubServer:
    """Answers like vLLM; every other behaviour is set by a test.

    ``new_tokens``: what it generates. ``faults``: taken off the left, one a completions request, before it behaves.
    ``extras``: whether fields beyond OpenAI's are known, or else refused. ``ids``: whether prompts may be token ids.
    ``scores``: "vllm", "echo" or None. ``tells_ids``: whether token ids come back. ``requests``: every body it got.
    """

    def __init__(self, decode: Callable[[Any], str], encode: Callable[[str], list[int]]) -> None:
        self.decode, self.encode = decode, encode
        self.model, self.root, self.owner = "tiny", None, "vllm"
        self.version: str | None = "0.99"
        self.max_model_len: int | None = 512
        self.new_tokens: list[int] = [7, 8, 9]
        self.finish_reason, self.stop_reason = "length", None
        self.faults: deque[Misbehave] = deque()
        self.extras = self.ids = self.tells_ids = True
        self.scores: str | None = "vllm"
        self.key: str | None = None
        self.delay_s = 0.0
        self.requests: list[Body] = []
        self.times: list[float] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self.server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def models(self) -> Body:
        entry = {
            "id": self.model,
            "owned_by": self.owner,
            "root": self.root,
            "max_model_len": self.max_model_len,
        }
        return {"object": "list", "data": [entry]}

    def complete(self, body: Body) -> tuple[int, Body]:
        known = {
            "model", "prompt", "max_tokens", "temperature", "top_p", "n", "presence_penalty", "frequency_penalty",
            "seed", "stop", "echo", "logprobs",
        }  # fmt: skip
        extra = sorted(set(body) - known)
        if body["model"] != self.model:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if extra and not self.extras:
            return 400, {"error": {"message": f"Unrecognized request argument supplied: {extra[0]}"}}
        prompt = body["prompt"]
        if not isinstance(prompt, str) and not self.ids:
            return 422, {"error": {"message": "prompt must be a string"}}
        tokens = self.encode(prompt) if isinstance(prompt, str) else prompt
        new = self.new_tokens[: body["max_tokens"]]
        choice: Body = {"index": 0, "text": self.decode(new), "finish_reason": self.finish_reason}
        choice["stop_reason"] = self.stop_reason
        if self.tells_ids and body.get("return_token_ids"):
            choice["token_ids"] = new
        if self.scores == "vllm" and "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *map(self._entry, tokens[1:])]
        if self.scores == "echo" and body.get("echo") and "logprobs" in body:
            if body["max_tokens"] == 0:
                return 400, {"error": {"message": "max_tokens must be at least 1"}}
            whole = [*tokens, *new]
            choice["logprobs"] = {
                "tokens": [self.decode([token]) for token in whole],
                "token_logprobs": [None, *map(logprob_of, whole[1:])],
                "top_logprobs": [None, *({"x": logprob_of(4)} for _ in whole[1:])],
            }
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(new)}
        return 200, {"model": self.model, "choices": [choice], "usage": usage}

    def _entry(self, token: int) -> Body:
        return {str(id): {"logprob": logprob_of(id), "rank": 1 + (id != 4)} for id in {token, 4}}

    @contextmanager
    def running(self) -> Iterator["StubServer"]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    send(self, 200, stub.models())
                elif self.path == "/version" and stub.version:
                    send(self, 200, {"version": stub.version})
                else:
                    send(self, 404, {"detail": "Not Found"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    stub.requests.append(body)
                    stub.times.append(time.monotonic())
                    stub._at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub._at_once)
                    fault = stub.faults.popleft() if stub.faults else None
                try:
                    if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
                        given = self.headers.get("Authorization")
                        send(self, 401, {"error": {"message": f"Incorrect API key: {given}"}})
                    elif fault:
                        fault(self)
                    elif self.path != "/v1/completions":
                        send(self, 404, {"detail": "Not Found"})
                    else:
                        time.sleep(stub.delay_s)
                        send(self, *stub.complete(body))
                finally:
                    with stub._lock:
                        stub._at_once -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


def send(
    handler: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def busy(retry_after: str | None = None, status: int = 429) -> Misbehave:
    headers = {"Retry-After": retry_after} if retry_after is not None else None
    return lambda handler: send(handler, status, {"error": {"message": "too busy"}}, headers)


def refuse(status: int, message: str = "no") -> Misbehave:
    return lambda handler: send(handler, status, {"error": {"message": message}})


def garble(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, b'{"choices": [')


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.5)
    hang_up(handler)
