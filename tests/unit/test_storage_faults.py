"""A storage that cannot be used says what is wrong with it, on every route that needs it: its own problem, with a time
to come back, a line in the log with the place and the number, no path for the client. What does not need it works."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from structlog.testing import capture_logs

from headway.api.app import create_app
from headway.api.problems import PROBLEMS
from headway.api.serving import counted_log, storage_check
from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.disk import STORAGE_FAULTS
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import Result, ResultFile
from headway.shared.tasks.progress import Publisher
from headway.shared.tasks.reader import Reader
from tests.unit.test_problems import assert_problem, breaking, served
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _every_line_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_log, "LINE_SECONDS", 0.0)
    counted_log._kinds.clear()


TUS: Final = {"Tus-Resumable": "1.0.0"}
PIECE: Final = {**TUS, "Upload-Offset": "1", "Content-Type": "application/offset+octet-stream"}
NEW_UPLOAD: Final = {**TUS, "Upload-Length": "3", "Upload-Metadata": "filename YS5iaW4=,processor Y2hlY2tzdW0="}

#: What the system may say, and what is made of it.
BROKEN: Final = ("EACCES", "EPERM", "EROFS", "EIO", "ENOENT", "ENOTDIR", "ESTALE", "ETIMEDOUT", "ENOTCONN")
SAID: Final = {
    **dict.fromkeys(BROKEN, (503, "storage-away")),
    **dict.fromkeys(("EMFILE", "ENFILE"), (503, "no-descriptors")),
    **dict.fromkeys(("ENOSPC", "EDQUOT"), (507, "storage-full")),
    "EINVAL": (500, "unexpected"),
}


class Api:
    """An API with tasks in every state that has to do with files."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.ids: dict[str, str] = {}

    async def fill(self, redis: RedisClient) -> None:
        publisher, reader = Publisher(redis, self.settings), Reader(redis)
        for name in ("done", "to delete"):
            form: dict[str, Any] = {"data": {"processor": "checksum"}, "files": {"file": ("a.bin", b"abc")}}
            task = (await self.client.post("/tasks", **form)).json()
            claim = await publisher.claim(task["task_id"], reader)
            assert claim is not None
            storage = DirectoryStorage(self.settings.data_dir)
            scratch = await storage.scratch(task["task_id"], 1)
            (scratch / "out.txt").write_bytes(b"result")
            kept = await storage.keep_results(task["task_id"], "result-1", scratch, {"out.txt": None})
            files = [ResultFile(**{n: getattr(kept[0], n) for n in kept[0].__slots__}, url="/x")]
            await publisher.complete(task["task_id"], Result(summary={}, files=files), **claim.fence)
            self.ids[name] = task["task_id"]
        for name in ("announced",):
            body = {"processor": "checksum", "filename": "a.bin", "size_bytes": 3}
            self.ids[name] = (await self.client.post("/tasks", json=body)).json()["task_id"]
        for name in ("begun", "to cancel"):
            made = await self.client.post("/uploads", headers=NEW_UPLOAD)
            self.ids[name] = made.headers["Headway-Task-Id"]
            first = {**PIECE, "Upload-Offset": "0"}
            answer = await self.client.patch(f"/uploads/{self.ids[name]}", content=b"a", headers=first)
            assert answer.status_code == 204, answer.text
        offered = self.settings.files_dir / "offered.txt"
        offered.parent.mkdir()
        offered.write_bytes(b"offered")


Ask = Callable[[Api], Awaitable[httpx.Response]]

#: Everything that needs the storage.
NEEDS: Final[dict[str, Ask]] = {
    "submit": lambda api: api.client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a.bin", b"x")}),
    "tutorial": lambda api: api.client.post("/process-file", files={"file": ("a.bin", b"x")}),
    "announce": lambda api: api.client.post(
        "/tasks", json={"processor": "checksum", "filename": "a.bin", "size_bytes": 3}
    ),
    "send": lambda api: api.client.put(f"/tasks/{api.ids['announced']}/upload", content=b"abc"),
    "tus creation": lambda api: api.client.post("/uploads", headers=NEW_UPLOAD),
    "tus head": lambda api: api.client.head(f"/uploads/{api.ids['begun']}", headers=TUS),
    "tus piece": lambda api: api.client.patch(f"/uploads/{api.ids['begun']}", content=b"bc", headers=PIECE),
    "input": lambda api: api.client.get(f"/tasks/{api.ids['done']}/input"),
    "result": lambda api: api.client.get(f"/tasks/{api.ids['done']}/files/out.txt"),
    "delete": lambda api: api.client.delete(f"/tasks/{api.ids['to delete']}"),
}
#: Everything else goes on.
GOES_ON: Final[dict[str, tuple[Ask, int]]] = {
    "list": (lambda api: api.client.get("/tasks"), 200),
    "task": (lambda api: api.client.get(f"/tasks/{api.ids['done']}"), 200),
    "csv": (lambda api: api.client.get("/tasks.csv"), 200),
    "no file": (lambda api: api.client.post("/tasks", json={"processor": "rehearsal"}), 202),
    "cancel": (lambda api: api.client.post(f"/tasks/{api.ids['to cancel']}/cancel"), 202),
    "note": (
        lambda api: api.client.post(f"/tasks/{api.ids['done']}/notes", json={"author": "a", "text": "b"}),
        201,
    ),
    "offered file": (lambda api: api.client.get("/download/offered.txt"), 200),
    "healthz": (lambda api: api.client.get("/healthz"), 200),
    "metrics": (lambda api: api.client.get("/metrics"), 200),
}


@pytest.fixture
async def api(settings: Settings, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setattr(storage_check, "KEPT_SECONDS", 0.0)
    async with served(create_app(settings)) as client:
        api = Api(client, settings)
        await api.fill(redis_client)
        yield api


@contextmanager
def refusing(folder: Path, number: int) -> Iterator[None]:
    """Whatever is asked of the system about what is in the folder, it says this."""

    def refused(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "stat", "lstat", "statvfs", "mkdir", "unlink", "scandir", "rename", "replace", "rmdir"):
            patch.setattr(os, name, refused(name))
        yield


def assert_said(answer: httpx.Response, status: int, kind: str, folder: Path) -> None:
    assert answer.status_code == status, answer.text
    if answer.request.method != "HEAD":
        body = assert_problem(answer, status)
        assert body["type"] == f"urn:headway:problem:{kind}"
        assert "Redis" not in body["detail"]
    assert str(folder) not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize("name", SAID)
async def test_every_route_that_needs_the_disk_says_what_is_wrong_with_it(api: Api, name: str) -> None:
    status, kind = SAID[name]
    folder = api.settings.data_dir
    for route, ask in NEEDS.items():
        with capture_logs() as logs, refusing(folder, getattr(errno, name)):
            answer = await ask(api)
        assert_said(answer, status, kind, folder)
        said = [line for line in logs if line["log_level"] == "error"]
        assert len(said) == 1, (route, logs)
        if status == 500:
            assert said[0]["exc_info"].errno == errno.EINVAL
        else:
            assert (said[0]["errno"], said[0]["event"]) == (name, kind.replace("-", " ")), route
            assert said[0].get("place", "").startswith(str(folder)), (route, said)


@pytest.mark.parametrize("name", ["EACCES", "EMFILE", "EIO"])
async def test_what_needs_no_disk_goes_on(api: Api, name: str) -> None:
    with refusing(api.settings.data_dir, getattr(errno, name)):
        for what, (ask, status) in GOES_ON.items():
            assert (await ask(api)).status_code == status, what


def move_away(data_dir: Path) -> None:
    data_dir.rename(data_dir.with_name("away"))


def replace_by_a_file(data_dir: Path) -> None:
    move_away(data_dir)
    data_dir.write_text("no directory")


def replace_by_an_empty_one(data_dir: Path) -> None:
    """As a mount point is whose disk was not mounted."""
    move_away(data_dir)
    data_dir.mkdir()


@pytest.mark.parametrize("breaking", [move_away, replace_by_a_file, replace_by_an_empty_one])
async def test_a_data_directory_that_is_gone_is_said_and_never_made_again(
    api: Api, breaking: Callable[[Path], None]
) -> None:
    data_dir = api.settings.data_dir
    breaking(data_dir)
    for ask in NEEDS.values():
        assert_said(await ask(api), 503, "storage-away", data_dir)
    assert not data_dir.is_dir() or list(data_dir.iterdir()) == []
    ready = await api.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    reason = ready.json()["checks"]["storage"]["reason"]
    assert "cannot be used" in reason
    assert str(data_dir) not in ready.text
    shutil.rmtree(data_dir) if data_dir.is_dir() else data_dir.unlink(missing_ok=True)
    data_dir.with_name("away").rename(data_dir)
    assert (await api.client.get("/readyz")).json()["checks"]["storage"]["ok"]
    assert (await NEEDS["input"](api)).content == b"abc"
    assert (await NEEDS["tus piece"](api)).status_code == 204


async def test_a_file_that_is_not_there_is_unknown_where_the_place_is_well(api: Api) -> None:
    shutil.rmtree(api.settings.data_dir / "tasks" / api.ids["done"])
    assert_problem(await NEEDS["input"](api), 404)
    assert_problem(await NEEDS["result"](api), 404)


@pytest.mark.parametrize("name", ["EACCES", "EIO", "EMFILE"])
async def test_a_files_directory_that_cannot_be_read_is_not_an_unknown_file(api: Api, name: str) -> None:
    status, kind = SAID[name]
    with refusing(api.settings.files_dir, getattr(errno, name)):
        assert_said(await api.client.get("/download/offered.txt"), status, kind, api.settings.files_dir)


@pytest.mark.parametrize("name", ["x" * 300, "not-there", "%00"])
async def test_what_is_not_offered_is_unknown(api: Api, name: str) -> None:
    assert_problem(await api.client.get(f"/download/{name}"), 404)


async def test_readiness_says_what_the_storage_lacks_and_the_log_says_it_once(api: Api) -> None:
    with capture_logs() as logs, refusing(api.settings.data_dir, errno.EROFS):
        for _ in range(3):
            ready = (await api.client.get("/readyz")).json()
            assert "Read-only" in ready["checks"]["storage"]["reason"]
            assert ready["status"] == "degraded"
    assert [line["event"] for line in logs] == ["storage trouble"]
    assert logs[0]["errno"] == "EROFS"
    with capture_logs() as logs:
        assert (await api.client.get("/readyz")).json()["checks"]["storage"]["ok"]
    assert [line["event"] for line in logs] == ["storage back"]


async def test_a_disk_that_hangs_holds_one_thread_and_nobody_who_asks(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = [], asyncio.Event()

    async def hangs(_: DirectoryStorage) -> None:
        asked.append(1)
        await go_on.wait()

    monkeypatch.setattr(storage_check, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(DirectoryStorage, "check", hangs)
    for _ in range(3):
        check = (await api.client.get("/readyz")).json()["checks"]["storage"]
        assert check == {"ok": False, "reason": "The storage of the files does not answer."}
    assert len(asked) == 1
    go_on.set()

    async def well() -> Any:
        return (await api.client.get("/readyz")).json()["checks"]["storage"]["ok"]

    assert await wait_until("it answers again", well)


async def test_an_error_of_the_system_that_nobody_thought_of_is_logged_and_tells_nothing() -> None:
    for number, status in ((errno.EACCES, 500), (errno.ENOENT, 500), (errno.EMFILE, 503)):
        async with served(breaking(OSError(number, os.strerror(number), "/etc/secrets"))) as client:
            with capture_logs() as logs:
                answer = await client.get("/")
            assert_problem(answer, status)
            assert "secrets" not in answer.text
            assert "Redis" not in answer.text
            assert len(logs) == 1


async def test_a_fault_in_the_middle_of_a_download_cuts_it_and_is_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", refused)
    with capture_logs() as logs, suppress(httpx.HTTPError):
        assert (await NEEDS["input"](api)).content != b"abc"
    cut = next(line for line in logs if line["event"] == "download cut")
    assert (cut["log_level"], cut["errno"]) == ("error", "EIO")
    assert cut["place"].startswith(str(api.settings.data_dir))


def test_every_fault_of_a_storage_has_its_own_problem() -> None:
    assert len({PROBLEMS[fault].type for fault in STORAGE_FAULTS}) == 3
