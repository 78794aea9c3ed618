"""Clients that send files without an end while APIs come and go: multipart, announced and PUT, and tus in pieces.

Each behaves as a careful client does: what was not answered is sent again under the same `Idempotency-Key`; a PUT again
if the task still wants it; tus goes on where the server says. What was accepted is looked for afterwards.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, Self

import httpx

Way = Literal["multipart", "PUT", "tus"]
WAYS: Final[tuple[Way, ...]] = ("multipart", "PUT", "tus")

SIZE_BYTES: Final = 400_000
#: A file comes in so many pieces, with a pause between them: a drain finds some uploads under way, whenever it is.
PIECES: Final = 8
TUS: Final = {"Tus-Resumable": "1.0.0"}
#: A client that is refused comes back after this long.
AGAIN_SECONDS: Final = 0.3
#: Whoever has come back so often would not have been served for a minute.
MOST_TRIES: Final = 200


@dataclass
class Sent:
    way: Way
    sha256: str
    #: Of the task that was accepted.
    task_id: str = ""
    #: What was answered before: a status, or the name of the error of the line.
    refused: list[str] = field(default_factory=list)


class Sender:
    """One client, on one proxy. `send_one` returns when the file is accepted."""

    def __init__(self, url: str, chance: random.Random, *, pause_seconds: float) -> None:
        self._url, self._chance, self._pause_seconds = url, chance, pause_seconds
        self._client = httpx.Client(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send_one(self, way: Way) -> Sent:
        content = self._chance.randbytes(SIZE_BYTES)
        sent = Sent(way, hashlib.sha256(content).hexdigest())
        match way:
            case "multipart":
                self._multipart(sent, content)
            case "PUT":
                self._put(sent, content)
            case "tus":
                self._tus(sent, content)
        return sent

    def _slowly(self, content: bytes) -> Iterator[bytes]:
        step = -(-len(content) // PIECES)
        for start in range(0, len(content), step):
            yield content[start : start + step]
            time.sleep(self._pause_seconds)

    def _until(self, sent: Sent, ask: Callable[[], httpx.Response], *wanted: int) -> httpx.Response:
        """Asks until the answer is one of those wanted."""
        for _ in range(MOST_TRIES):
            try:
                answer = ask()
            except httpx.TransportError as error:
                sent.refused.append(type(error).__name__)
            else:
                if answer.status_code in wanted:
                    return answer
                sent.refused.append(str(answer.status_code))
            time.sleep(AGAIN_SECONDS)
        raise AssertionError(f"{sent.way}: never answered: {Counter(sent.refused)}")

    def _key(self) -> dict[str, str]:
        return {"Idempotency-Key": f'"{self._chance.randbytes(8).hex()}"'}

    def _multipart(self, sent: Sent, content: bytes) -> None:
        head = '--x\r\nContent-Disposition: form-data; name="processor"\r\n\r\nchecksum\r\n'
        head += '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = head.encode() + content + b"\r\n--x--\r\n"
        headers = self._key() | {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(len(body))}

        def ask() -> httpx.Response:
            return self._client.post(f"{self._url}/tasks", content=self._slowly(body), headers=headers)

        sent.task_id = self._until(sent, ask, 202).json()["task_id"]

    def _put(self, sent: Sent, content: bytes) -> None:
        announced = {"processor": "checksum", "filename": "a", "size_bytes": len(content)}
        key = self._key()
        answer = self._until(sent, lambda: self._client.post(f"{self._url}/tasks", json=announced, headers=key), 201)
        sent.task_id = answer.json()["task_id"]
        task, length = f"{self._url}/tasks/{sent.task_id}", {"Content-Length": str(len(content))}

        def ask() -> httpx.Response:
            answer = self._client.put(f"{task}/upload", content=self._slowly(content), headers=length)
            if answer.status_code != 409:
                return answer
            now = self._client.get(task)  # it had arrived, and the answer had not
            return now if now.is_success and now.json()["status"] != "uploading" else answer

        self._until(sent, ask, 200)

    def _tus(self, sent: Sent, content: bytes) -> None:
        said = {"filename": "a", "processor": "checksum"}
        metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in said.items())
        asked = TUS | {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
        made = self._until(sent, lambda: self._client.post(f"{self._url}/uploads", headers=asked), 201)
        sent.task_id = made.headers["headway-task-id"]
        place = f"{self._url}/uploads/{sent.task_id}"
        kind = {"Content-Type": "application/offset+octet-stream"}

        def ask() -> httpx.Response:
            looked = self._client.head(place, headers=TUS)
            if looked.status_code != 200 or (offset := int(looked.headers["upload-offset"])) == len(content):
                return looked
            headers = TUS | kind | {"Upload-Offset": str(offset), "Content-Length": str(len(content) - offset)}
            answer = self._client.patch(place, content=self._slowly(content[offset:]), headers=headers)
            return self._client.head(place, headers=TUS) if answer.status_code == 204 else answer

        self._until(sent, ask, 200)

    def ended(self, sent: Sent) -> dict[str, str]:
        """The task, once it is over."""
        while True:
            task = self._until(sent, lambda: self._client.get(f"{self._url}/tasks/{sent.task_id}"), 200).json()
            if task["status"] in ("completed", "failed", "cancelled"):
                return {"status": task["status"], "sha256": ((task["result"] or {}).get("summary") or {}).get("sha256")}
            time.sleep(0.1)

    def lost(self, sent: Sent) -> str:
        """What became of a file that was accepted and is not there as it was sent; empty if it is."""
        end = self.ended(sent)
        return "" if end == {"status": "completed", "sha256": sent.sha256} else json.dumps(end)


class Senders:
    """One of each way for each of `rounds`, from `start` until `stop`; then `sent` has everything that was accepted."""

    def __init__(self, url: str, rounds: int, *, pause_seconds: float = 0.3) -> None:
        self.sent: list[Sent] = []
        self.failures: list[BaseException] = []
        self._over = threading.Event()
        self._url, self._pause_seconds = url, pause_seconds
        self._threads = [threading.Thread(target=self._run, args=(way, seed)) for seed in range(rounds) for way in WAYS]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, way: Way, seed: int) -> None:
        try:
            with Sender(self._url, random.Random(f"{way} {seed}"), pause_seconds=self._pause_seconds) as sender:
                while not self._over.is_set():
                    self.sent.append(sender.send_one(way))
        except BaseException as error:  # told by whoever looks at the figures
            self.failures.append(error)

    def lost(self) -> list[str]:
        """Waits for the end of each; one line for each that is not there, whole and right."""
        with Sender(self._url, random.Random(0), pause_seconds=0) as sender:
            found = [(one, sender.lost(one)) for one in self.sent]
        return [f"{one.way} {one.task_id}: {what}" for one, what in found if what] + [repr(e) for e in self.failures]
