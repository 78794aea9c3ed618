"""The thread by which a `report` speaks with the platform (headway/client/reporting.py).

It makes the task, or takes it over where a run before has begun it; sends what is new, and signs of life; and tells the
end. It ends when the last word was heard, or nobody wants to hear it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpcore  # noqa: F401 - httpx brings it in late: a fork in that moment would have half of it
import httpx

from headway.client.calls import Address
from headway.client.errors import ClientError, Declined, Unreachable

log: Final = logging.getLogger("headway.report")

#: Reports are at most this close together.
SEND_SECONDS: Final = 0.1
#: Of one request. The platform hangs in a thread of ours, never in the work.
ANSWER_SECONDS: Final = 10.0
FILE_SECONDS: Final = 300.0
#: Between two tries, at most.
LONGEST_WAIT_SECONDS: Final = 1.0


def _is_not_ours(record: logging.LogRecord) -> bool:
    """httpx logs each request; of a work's log the reports are no part."""
    return not (record.threadName or "").startswith("headway ")


logging.getLogger("httpx").addFilter(_is_not_ours)


class Job(Protocol):
    """What the thread needs of a report, and changes in it."""

    task_id: str | None
    attempt: int
    restored: Any
    cancelled: bool
    summary: dict[str, Any]
    _address: Address
    _asked: dict[str, Any]
    _key: str | None
    _keep: Path | None
    _alive_seconds: float
    _outputs: dict[str, str | None]
    _folder: Path | None
    _on_cancelled: Callable[[], None] | None

    def _take(self) -> list[dict[str, Any]]: ...


class Sender:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._thread = threading.Thread(target=self._run, name="headway report", daemon=True)
        self._wake = threading.Event()
        self._end: tuple[str, dict[str, Any]] | None = None
        self._unheard: list[dict[str, Any]] = []
        self._token: str | None = None
        self._key = job._key or secrets.token_hex(16)
        #: Whether an earlier try of ours may have made the task, though nobody heard so.
        self._tried = False
        self._away = False
        self._heard_at = time.monotonic()
        self._sending_file = False
        #: The last answer was one that was given before.
        self._replayed = False
        #: The end was told, and nobody knows whether it was heard.
        self._ending = False
        #: The first try to make the task is over; the last word was heard, or will not be.
        self.begun = threading.Event()
        self.ended = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def end(self, how: str, error: dict[str, Any]) -> None:
        """`complete`, `fail`; `again`: the work stops here, and another attempt is to come; or `leave`: it stops here,
        and the platform will notice that."""
        if self._end is None:
            self._end = (how, error)
        self._wake.set()

    def wait(self, patience_seconds: float) -> None:
        """Until the last word was heard, or the platform was away for this long."""
        began = time.monotonic()
        while not self.ended.wait(0.05):
            if not self._sending_file and time.monotonic() - max(began, self._heard_at) > patience_seconds:
                log.warning("the end of a task could not be told to the platform; it goes on being tried")
                return

    def _run(self) -> None:
        try:
            with httpx.Client(**self._job._address.http_options) as http:
                self._work(http)
        except Exception:
            log.exception("reports are no longer sent")
        finally:
            self.begun.set()
            self.ended.set()
            if self._end is not None and self._job._folder is not None:
                shutil.rmtree(self._job._folder, ignore_errors=True)

    def _work(self, http: httpx.Client) -> None:
        wait_seconds, said_at = SEND_SECONDS, float("-inf")
        while True:
            try:
                if self._token is None:
                    self._begin(http)
                new = self._unheard = self._unheard or self._job._take()
                if new or (self._end is None and time.monotonic() - said_at >= self._job._alive_seconds):
                    self._tell(http, new or [{"attempt": self._job.attempt}])
                    said_at = time.monotonic()
                elif self._end is not None:
                    self._last_word(http, *self._end)
                    return
                if self._job.cancelled:
                    self._cancelled()
                    return
                wait_seconds = SEND_SECONDS
            except _Over as over:
                if str(over) and not self._ending:  # of an end that was told, only the answer was lost
                    log.warning("reports are no longer sent: %s", over)
                if self._job.cancelled:
                    self._cancelled()
                return
            except Unreachable as error:
                if not self._away:
                    self._away = True
                    log.warning("%s The work goes on; what was last is told when it is back.", error)
                wait_seconds = min(LONGEST_WAIT_SECONDS, wait_seconds * 1.5)
            self.begun.set()
            if self._away:
                time.sleep(wait_seconds)
            elif self._end is None:
                self._wake.wait(wait_seconds)

    def _begin(self, http: httpx.Client) -> None:
        """Makes the task; or takes it over, where it was begun before: by who wrote the file `keep`, or with the same
        `idempotency_key`."""
        made = self._kept(http)
        if made is None:
            tried, self._tried = self._tried, True
            made = self._ask(http, "POST", "/tasks", self._job._asked, {"Idempotency-Key": self._key})
            self._job.task_id = made["task_id"]
            if self._replayed and self._job._key is not None:
                now = self._ask(http, "GET", f"/tasks/{made['task_id']}", None)
                # One that waits is begun by whoever comes first; one of ours, of whose making no answer came, too.
                if now["started_at"] is not None and not (tried and now["version"] == 1):
                    made = self._ask(http, "POST", f"/tasks/{made['task_id']}/attempts", {})
        self._job.attempt, self._job.restored = made["attempt"], made.get("restored")
        self._job.task_id, self._token = made["task_id"], made["producer_token"]
        self._keep()
        self.begun.set()

    def _kept(self, http: httpx.Client) -> dict[str, Any] | None:
        """The task that the file `keep` names, as our next attempt; None where there is none, or it is over."""
        if self._job._keep is None or not self._job._keep.exists():
            return None
        try:
            kept = json.loads(self._job._keep.read_text(encoding="utf-8"))
            if kept["url"] != self._job._address.url:
                return None
            self._token = str(kept["producer_token"])
            return self._ask(http, "POST", f"/tasks/{kept['task_id']}/attempts", {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not read, and a new task begins: %s", self._job._keep, error)
        except (_Over, Declined) as error:
            log.info("the task of %s is over, and a new one begins: %s", self._job._keep, error)
            self._job.cancelled = False
        finally:
            self._token = None
        return None

    def _keep(self) -> None:
        """Whole or not at all, and for nobody else to read: the token is in it."""
        if self._job._keep is None:
            return
        kept = {"url": self._job._address.url, "task_id": self._job.task_id, "producer_token": self._token}
        part = self._job._keep.with_name(f"{self._job._keep.name}.{os.getpid()}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(kept, file)
            part.replace(self._job._keep)
        except OSError as error:
            log.warning("%s cannot be written, so a restart begins a new task: %s", self._job._keep, error)

    def _forget(self) -> None:
        if self._job._keep is not None:
            with suppress(OSError):
                self._job._keep.unlink(missing_ok=True)

    def _cancelled(self) -> None:
        self._forget()
        if self._job._on_cancelled is not None:
            self._job._on_cancelled()

    def _tell(self, http: httpx.Client, reports: list[dict[str, Any]]) -> None:
        try:
            told = self._ask(http, "PATCH", f"{self._here}/progress", reports)
        except Declined as error:  # something in it is not as it should be: the rest is to be told all the same
            log.warning("a report was not taken: %s", error)
        else:
            self._job.cancelled = self._job.cancelled or told["cancelled"]
        self._unheard = []

    def _last_word(self, http: httpx.Client, how: str, error: dict[str, Any]) -> None:
        body: dict[str, Any] = {"attempt": self._job.attempt}
        if how == "leave":
            return
        if how == "again":
            self._tell(http, [body | error])
            return
        if how != "fail":
            self._send_files(http)
        try:
            self._tell_end(http, how, body, error)
        except Unreachable:
            self._ending = True
            raise
        self._forget()

    def _tell_end(self, http: httpx.Client, how: str, body: dict[str, Any], error: dict[str, Any]) -> None:
        if how == "fail":
            self._ask(http, "POST", f"{self._here}/fail", body | {"error": error})
            return
        try:
            self._ask(http, "POST", f"{self._here}/complete", body | {"summary": _json(self._job.summary)})
        except Declined as refused:
            log.warning("the summary was not taken: %s", refused)
            self._ask(http, "POST", f"{self._here}/complete", body | {"summary": {}})

    def _send_files(self, http: httpx.Client) -> None:
        for name, content_type in list(self._job._outputs.items()):
            assert self._job._folder is not None
            self._sending_file = True
            try:
                with (self._job._folder / name).open("rb") as file:
                    headers = {"Content-Type": content_type or "application/octet-stream"}
                    self._ask(
                        http,
                        "PUT",
                        f"{self._here}/results/{quote(name, safe='')}?attempt={self._job.attempt}",
                        file,
                        headers,
                    )
            except (Declined, OSError) as error:
                log.warning("the result %s was not taken: %s", name, error)
            finally:
                self._sending_file = False
                self._heard_at = time.monotonic()
            del self._job._outputs[name]

    @property
    def _here(self) -> str:
        return f"/tasks/{self._job.task_id}"

    def _ask(
        self, http: httpx.Client, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Raises Unreachable where it is worth another try, _Over where nobody wants to hear more, Declined else."""
        sent: dict[str, Any] = {"headers": dict(headers or {})}
        if self._token is not None:
            sent["headers"]["Authorization"] = f"Bearer {self._token}"
        if hasattr(body, "read"):
            sent |= {"content": body, "timeout": FILE_SECONDS}
        else:
            sent["content"] = None if body is None else json.dumps(body)
            sent["headers"]["Content-Type"] = "application/json"
        try:
            response = http.request(method, self._job._address.at(path), **sent)
            self._job._address.check(response)
            self._replayed = "idempotency-replayed" in response.headers
            answer = response.json()
            if not isinstance(answer, dict):
                raise self._job._address.stranger()
        except httpx.RequestError as error:
            raise self._job._address.unreachable(error) from None
        except ValueError:
            raise self._job._address.stranger() from None
        except Declined as error:
            if error.status in (408, 429) or error.status >= 500:
                raise Unreachable(str(error)) from None
            if error.status in (401, 403, 404, 409) or self._token is None:
                self._job.cancelled = self._job.cancelled or "cancelled" in error.detail
                raise _Over("" if self._job.cancelled else str(error)) from None
            raise
        if self._away:
            self._away = False
            log.info("the platform is back")
        self._heard_at = time.monotonic()
        return answer


class _Over(ClientError):
    """Nobody wants to hear more of this task."""


def _json(summary: Any) -> dict[str, Any]:
    try:
        found = json.loads(json.dumps(summary, allow_nan=False, default=str))
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("the summary has no JSON: %s", error)
        return {}
    return found if isinstance(found, dict) else {"summary": found}
