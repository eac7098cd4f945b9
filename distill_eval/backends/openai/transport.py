"""HTTP to one endpoint: many requests at once, tried again with backoff, no faster than allowed, keys never shown."""

import asyncio
import email.utils
import queue
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import httpx

from distill_eval.backends.openai.endpoint import Endpoint, read_key
from distill_eval.checkpoints.architectures import first_line
from distill_eval.errors import BackendError

CONNECT_S = 10.0
CLOSE_S = 5.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 600.0
# Servers close idle connections (uvicorn after 5 s); one closed while a request is under way costs a retry.
KEEP_ALIVE_S = 2.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
SHOWN = 200  # characters of a server's own words in an error

Answer = dict[str, Any]


class EndpointError(BackendError):
    """What the endpoint answered for good; ``status`` is None where there was no usable answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Transport:
    """Connections to one endpoint, on an event loop in a thread of its own that starts with the first request.

    A caller waits on a queue, which Ctrl-C interrupts at once; what is under way is then cancelled.
    """

    def __init__(self, endpoint: Endpoint, where: str) -> None:
        self.endpoint = endpoint
        self._where = f"{where}: endpoint {endpoint.url}"
        self._key = read_key(endpoint.key_variable)
        self._interval = 60.0 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self._next_turn = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def get(self, url: str, *, retries: int | None = None) -> Answer:
        """Return the JSON object at ``url``. Raises EndpointError, after all retries where they could help."""
        return self._submit(self._ask("GET", url, None, retries)).result()

    def post(self, path: str, body: Answer) -> Answer:
        """Return the answer to one request to ``path`` below the endpoint's URL; EndpointError as for ``get``."""
        return self._submit(self._ask("POST", self.endpoint.url + path, body, None)).result()

    def post_all(self, path: str, bodies: Sequence[Answer]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as each arrives. The first failure is raised after what had arrived before it."""
        arrived: queue.SimpleQueue[tuple[int, Answer] | BaseException] = queue.SimpleQueue()
        work = self._submit(self._ask_all(path, bodies, arrived))
        try:
            for _ in bodies:
                found = arrived.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            work.cancel()

    def close(self) -> None:
        """Drop the connections; the next request opens them again."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join(CLOSE_S)

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            endpoint = self.endpoint
            self._http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx.Timeout(
                    endpoint.timeout_s, connect=min(CONNECT_S, endpoint.timeout_s), pool=None
                ),
                limits=httpx.Limits(max_connections=endpoint.concurrency, keepalive_expiry=KEEP_ALIVE_S),
            )
            ready = threading.Event()
            # A daemon: the process may end while a request is under way.
            self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
            self._thread.start()
            ready.wait()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _serve(self, ready: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with self._http:
            ready.set()
            await self._stop.wait()

    async def _ask_all(self, path: str, bodies: Sequence[Answer], arrived: queue.SimpleQueue) -> None:
        url = self.endpoint.url + path
        waiting = iter(enumerate(bodies))

        async def work() -> None:
            for index, body in waiting:
                arrived.put((index, await self._ask("POST", url, body, None)))

        workers = [asyncio.ensure_future(work()) for _ in range(min(self.endpoint.concurrency, len(bodies)))]
        try:
            await asyncio.gather(*workers)
        except Exception as error:
            arrived.put(error)
        finally:
            for worker in workers:
                worker.cancel()

    async def _ask(self, method: str, url: str, body: Answer | None, retries: int | None) -> Answer:
        retries = self.endpoint.max_retries if retries is None else retries
        for attempt in range(retries + 1):
            await self._turn()
            status, retry_after = None, None
            try:
                response = await self._http.request(method, url, json=body)
            except httpx.TimeoutException as error:
                waited = CONNECT_S if isinstance(error, httpx.ConnectTimeout) else self.endpoint.timeout_s
                problem = f"no answer within {min(waited, self.endpoint.timeout_s):g} s"
            except httpx.RequestError as error:
                problem = f"no connection ({first_line(error) or type(error).__name__})"
            else:
                status = response.status_code
                answer = _json_object(response)
                if status == 200 and answer is not None:
                    return answer
                problem = _explain(response, answer, self.endpoint.key_variable)
                if status != 200 and status not in RETRIED:
                    raise self._error(problem, status)
                retry_after = _retry_after(response)
            if attempt == retries:
                tries = f", {retries + 1} tries" if retries else ""
                raise self._error(f"{problem}{tries}", status)
            if retry_after is not None and retry_after > LONGEST_RETRY_AFTER_S:
                raise self._error(f"{problem}; it asks to come back in {retry_after:.0f} s", status)
            if retry_after is not None:  # meant for everybody
                self._next_turn = max(self._next_turn, time.monotonic() + retry_after)
            else:
                longest = min(FIRST_BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    async def _turn(self) -> None:
        """Wait for the next moment at which a request may be sent, and take it."""
        while (wait := self._next_turn - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._next_turn = max(self._next_turn, time.monotonic()) + self._interval

    def _error(self, problem: str, status: int | None) -> EndpointError:
        text = " ".join(f"{self._where}: {problem}".split())
        return EndpointError(text.replace(self._key, "***") if self._key else text, status)


def _json_object(response: httpx.Response) -> Answer | None:
    try:
        answer = response.json()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _explain(response: httpx.Response, answer: Answer | None, key_variable: str | None) -> str:
    status = response.status_code
    if status == 200:
        return f"an answer that is no JSON object ({len(response.content)} bytes)"
    if status in (401, 403):  # not quoted: servers repeat parts of the key
        held = "the key in" if read_key(key_variable) else "no key in"
        name = key_variable or "the environment (over plain http only one named by --api-key-env is sent)"
        return f"HTTP {status}: access refused with {held} {name}"
    if 300 <= status < 400:
        return f"HTTP {status}: it redirects; give the address where it ends as --base-url"
    error = (answer or {}).get("error")
    said = error.get("message") if isinstance(error, dict) else error or (answer or {}).get("message")
    text = " ".join(str(said or response.text).split())
    return f"HTTP {status}: {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}" if text else f"HTTP {status}"


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    text = response.headers.get("retry-after", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
