"""Behind a path prefix, by a proxy that takes it off and by one that passes it on: every address that an answer names
leads back under the prefix, and nothing is named outside it. nginx, Caddy and HAProxy as real processes, with the
recipes of docs/clients.md."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from headway import Client
from tests.processes import Platform, RedisServer, free_port
from tests.proxies import Kind, missing, running
from tests.streams import frames_of, opened

KEY = "the-key-of-alice-1234"
PREFIX = "/apps/headway"
ALICE = {"Authorization": f"Bearer {KEY}"}

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")

#: What stands around a recipe of docs/clients.md.
SITES: dict[Kind, str] = {
    "nginx": "server {{ listen 127.0.0.1:{port}; {recipe} }}",
    "caddy": "http://127.0.0.1:{port} {{\n bind 127.0.0.1\n{recipe}\n}}",
    "haproxy": "{recipe}",
}
#: As the page says it of a prefix that is passed on: what is left out, or put in its place.
PASSED_ON: dict[Kind, tuple[str, str]] = {
    "nginx": ("127.0.0.1:8000/;", "127.0.0.1:8000;"),
    "caddy": ("handle_path", "handle"),
    "haproxy": (r"http-request replace-path /headway/(.*) /\1", ""),
}
PROXIES: dict[str, tuple[Kind, bool]] = {
    f"{kind}, {way}": (kind, way == "passed on") for kind in SITES for way in ("taken off", "passed on")
}


def recipe(kind: Kind, port: int, host: str, *, passed_on: bool) -> str:
    """The page's, for our prefix and our ports."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if passed_on:
        assert PASSED_ON[kind][0] in text
        text = text.replace(*PASSED_ON[kind])
    text = text.replace("127.0.0.1:8000", host).replace("127.0.0.1:80\n", f"127.0.0.1:{port}\n")
    return SITES[kind].format(port=port, recipe=text.replace("/headway", PREFIX))


@dataclass(frozen=True)
class Place:
    """A platform as its clients see it: `origin`, and `url` under the prefix."""

    origin: str
    url: str


@pytest.fixture(scope="module")
def platform(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its APIs: without a prefix of its own, with one, and that one under plain uvicorn."""
    keys = json.dumps({"alice": KEY})
    with Platform(tmp_path_factory.mktemp("prefix"), redis_server.fresh_url(), HEADWAY_API_KEYS=keys) as platform:
        platform.start_worker(wait=False)
        platform.start_api()
        platform.start_api(HEADWAY_ROOT_PATH=PREFIX)
        platform.start_api(HEADWAY_ROOT_PATH=PREFIX.strip("/"), server="uvicorn")
        yield platform


@pytest.fixture(scope="module")
def places(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """Each a whole way to the platform; a proxy that is not installed has none."""
    told, ours, plain = platform.urls
    places = {
        "headway api, passed on": Place(ours, ours + PREFIX),
        "headway api, taken off": Place(ours, ours),
        "plain uvicorn, passed on": Place(plain, plain + PREFIX),
    }
    with ExitStack() as stack:
        for name, (kind, passed_on) in PROXIES.items():
            if missing(kind):
                continue
            port = free_port()
            origin = f"http://127.0.0.1:{port}"
            host = (ours if passed_on else told).removeprefix("http://")
            config = recipe(kind, port, host, passed_on=passed_on)
            stack.enter_context(running(kind, tmp_path_factory.mktemp(kind), config, origin + PREFIX))
            places[name] = Place(origin, origin + PREFIX)
        yield places


WAYS = ("headway api, passed on", "headway api, taken off", "plain uvicorn, passed on", *PROXIES)


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    if request.param not in places:
        pytest.skip(missing(PROXIES[request.param][0]) or "")
    return places[request.param]


def submitted(place: Place, **headers: str) -> httpx.Response:
    form: dict[str, Any] = {
        "data": {"processor": "compress", "batch_id": "one"},
        "files": {"file": ("a b.txt", b"hello\n" * 999)},
    }
    answer = httpx.post(f"{place.url}/tasks", headers=ALICE | headers, **form)
    assert answer.status_code == 202, answer.text
    return answer


def assert_under(*links: str) -> None:
    for link in links:
        assert link.startswith(f"{PREFIX}/"), link
        assert link.count(PREFIX) == 1, link


def end_of(place: Place, link: str) -> dict[str, Any]:
    """The task's last state on its stream."""
    with opened(place.origin + link, **ALICE) as answer:
        return list(frames_of(answer))[-1].data


def test_a_task_its_stream_its_result_and_its_batch_stay_under_the_prefix(place: Place) -> None:
    answer = submitted(place, **{"Idempotency-Key": place.url})
    task = answer.json()
    assert_under(answer.headers["location"], *task["links"].values())
    again = submitted(place, **{"Idempotency-Key": place.url})
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.headers["location"], again.json()["links"]) == (answer.headers["location"], task["links"])

    state = end_of(place, task["links"]["events"])
    assert state["status"] == "completed"
    (file,) = state["result"]["files"]
    assert_under(file["url"])
    assert httpx.get(place.origin + file["url"], headers=ALICE).content[:2]
    with httpx.stream(
        "GET", place.origin + task["links"]["events"], headers=ALICE | {"Accept": "application/x-ndjson"}
    ) as lines:
        last = [json.loads(line) for line in lines.iter_lines() if line][-1]
    assert last["result"] == state["result"]
    with opened(f"{place.url}/events?task={task['task_id']}", **ALICE) as feed:
        shown = next(event for block in _data(feed) if (event := block).get("result"))
    assert shown["result"] == state["result"]

    whole = httpx.get(place.origin + answer.headers["location"], headers=ALICE).json()
    assert whole["result"] == state["result"]
    assert_under(*whole["links"].values())
    assert httpx.get(place.origin + whole["links"]["input"], headers=ALICE).content == b"hello\n" * 999
    listed = httpx.get(f"{place.url}/tasks", headers=ALICE, params={"batch_id": "one"}).json()["tasks"]
    assert_under(*(link for one in listed for link in one["links"].values()))
    batch = httpx.get(f"{place.url}/batches/one", headers=ALICE).json()
    assert_under(*batch["links"].values())
    assert httpx.get(place.origin + batch["links"]["tasks"], headers=ALICE).status_code == 200
    assert end_of(place, batch["links"]["events"])["status"] == "ended"


def _data(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line[6:])


def test_tus_and_the_announced_upload_stay_under_the_prefix(place: Place) -> None:
    named = ",".join(
        f"{k} {base64.b64encode(v).decode()}" for k, v in {"filename": b"a", "processor": b"checksum"}.items()
    )
    tus = ALICE | {"Tus-Resumable": "1.0.0"}
    made = httpx.post(f"{place.url}/uploads", headers=tus | {"Upload-Length": "5", "Upload-Metadata": named})
    assert_under(made.headers["location"])
    piece = tus | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    assert httpx.patch(place.origin + made.headers["location"], headers=piece, content=b"hello").status_code == 204

    task = httpx.post(f"{place.url}/tasks", headers=ALICE, json={"processor": "checksum", "filename": "a"}).json()
    assert_under(*task["links"].values())
    sent = httpx.put(place.origin + task["links"]["upload"], headers=ALICE, content=b"hello").json()
    assert_under(*sent["links"].values())
    assert end_of(place, sent["links"]["events"])["status"] == "completed"


def test_cancel_and_retry_answer_with_links_under_the_prefix(place: Place) -> None:
    options = {"steps": 1000, "step_seconds": 0.1}
    task = httpx.post(f"{place.url}/tasks", headers=ALICE, json={"processor": "rehearsal", "options": options}).json()
    gone = httpx.post(place.origin + task["links"]["cancel"], headers=ALICE).json()
    assert_under(*gone["links"].values())
    back = httpx.post(place.origin + gone["links"]["retry"], headers=ALICE).json()
    assert_under(*back["links"].values())
    httpx.post(place.origin + back["links"]["cancel"], headers=ALICE)


def test_the_tutorials_paths_work_under_the_prefix(place: Place) -> None:
    started = httpx.post(f"{place.url}/process-file", headers=ALICE, files={"file": ("a.txt", b"hello")})
    assert_under(started.headers["location"])
    with opened(f"{place.url}/task-progress/{started.json()['task_id']}", **ALICE) as answer:
        assert list(frames_of(answer))[-1].status == "completed"
    assert httpx.get(f"{place.url}/download-large-csv?rows=3", headers=ALICE).text.startswith("id,name,value")


def test_the_cookie_is_for_the_prefix_alone_and_signs_in(place: Place) -> None:
    with httpx.Client() as browser:
        signed_in = browser.post(f"{place.url}/session", json={"key": KEY})
        ours, of_before = signed_in.headers.get_list("set-cookie")
        assert f"; Path={PREFIX};" in ours
        assert "; Max-Age=0; Path=/;" in of_before  # else there would be two, and of two none counts
        assert browser.get(f"{place.origin}{PREFIX}/session").json()["owner"] == "alice"
        signed_out = browser.delete(f"{place.origin}{PREFIX}/session")
        assert f"; Path={PREFIX};" in signed_out.headers["set-cookie"]
        assert browser.get(f"{place.origin}{PREFIX}/session").status_code == 401


def test_the_page_and_the_documentation_name_nothing_outside_the_prefix(place: Place) -> None:
    under = place.origin + PREFIX
    for path in ("/", "/docs"):
        page = httpx.get(under + path, headers=ALICE)
        addresses = re.findall(r"""(?:src|href)="([^"]+)\"""", page.text)
        assert page.status_code == 200
        assert addresses
        for address in addresses:
            assert not address.startswith(("/", "http")), address
            if not address.startswith("#"):
                assert httpx.get(f"{under}/{address}", headers=ALICE).status_code == 200, address
    described = httpx.get(f"{under}/openapi.json", headers=ALICE).json()
    assert described["servers"] == [{"url": PREFIX}]


def test_the_prefix_without_a_slash_leads_to_the_page(place: Place) -> None:
    answer = httpx.get(place.origin + PREFIX)
    assert answer.status_code in (307, 308)
    assert answer.headers["location"].removeprefix(place.origin) == f"{PREFIX}/"
    # The framework's own redirect, of a path with a slash too many.
    answer = httpx.get(f"{place.origin}{PREFIX}/processors/", headers=ALICE)
    assert answer.headers["location"].removeprefix(place.origin) == f"{PREFIX}/processors"


def test_what_only_begins_like_the_prefix_is_not_under_it(platform: Platform) -> None:
    url = platform.urls[1]
    assert httpx.get(f"{url}{PREFIX}ish/tasks", headers=ALICE).status_code == 404
    assert httpx.get(f"{url}{PREFIX}/tasks").status_code == 401
    assert httpx.get(f"{url}{PREFIX}/tasks/..%2f{PREFIX}/healthz").status_code == 401


def test_the_python_client_works_with_the_address_under_the_prefix(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello\n" * 99)
    with Client(place.url, KEY) as client:
        task = client.submit(tmp_path / "a.txt", processor="compress")
        *_, end = client.watch(task["task_id"])
        assert end.data["status"] == "completed"
        (saved,) = client.fetch(task["task_id"], tmp_path / "out")
        assert saved.stat().st_size > 0


def command(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    env |= {"HEADWAY_URL": f"{place.url}/", "HEADWAY_API_KEY": KEY}
    argv = [sys.executable, "-m", "headway.cli.main", *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_the_commands_work_with_the_address_under_the_prefix(places: dict[str, Place], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello\n" * 99)
    place = places.get("nginx, taken off", places["headway api, passed on"])
    done = command(place, "submit", str(tmp_path / "a.txt"), "--processor", "compress", "--json")
    assert done.returncode == 0, done.stderr
    task_id = json.loads(done.stdout.splitlines()[-1])["task_id"]
    assert command(place, "watch", task_id, "--json").returncode == 0
    assert command(place, "fetch", task_id, "-o", str(tmp_path / "out")).returncode == 0
    assert list((tmp_path / "out").iterdir())


def test_doctor_finds_streams_and_uploads_healthy_under_the_prefix(places: dict[str, Place]) -> None:
    done = command(places["headway api, passed on"], "doctor", "--json", "--idle-seconds", "2")
    found = {one["check"]: one["level"] for one in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stdout + done.stderr
    assert "problem" not in found.values()


@pytest.mark.parametrize("prefix", ["//evil.example.com", "/../x", "/a b", "/tasks"])
def test_a_header_that_is_no_prefix_changes_nothing(platform: Platform, prefix: str) -> None:
    answer = httpx.get(f"{platform.url}/openapi.json", headers=ALICE | {"X-Forwarded-Prefix": prefix})
    assert "servers" not in answer.json()


def test_nobody_elses_header_counts(platform: Platform) -> None:
    platform.start_api(FORWARDED_ALLOW_IPS="192.0.2.1")
    headers = ALICE | {"X-Forwarded-Prefix": "/x"}
    assert "servers" not in httpx.get(f"{platform.urls.pop()}/openapi.json", headers=headers).json()
    assert httpx.get(f"{platform.url}/openapi.json", headers=headers).json()["servers"] == [{"url": "/x"}]


@pytest.mark.parametrize("server", ["headway api", "uvicorn"])
def test_a_wrong_prefix_ends_the_start_with_one_line(platform: Platform, server: Any) -> None:
    for value in ("//evil", "/tasks"):
        process = platform.start_api(wait=False, server=server, HEADWAY_ROOT_PATH=value)
        platform.urls.pop()
        assert process.wait() != 0
        assert re.fullmatch(r"(Error: )?HEADWAY_ROOT_PATH: [^\n]+ Example: HEADWAY_ROOT_PATH=/headway\n", process.log)
