"""What can be asked of the platform, each said once: a Call, which a client sends, and whose answer is read here.

Also where it may be sent: the key goes to the platform it is for and to nobody else.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import quote

import httpx

from headway.client.errors import ClientError, Declined, Unreachable, WrongUse
from headway.client.following import PASSING
from headway.client.wire import Batch, BatchCancelled, Event, Page, Task

T = TypeVar("T")

#: Where `headway up` listens unless told otherwise.
DEFAULT_URL: Final = "http://127.0.0.1:8000"
#: A large upload's answer comes after its fsync.
ANSWER_SECONDS: Final = 300.0
CONNECT_SECONDS: Final = 5.0
#: The most that the platform takes by name in one address, and what proxies have room for (8 KB).
NAMED_TASKS: Final = 200


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    method: str
    link: str
    read: Callable[[httpx.Response], T]
    #: As httpx takes them: `params`, `content`, `headers`.
    sent: Mapping[str, Any] = field(default_factory=dict)


#: What is sent as `Authorization: Bearer`, or who is asked for it before each request: a token that ends.
Key = str | Callable[[], str]


class _AskedKey(httpx.Auth):
    """A key that is asked for before each request; where it is refused, once more: it may have ended in between."""

    def __init__(self, key: Callable[[], str]) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {_checked(self._key())}"
        response = yield request
        if response.status_code == 401 and isinstance(request.stream, httpx.ByteStream):  # a file is not sent twice
            request.headers["Authorization"] = f"Bearer {_checked(self._key())}"
            yield request


def _checked(key: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise WrongUse("HEADWAY_API_KEY: a key is printable characters without spaces.")
    return key


class Address:
    """The platform at `url`, as the owner of `key` (None: open mode). Raises WrongUse for what is neither."""

    def __init__(self, url: str, key: Key | None, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.url = with_scheme(url.rstrip("/"))
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise WrongUse(f"{url!r} is not a URL. Example: http://127.0.0.1:8000") from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise WrongUse(f"{url!r} is not the URL of a platform. Example: http://127.0.0.1:8000")
        self._prefix = parsed.path.rstrip("/")
        self.http_options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {_checked(key)}"} if isinstance(key, str) else {},
            "auth": _AskedKey(key) if callable(key) else None,
            "timeout": httpx.Timeout(answer_seconds, connect=min(answer_seconds, CONNECT_SECONDS)),
            # Reading the certificates takes longer than a whole request on loopback. Whom to trust (SSL_CERT_FILE) is
            # heeded there too.
            "verify": httpx.create_ssl_context() if parsed.scheme == "https" else False,
            # A proxy for the world outside cannot reach this machine's own loopback.
            "trust_env": not is_loopback(parsed.host),
        }

    def at(self, link: str) -> str:
        """A link of the platform's, on the platform we were pointed to."""
        if self._prefix and link.startswith(f"{self._prefix}/"):  # the platform knows under which path it is seen
            return self.url.removesuffix(self._prefix) + link
        if link.startswith("/"):
            return self.url + link
        if link.startswith(self.url + "/"):
            return link
        raise Unreachable(f"{self.url} points elsewhere ({link}); its key is not sent there.")

    def check(self, response: httpx.Response) -> None:
        """Raises Declined for a problem, Unreachable for an answer that is not Headway's. An error's body is read."""
        if response.status_code < 300:
            return
        if response.status_code < 400:
            where = response.headers.get("location", "it does not say where")
            raise Unreachable(f"{self.url} points elsewhere ({where}); the key is not sent there. Is that the URL?")
        if "json" not in response.headers.get("content-type", "") and response.status_code not in PASSING:
            raise Unreachable(f"{self.url} answers {response.status_code}, but not as Headway does. Is the URL right?")
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        raise Declined(response.status_code, problem if isinstance(problem, dict) else {})

    def read(self, call: Call[T], response: httpx.Response) -> T:
        self.check(response)
        try:
            return call.read(response)
        except (ValueError, KeyError, TypeError):
            raise self.stranger() from None

    def stranger(self) -> Unreachable:
        return Unreachable(f"{self.url} answers, but not as Headway does. Is the URL right?")

    def unreachable(self, error: httpx.RequestError) -> ClientError:
        late = isinstance(error, httpx.TimeoutException)
        why = "it does not answer in time" if late else str(error) or "the connection was lost"
        return Unreachable(f"{self.url} cannot be reached: {why}. Is it running? Start it with: headway up")


def with_scheme(url: str) -> str:
    """`127.0.0.1:8000` and `tasks.example.org`, as an address bar takes them: http on this machine's own loopback,
    https elsewhere. A word alone is no address."""
    if not re.fullmatch(r"([\w-]+(\.[\w-]+)+|[\w.-]+:\d+|\[[0-9a-fA-F:.]+\](:\d+)?)(/.*)?", url):
        return url
    try:
        return f"http://{url}" if is_loopback(httpx.URL(f"http://{url}").host) else f"https://{url}"
    except httpx.InvalidURL:
        return url


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _object(response: httpx.Response) -> Any:
    found = response.json()
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004 - as what is no JSON at all
    return found


def _task(response: httpx.Response) -> Task:
    found = _object(response)
    found["task_id"], found["status"]  # a KeyError says that it is no task
    return cast("Task", found)


def _page(response: httpx.Response) -> Page:
    found = _object(response)
    found["tasks"], found["next_cursor"]
    return cast("Page", found)


def path_of(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def batch_path(batch_id: str) -> str:
    return f"/batches/{quote(batch_id, safe='')}"


def create(announced: Mapping[str, Any], idempotency_key: str | None = None) -> Call[Task]:
    """`POST /tasks`: with a filename the task awaits its file at `links.upload`, without one it is queued."""
    headers = {"Content-Type": "application/json"}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    # Escaped, so that a file's name that is not UTF-8 does not stop at our own encoder.
    content = json.dumps(dict(announced)).encode()
    return Call("POST", "/tasks", _task, {"content": content, "headers": headers})


def upload(task: Task, content: Any, size_bytes: int | None) -> Call[Task]:
    """The file's bytes; without a size they are sent in chunks."""
    headers = {"Content-Type": "application/octet-stream"}
    if size_bytes is not None:
        headers["Content-Length"] = str(size_bytes)
    return Call("PUT", task["links"]["upload"], _task, {"content": content, "headers": headers})


def task(task_id: str) -> Call[Task]:
    return Call("GET", path_of(task_id), _task)


def act(task_id: str, action: str) -> Call[Task]:
    """`cancel` or `retry`."""
    return Call("POST", f"{path_of(task_id)}/{action}", _task)


def delete(task_id: str) -> Call[None]:
    return Call("DELETE", path_of(task_id), lambda _: None)


def note(task_id: str, author: str, text: str) -> Call[dict[str, Any]]:
    content = json.dumps({"author": author, "text": text}).encode()
    sent = {"content": content, "headers": {"Content-Type": "application/json"}}
    return Call("POST", f"{path_of(task_id)}/notes", _object, sent)


def tasks(filters: Mapping[str, str | None], limit: int, cursor: str | None) -> Call[Page]:
    params = {name: value for name, value in (filters | {"cursor": cursor}).items() if value}  # type: ignore[operator]
    return Call("GET", "/tasks", _page, {"params": {**params, "limit": str(limit)}})


def batch(batch_id: str) -> Call[Batch]:
    return Call("GET", batch_path(batch_id), lambda response: cast("Batch", _object(response)))


def cancel_batch(batch_id: str) -> Call[BatchCancelled]:
    return Call("POST", f"{batch_path(batch_id)}/cancel", lambda response: cast("BatchCancelled", _object(response)))


def processors() -> Call[list[dict[str, Any]]]:
    def listed(response: httpx.Response) -> list[dict[str, Any]]:
        found = response.json()
        return list(found["processors"] if isinstance(found, dict) else found)

    return Call("GET", "/processors", listed)


def events_links(task_ids: Collection[str], batch_id: str | None) -> list[tuple[str, list[str]]]:
    """Of many tasks: those named, so many to an address, with their ids; those of a batch, or all."""
    named = list(dict.fromkeys(task_ids))
    of_batch = [f"batch_id={quote(batch_id, safe='')}"] if batch_id is not None else []
    links = []
    for ids in [named[at : at + NAMED_TASKS] for at in range(0, len(named), NAMED_TASKS)] or [[]]:
        query = "&".join([*(f"task={quote(task_id, safe='')}" for task_id in ids), *of_batch])
        links.append((f"/events?{query}" if query else "/events", ids))
    return links


def end_of(task_ids: Collection[str]) -> Callable[[Event], bool]:
    """Whether an event is the last of these tasks; of a feed without names none is."""
    left = set(task_ids)

    def ends(event: Event) -> bool:
        if not left or not (event.is_terminal or event.name == "deleted"):
            return False
        left.discard(event.task_id)
        return not left

    return ends


def states(task_ids: Collection[str], batch_id: str | None) -> list[Call[Any]]:
    """What to ask for the states that a stream of many tasks would tell."""
    return [task(one) for one in task_ids] or [tasks({"batch_id": batch_id}, NAMED_TASKS, None)]
