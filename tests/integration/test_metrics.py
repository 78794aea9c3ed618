"""What operators see: the figures of real processes add up, are all documented, and name nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import HeadwayProcess, Platform, RedisServer, free_port
from tests.streams import Frame, frames_of, opened
from tests.waiting import wait_for

ALICE: Final = {"Authorization": "Bearer the-secret-key-of-alice-4711"}
KEYS: Final = json.dumps({"alice": "the-secret-key-of-alice-4711"})
REFERENCE: Final = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
LABELS: Final = {
    *("kind", "reason", "method", "route", "status", "processor", "outcome", "link", "version", "le", "what", "wall"),
    *("end", "generation", "implementation", "major", "minor", "patchlevel"),
}


class Scrape:
    """What one process served."""

    def __init__(self, url: str) -> None:
        answer = httpx.get(f"{url}/metrics", headers=ALICE)
        assert answer.status_code == 200, answer.text
        self.text = answer.text
        self.families: list[Metric] = list(text_string_to_metric_families(answer.text))

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 where there is none."""
        samples = [sample for family in self.families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    @property
    def names(self) -> set[str]:
        """As the reference writes them."""
        return {family.name + ("_total" if family.type == "counter" else "") for family in self.families}


class Measured:
    """A platform with a key, whose worker serves its metrics too."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.redis = redis
        seconds = {"HEADWAY_SEND_TIMEOUT_SECONDS": "1", "HEADWAY_LEASE_SECONDS": "1"}
        amounts = {"HEADWAY_WORKER_CONCURRENCY": "1", "HEADWAY_MAX_NOTES_PER_SECOND": "0"}
        self.platform = Platform(folder, redis.url, HEADWAY_API_KEYS=KEYS, **seconds, **amounts)
        self.worker_url = ""

    def start_worker(self) -> None:
        port = free_port()
        self.worker_url = f"http://127.0.0.1:{port}"
        self.platform.start_worker(HEADWAY_METRICS_PORT=str(port))

    @property
    def url(self) -> str:
        return self.platform.url

    def api(self) -> Scrape:
        return Scrape(self.url)

    def worker(self) -> Scrape:
        return Scrape(self.worker_url)

    def submit(self, processor: str, **options: Any) -> dict[str, Any]:
        body = {"processor": processor, "options": options}
        answer = httpx.post(f"{self.url}/tasks", json=body, headers=ALICE)
        assert answer.status_code == 202, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def upload(self, content: bytes) -> dict[str, Any]:
        form = {"data": {"processor": "checksum"}, "files": {"file": ("a.bin", content)}}
        answer = httpx.post(f"{self.url}/tasks", **form, headers=ALICE)  # type: ignore[arg-type]
        assert answer.status_code == 202, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def story(self, task_id: str) -> list[Frame]:
        with opened(f"{self.url}/tasks/{task_id}/events?last_event_id=0", **ALICE) as answer:
            return list(frames_of(answer))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp("measured")
    with RedisServer(folder / "redis", appendfsync="no") as redis:
        found = Measured(folder / "platform", redis)
        with found.platform:
            found.platform.start_api()
            found.start_worker()
            yield found


def test_what_one_task_did_adds_up_in_the_api_and_the_worker(measured: Measured) -> None:
    wait_for("there is one worker", lambda: measured.api().of("headway_workers") == 1)
    api_before, worker_before = measured.api(), measured.worker()
    content = b"x" * 100_000
    task = measured.upload(content)
    story = measured.story(task["task_id"])
    assert httpx.get(f"{measured.url}{task['links']['input']}", headers=ALICE).content == content
    wait_for("the attempt is counted", lambda: measured.worker().of("headway_attempts_running") == 0)
    wait_for("the stream is over", lambda: measured.api().of("headway_streams") == 0)
    api, worker = measured.api(), measured.worker()

    def more(name: str, **labels: str) -> float:
        return api.of(name, **labels) - api_before.of(name, **labels)

    assert more("headway_upload_bytes_total") == len(content)
    assert more("headway_download_bytes_total") == len(content)
    assert more("headway_streams_opened_total", kind="task") == 1
    assert more("headway_streams_ended_total", kind="task", reason="done") == 1
    assert more("headway_stream_events_total") == len(story)
    assert more("headway_tasks_ended_total", processor="checksum", status="completed") == 1
    assert api.of("headway_tasks") == 0
    assert (api.of("headway_queue_depth"), api.of("headway_leases"), api.of("headway_workers")) == (0, 0, 1)
    assert api.of("headway_redis_up") == 1
    assert more("headway_http_requests_total", method="POST", route="/tasks", status="202") == 1
    assert more("headway_http_request_seconds_count", route="/tasks") == 1
    assert more("headway_http_requests_total", route="/tasks/{task_id}/events", status="200") == 1
    assert api.of("headway_http_request_seconds_count", route="/tasks/{task_id}/events") == 0
    assert more("headway_publish_to_send_seconds_count") > 0

    def more_work(name: str, **labels: str) -> float:
        return worker.of(name, **labels) - worker_before.of(name, **labels)

    assert more_work("headway_attempts_total", processor="checksum", outcome="completed") == 1
    assert more_work("headway_attempts_total") == 1
    assert more_work("headway_attempt_seconds_count", processor="checksum") == 1
    assert more_work("headway_pick_up_seconds_count") == 1
    assert more_work("headway_events_published_total") == story[-1].id - 1  # the first one is the API's
    assert more_work("headway_child_cpu_seconds_total", processor="checksum") > 0
    assert worker.of("headway_child_memory_peak_bytes", processor="checksum") > 2**20
    assert more_work("headway_takeovers_total") == 0
    assert worker.of("headway_redis_up") == 1


def test_every_family_is_documented_and_no_other_and_no_label_names_a_task_or_an_owner(measured: Measured) -> None:
    task_id = measured.upload(b"x")["task_id"]
    measured.story(task_id)
    for path in (f"/tasks/{task_id}", "/events/of/alice", f"/batches/{task_id}", "/static/alice", "/alice?alice=alice"):
        httpx.get(f"{measured.url}{path}", headers=ALICE)
    httpx.request("ALICE", f"{measured.url}/tasks", headers=ALICE)
    scrapes = [measured.api(), measured.worker()]
    section = REFERENCE.split("\n## Metrics\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(headway_\w+)` ", section, re.MULTILINE))
    served = scrapes[0].names | scrapes[1].names
    assert {name for name in served if name.startswith("headway_")} == documented
    assert all(name.startswith(("headway_", "process_", "python_")) for name in served)
    for scrape in scrapes:
        assert "alice" not in scrape.text.lower()
        assert task_id not in scrape.text
        assert {label for family in scrape.families for sample in family.samples for label in sample.labels} <= LABELS
        assert all(family.documentation for family in scrape.families)
        assert {"process_cpu_seconds_total", "process_open_fds", "python_info"} <= scrape.names
        if (promtool := shutil.which("promtool")) is not None:
            checked = subprocess.run([promtool, "check", "metrics"], input=scrape.text, capture_output=True, text=True)
            assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    routes = {sample.labels["route"] for f in scrapes[0].families for sample in f.samples if "route" in sample.labels}
    assert {"none", "/static", "/tasks/{task_id}", "/batches/{batch_id}"} <= routes


def test_metrics_ask_for_a_key_and_a_tasks_token_is_not_enough(measured: Measured) -> None:
    token = {"Authorization": f"Bearer {measured.submit('rehearsal', steps=1, step_seconds=0)['token']}"}
    assert httpx.get(f"{measured.url}/metrics").status_code == 401
    assert httpx.get(f"{measured.url}/metrics", headers=token).status_code == 403
    answer = httpx.get(f"{measured.url}/metrics", headers=ALICE)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    asked = ALICE | {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = httpx.get(f"{measured.url}/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_a_client_that_takes_nothing_is_counted_as_slow(measured: Measured) -> None:
    before = measured.api().of("headway_streams_ended_total", kind="task", reason="slow")
    task_id = measured.submit("rehearsal", steps=1, step_seconds=600)["task_id"]
    url = httpx.URL(measured.url)
    note = {"author": "x", "text": "🙂" * 1000}
    with socket.socket() as sock, httpx.Client(base_url=measured.url, headers=ALICE) as client:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        sock.connect((url.host, url.port))
        head = f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: x\r\nAuthorization: {ALICE['Authorization']}\r\n\r\n"
        sock.sendall(head.encode())
        wait_for("it watches", lambda: measured.api().of("headway_streams", kind="task") == 1)
        for _ in range(300):  # 12 KB each: more than the kernel holds for it
            assert client.post(f"/tasks/{task_id}/notes", json=note).status_code == 201
        ended = {"kind": "task", "reason": "slow"}
        wait_for("it is dropped", lambda: measured.api().of("headway_streams_ended_total", **ended) == before + 1)
        assert measured.api().of("headway_streams") == 0
        assert client.post(f"/tasks/{task_id}/cancel").status_code == 202


def test_a_killed_workers_task_is_waiting_held_taken_over_and_ended_in_the_figures(measured: Measured) -> None:
    ended = {"processor": "rehearsal", "status": "cancelled"}
    before = measured.api().of("headway_tasks_ended_total", **ended)
    ids = [measured.submit("rehearsal", steps=1, step_seconds=600)["task_id"] for _ in range(3)]
    wait_for("one runs", lambda: measured.worker().of("headway_attempts_running") == 1)
    api = measured.api()
    assert (api.of("headway_queue_depth"), api.of("headway_leases")) == (2, 1)
    assert api.of("headway_queue_oldest_seconds") > 0
    assert api.of("headway_tasks", processor="rehearsal", status="queued") == 2
    assert api.of("headway_tasks", processor="rehearsal", status="processing") == 1
    measured.platform.workers[-1].kill()
    # Else the next one, which takes one task at a time, may have another before this one's lease has run out.
    wait_for("its lease has run out", lambda: measured.api().of("headway_leases") == 0)
    measured.start_worker()
    wait_for("another has it", lambda: measured.worker().of("headway_takeovers_total") == 1, seconds=20)
    assert measured.worker().of("headway_pick_up_seconds_count") == 0
    assert measured.api().of("headway_tasks", status="processing") == 1
    for task_id in reversed(ids):
        assert httpx.post(f"{measured.url}/tasks/{task_id}/cancel", headers=ALICE).status_code == 202
    assert measured.api().of("headway_tasks_ended_total", **ended) == before + 3
    assert measured.api().of("headway_tasks") == 0
    outcome = {"processor": "rehearsal", "outcome": "cancelled"}
    wait_for("the attempt is over", lambda: measured.worker().of("headway_attempts_total", **outcome) == 1)


def test_metrics_are_there_while_redis_is_not_and_say_so(measured: Measured) -> None:
    wait_for("all is well", lambda: measured.api().of("headway_workers") == 1)
    measured.redis.kill()
    wait_for("the worker has noticed", lambda: measured.worker().of("headway_redis_up") == 0, seconds=20)
    scrape = measured.api()
    assert "headway_redis_up 0.0" in scrape.text
    assert scrape.names.isdisjoint({"headway_workers", "headway_tasks", "headway_queue_depth"})
    assert scrape.of("headway_http_requests_total", route="/healthz") > 0
    measured.redis.start()

    def made_again(scrape: Scrape) -> bool:
        links = [scrape.of("headway_redis_reconnects_total", link=link) for link in ("commands", "subscription")]
        return scrape.of("headway_redis_up") == 1 and min(links) >= 1

    wait_for("the API has Redis again", lambda: made_again(measured.api()), seconds=20)
    wait_for("the worker has Redis again", lambda: made_again(measured.worker()), seconds=20)


def test_processes_that_share_a_port_answer_for_each_other_also_for_those_that_died(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"HEADWAY_REDIS_URL": own_redis.url, "HEADWAY_DATA_DIR": str(tmp_path / "data"), "TMPDIR": str(tmp_path)}
    process = HeadwayProcess(["api", "--port", str(port), "--workers", "2"], env=env, log=tmp_path / "log")

    def pids() -> list[int]:
        return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", process.log)]

    def alive(pid: int) -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False

    def asked() -> float:
        return Scrape(url).of("headway_http_requests_total", route="/healthz", status="200")

    with process, ExitStack() as stack:
        wait_for("both serve", lambda: process.log.count("Application startup complete") == 2, seconds=60)
        for _ in range(30):  # each on a connection of its own, so that both have some
            assert httpx.get(f"{url}/healthz").status_code == 200
        wait_for("all are counted", lambda: asked() == 30)
        assert all(asked() == 30 for _ in range(10))
        [one, other] = pids()
        os.kill(one, signal.SIGSTOP)  # so that the other one has all the streams
        for _ in range(20):
            stack.enter_context(opened(f"{url}/events"))
        os.kill(one, signal.SIGCONT)
        wait_for("all watch", lambda: Scrape(url).of("headway_streams", kind="feed") == 20)
        os.kill(other, signal.SIGKILL)
        wait_for("it is gone", lambda: not alive(other))
        scrape = Scrape(url)
        assert asked() == 30
        assert scrape.of("headway_streams_opened_total", kind="feed") == 20
        assert scrape.of("headway_streams") == 0
        assert scrape.of("process_open_fds") > 0
        assert list(tmp_path.glob("headway-metrics-*"))
    assert process.code == 0
    assert not list(tmp_path.glob("headway-metrics-*"))


def test_a_worker_whose_port_for_metrics_is_taken_says_so(own_redis: RedisServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = {"HEADWAY_REDIS_URL": own_redis.url, "HEADWAY_DATA_DIR": str(tmp_path), "HEADWAY_METRICS_PORT": str(port)}
        with HeadwayProcess(["worker"], env=env, log=tmp_path / "log") as worker:
            assert worker.wait(30) == 2
            assert f"HEADWAY_METRICS_PORT: cannot listen on 127.0.0.1:{port}: it is in use" in worker.log
            assert "Traceback" not in worker.log
