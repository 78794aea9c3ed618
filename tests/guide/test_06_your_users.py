"""docs/your-users.md as it is written: a FastAPI app with its own login, Headway in it and beside it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.processes import HeadwayProcess, Platform, RedisServer, free_port
from tests.streams import frames_of, opened
from tests.waiting import wait_for

PAGE: Final = (Path(__file__).parents[2] / "docs" / "your-users.md").read_text(encoding="utf-8")
APP, TOKENS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS: Final = [line.removeprefix("$ ") for line in re.findall(r"^\$ .*", PAGE, re.MULTILINE)]
KEY: Final = "0123456789abcdef" * 4


@contextmanager
def app(platform: Platform, folder: Path, source: str, **env: str) -> Iterator[str]:
    """The app of the page; its address."""
    (folder / "app.py").write_text(source, encoding="utf-8")
    port = free_port()
    env |= {"PYTHONPATH": str(folder), "HEADWAY_REDIS_URL": platform.redis_url}
    env |= {"HEADWAY_DATA_DIR": str(platform.data_dir), "HEADWAY_FILES_DIR": str(platform.files_dir)}
    arguments = ["app:app", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with HeadwayProcess(arguments, env=env, log=folder / "app.log", module="uvicorn") as process:

        def answers() -> bool:
            assert process.code is None, process.log
            try:
                return httpx.get(f"{url}/openapi.json").is_success
            except httpx.HTTPError:
                return False

        wait_for("the app answers", answers, seconds=30)
        yield url


@contextmanager
def signed_in(url: str, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        assert client.post("/login", data={"name": name, "password": "correct horse"}).json() == {"name": name}
        yield client


@pytest.fixture(scope="module")
def platform(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("users"), redis_server.fresh_url()) as platform:
        platform.start_worker()
        yield platform


@pytest.fixture(scope="module")
def inside(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first app of the page."""
    with app(platform, tmp_path_factory.mktemp("inside"), APP) as url:
        yield url


def test_the_app_says_who_asks_and_each_sees_their_own(inside: str) -> None:
    assert httpx.post(f"{inside}/login", data={"name": "eve", "password": "guessed"}).status_code == 401
    with signed_in(inside, "alice") as alice, signed_in(inside, "bob") as bob:
        form = {"data": {"processor": "checksum"}, "files": {"file": ("trips.csv", b"a,b\n1,2\n")}}
        answer = alice.post("/headway/tasks", **form)  # type: ignore[arg-type]
        assert answer.status_code == 202, answer.text
        task = answer.json()
        here = f"/headway/tasks/{task['task_id']}"
        cookie = {"Cookie": f"session={alice.cookies['session']}"}
        with opened(f"{inside}{here}/events", **cookie) as stream:
            assert list(frames_of(stream))[-1].status == "completed"
        assert bob.get(here).status_code == 404
        assert bob.get("/headway/tasks").json()["tasks"] == []
        assert alice.get("/headway/session").json() == {"owner": "alice", "expires_at": None}
        token = {"Authorization": f"Bearer {task['token']}"}  # of the task: it needs no login
        assert httpx.get(f"{inside}{here}", headers=token).status_code == 200
        assert httpx.get(f"{inside}/headway/tasks", headers=token).status_code == 403
        cross = {"Sec-Fetch-Site": "cross-site"}
        assert alice.post(f"{here}/cancel", headers=cross).status_code == 403


def test_who_is_not_signed_in_is_nobody_and_the_probes_are_everybodys(inside: str) -> None:
    for headers in ({}, {"Cookie": "session=guessed"}, {"Authorization": "Bearer guessed"}):
        for path in ("/tasks", "/events", "/processors", f"/tasks/{'0' * 32}/events", "/metrics", "/docs"):
            answer = httpx.get(f"{inside}/headway{path}", headers=headers)
            told = 'Bearer error="invalid_token"' if "Authorization" in headers else "Bearer"
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, told), path
    for path in ("/healthz", "/readyz", "/", "/static/app.js"):
        assert httpx.get(f"{inside}/headway{path}").status_code == 200, path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_run_as_they_are_written(inside: str, tmp_path: Path) -> None:
    (tmp_path / "trips.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    login, submit, watch = (line.replace("http://127.0.0.1:8001", inside) for line in COMMANDS if "curl" in line)
    for command in (login, submit):
        said = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"status":"queued"' in said.stdout.replace(" ", "")
    with subprocess.Popen(shlex.split(watch), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert next(line for line in watching.stdout if "%" in line)
        watching.terminate()


def test_the_app_beside_it_signs_tokens_that_narrow(platform: Platform, tmp_path: Path) -> None:
    settings = dict(re.findall(r"(HEADWAY_JWT_(?:AUDIENCE|ISSUER))=(\S+)", PAGE))
    env = {"HEADWAY_JWT_KEY": KEY, **settings}
    platform.start_api(**env)
    head, _, tail = APP.partition("headway = create_app")
    login = f"{head}app = FastAPI()\n\n@app.post{tail.partition('@app.post')[2]}"
    with app(platform, tmp_path, f"{login}\n\n{TOKENS}\napp.include_router(router)\n", **env) as url:
        assert httpx.post(f"{url}/headway-token").status_code == 401
        with signed_in(url, "alice") as alice:
            token = alice.post("/headway-token").json()["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}
    task = httpx.post(f"{platform.url}/tasks", json=body, headers=bearer).json()
    session = httpx.post(f"{platform.url}/session", json={"token": token})
    cookie = {"Cookie": session.headers["set-cookie"].partition(";")[0]}
    with opened(f"{platform.url}/tasks/{task['task_id']}/events", **cookie) as stream:
        assert list(frames_of(stream))[-1].status == "completed"
    assert httpx.delete(f"{platform.url}/tasks/{task['task_id']}", headers=bearer).status_code == 403
    assert httpx.get(f"{platform.url}/session", headers=bearer).json()["owner"] == "alice"
