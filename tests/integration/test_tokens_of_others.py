"""Tokens of somebody else's login over HTTP: signed with a secret, a private key, or a key of a JWKS that goes away,
comes back and is rotated; narrowed; as a browser's session; and what Redis keeps of their owners."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

import httpx
import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headway import AsyncClient, Client
from headway.api.access.grant import ANYBODY, NEEDS, Action
from headway.api.access.jwks import AT_ONCE, BETWEEN_SECONDS
from tests.jwks_server import JwksServer, SigningKey
from tests.processes import Platform, RedisServer
from tests.streams import frames_of, opened
from tests.waiting import wait_for

SECRET: Final = "the-secret-of-a-login-9f2c77aa1b3e"
AUDIENCE: Final = "headway"
ISSUER: Final = "https://login.example.com/"
PRIVATE: Final = ed25519.Ed25519PrivateKey.generate()
PUBLIC: Final = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
TUS: Final = {"Tus-Resumable": "1.0.0"}
DEMANDED: Final = {"HEADWAY_JWT_AUDIENCE": AUDIENCE, "HEADWAY_JWT_ISSUER": ISSUER}


def claims(owner: str = "alice", seconds: float = 600, **more: Any) -> dict[str, Any]:
    return {"sub": owner, "aud": AUDIENCE, "iss": ISSUER, "exp": time.time() + seconds} | more


def token_of(owner: str = "alice", seconds: float = 600, **more: Any) -> str:
    return jwt.encode(claims(owner, seconds, **more), SECRET, "HS256")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def narrowed(owner: str = "alice", **headway: Any) -> dict[str, str]:
    return bearer(token_of(owner, headway=headway))


@pytest.fixture(scope="module")
def by_secret(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two APIs and a worker."""
    folder, url = tmp_path_factory.mktemp("secret"), redis_server.fresh_url()
    with Platform(folder, url, HEADWAY_JWT_KEY=SECRET, **DEMANDED) as platform:
        platform.start_worker()
        platform.start_api()
        platform.start_api(server="uvicorn")
        yield platform


def submit(url: str, headers: dict[str, str], **options: Any) -> dict[str, Any]:
    body = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0} | options}
    answer = httpx.post(f"{url}/tasks", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


def announce(url: str, headers: dict[str, str], size_bytes: int = 5) -> httpx.Response:
    body = {"processor": "checksum", "filename": "a.txt", "size_bytes": size_bytes}
    return httpx.post(f"{url}/tasks", json=body, headers=headers)


def tus(url: str, headers: dict[str, str], size_bytes: int = 5) -> httpx.Response:
    metadata = {"Upload-Length": str(size_bytes), "Upload-Metadata": "filename YS50eHQ=,processor Y2hlY2tzdW0="}
    return httpx.post(f"{url}/uploads", headers=headers | TUS | metadata)


def ended(url: str, task_id: str, headers: dict[str, str]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        task: dict[str, Any] = httpx.get(f"{url}/tasks/{task_id}", headers=headers).json()
        return task if task["status"] in ("completed", "failed", "cancelled") else None

    found = wait_for(f"{task_id} has ended", look, seconds=30)
    assert found is not None
    return found


class TestOwners:
    def test_a_token_is_its_owner_on_every_process_and_nobody_elses(self, by_secret: Platform) -> None:
        alice, bob = bearer(token_of("alice")), bearer(token_of("auth0|bob+1"))
        task = submit(by_secret.url, alice)
        for url in by_secret.urls:
            assert httpx.get(f"{url}/session", headers=alice).json()["owner"] == "alice"
            assert httpx.get(f"{url}/tasks/{task['task_id']}", headers=alice).status_code == 200
            assert httpx.get(f"{url}/tasks/{task['task_id']}", headers=bob).status_code == 404
            assert httpx.get(f"{url}/tasks", headers=bob).json()["tasks"] == []
        mine = submit(by_secret.url, bob)
        assert ended(by_secret.url, mine["task_id"], bob)["status"] == "completed"
        assert [one["task_id"] for one in httpx.get(f"{by_secret.url}/tasks", headers=bob).json()["tasks"]] == [
            mine["task_id"]
        ]

    def test_a_token_that_is_not_good_is_401_on_every_route_and_the_probes_are_everybodys(
        self, by_secret: Platform
    ) -> None:
        good = claims()
        none = jwt.encode(good, "", "none")
        bad = [
            jwt.encode(good, SECRET + "x", "HS256"),
            jwt.encode(good, SECRET * 2, "HS512"),
            *(none, none + token_of().rpartition(".")[2]),
            *(token_of(seconds=-1), token_of(nbf=time.time() + 60), token_of(aud="another"), token_of(iss="another")),
            jwt.encode({name: value for name, value in good.items() if name != "exp"}, SECRET, "HS256"),
            jwt.encode(good, SECRET, "HS256", headers={"crit": ["exp"]}),
            jwt.encode(good | {"sub": 7}, SECRET, "HS256"),
            *(token_of("a:b"), token_of(headway={"tasks": ["everything"]}), token_of(headway=["read"])),
        ]
        for token in bad:
            for method, path in (("GET", "/tasks"), ("POST", "/tasks"), ("GET", f"/tasks/{'0' * 32}/events")):
                answer = httpx.request(method, f"{by_secret.url}{path}", headers=bearer(token))
                said = 'Bearer error="invalid_token"'
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, said)
        assert httpx.get(f"{by_secret.url}/tasks").status_code == 401
        for path in ("/healthz", "/readyz", "/", "/static/app.js"):
            assert httpx.get(f"{by_secret.url}{path}").status_code == 200
        # `None` is no text of a token: nothing in a URL counts.
        assert httpx.get(f"{by_secret.url}/tasks?token={token_of()}").status_code == 401

    def test_a_task_token_goes_on_working_and_is_no_token_of_the_login(self, by_secret: Platform) -> None:
        task = submit(by_secret.url, bearer(token_of()))
        for url in by_secret.urls:
            assert httpx.get(f"{url}/tasks/{task['task_id']}", headers=bearer(task["token"])).status_code == 200
            assert httpx.get(f"{url}/tasks", headers=bearer(task["token"])).status_code == 403
        forged = jwt.encode(claims(aud="task", task=task["task_id"]), SECRET, "HS256")
        assert httpx.get(f"{by_secret.url}/tasks/{task['task_id']}", headers=bearer(forged)).status_code == 401
        upload = tus(by_secret.url, bearer(token_of()))
        reading = bearer(upload.headers["headway-task-token"])
        assert httpx.get(f"{by_secret.url}/tasks/{upload.headers['headway-task-id']}", headers=reading).is_success

    def test_an_owner_who_only_looks_leaves_nothing_behind(self, by_secret: Platform) -> None:
        client = redis.Redis.from_url(by_secret.redis_url)
        names = [f"idle-{secrets.token_hex(4)}" for _ in range(50)]
        for name in names:
            headers = bearer(token_of(name))
            for path in ("/tasks", "/tasks.csv", "/session", "/processors", f"/tasks/{'0' * 32}"):
                httpx.get(f"{by_secret.url}{path}", headers=headers)
        with opened(f"{by_secret.url}/events", **bearer(token_of(names[0]))):
            pass
        assert [key for key in client.scan_iter() if b"idle-" in key] == []

    def test_no_token_and_no_secret_is_in_the_log(self, by_secret: Platform) -> None:
        token = token_of("who-is-logged")
        httpx.get(f"{by_secret.url}/tasks", headers=bearer(token))
        httpx.post(f"{by_secret.url}/session", json={"token": token})
        httpx.post(f"{by_secret.url}/session", json={"token": token + "x"})
        for process in (*by_secret.apis, *by_secret.workers):
            assert token not in process.log
            assert SECRET not in process.log


class TestNarrowing:
    @pytest.mark.parametrize("action", [*Action, None])
    def test_an_action_allows_its_routes_and_no_other(self, by_secret: Platform, action: Action | None) -> None:
        headers = narrowed(tasks=[] if action is None else [action]) | TUS
        for (method, path), need in NEEDS.items():
            if path in ("/stream-numbers", "/sse-updates", "/download-large-csv"):
                continue  # they take their time, and show nobody's tasks
            url = by_secret.url + path.format(task_id="0" * 32, batch_id="none", name="x", filename="x", webhook_id="x")
            with httpx.stream(method, url, headers=headers) as answer:
                allowed = need in (ANYBODY, action)
                assert (answer.status_code == 403) is not allowed, (method, path)
        assert httpx.get(f"{by_secret.url}/metrics", headers=headers).status_code == 403
        for method, needed in (("PATCH", Action.CREATE), ("HEAD", Action.CREATE), ("DELETE", Action.CANCEL)):
            override = {"X-HTTP-Method-Override": method}
            answer = httpx.post(f"{by_secret.url}/uploads/{'0' * 32}", headers=headers | override)
            assert (answer.status_code == 403) is (needed is not action)

    def test_who_may_only_create_gets_no_token_that_reads(self, by_secret: Platform) -> None:
        creating = narrowed(tasks=["create"])
        assert "token" not in submit(by_secret.url, creating)
        assert "headway-task-token" not in tus(by_secret.url, creating).headers
        assert "token" in submit(by_secret.url, narrowed(tasks=["create", "read"]))

    def test_a_token_for_one_task_leads_to_no_other(self, by_secret: Platform) -> None:
        url, alice = by_secret.url, bearer(token_of())
        mine, other = (submit(url, alice, steps=1, step_seconds=600) for _ in range(2))
        headers = narrowed(task_id=mine["task_id"])
        assert httpx.get(f"{url}/tasks/{mine['task_id']}", headers=headers).status_code == 200
        assert httpx.get(f"{url}/tasks/{other['task_id']}", headers=headers).status_code == 404
        assert httpx.post(f"{url}/tasks/{other['task_id']}/cancel", headers=headers).status_code == 404
        for method, path in (
            *(("GET", "/tasks"), ("GET", "/tasks.csv"), ("GET", f"/events?task={mine['task_id']}")),
            *(("POST", "/tasks"), ("POST", "/uploads"), ("POST", "/process-file"), ("GET", "/metrics")),
        ):
            assert httpx.request(method, url + path, headers=headers | TUS).status_code == 403, path
        assert httpx.get(f"{url}/session", headers=headers).status_code == 200
        assert httpx.post(f"{url}/tasks/{mine['task_id']}/cancel", headers=headers).status_code == 202
        httpx.post(f"{url}/tasks/{other['task_id']}/cancel", headers=alice)

    def test_another_processor_is_refused_however_it_is_asked_for(self, by_secret: Platform) -> None:
        url, alice, headers = by_secret.url, bearer(token_of()), narrowed(processors=["rehearsal"])
        listed = httpx.get(f"{url}/processors", headers=headers).json()["processors"]
        assert [one["name"] for one in listed] == ["rehearsal"]
        submit(url, headers)
        announced = announce(url, alice).json()
        begun = tus(url, alice)
        piece = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        failing = submit(url, alice, fail_at=1)
        assert ended(url, failing["task_id"], alice)["status"] == "failed"
        form: dict[str, Any] = {"data": {"processor": "checksum"}, "files": {"file": ("a.txt", b"12345")}}
        answers = [
            announce(url, headers),
            tus(url, headers),
            httpx.post(f"{url}/tasks", headers=headers, **form),
            httpx.post(f"{url}/process-file", headers=headers, files=form["files"]),
            httpx.post(f"{url}/tasks", headers=headers, json={"producer": "nightly"}),
            httpx.put(f"{url}{announced['links']['upload']}", content=b"12345", headers=headers),
            httpx.patch(f"{url}{begun.headers['location']}", content=b"12345", headers=headers | TUS | piece),
            httpx.post(f"{url}/tasks/{failing['task_id']}/retry", headers=narrowed(processors=["checksum"])),
        ]
        assert [answer.status_code for answer in answers] == [403] * len(answers)
        assert httpx.post(f"{url}/tasks/{failing['task_id']}/retry", headers=headers).status_code == 202

    def test_who_may_run_only_some_reports_for_no_other_producer(self, by_secret: Platform) -> None:
        url, narrow = by_secret.url, narrowed(processors=["checksum"])
        billing = httpx.post(f"{url}/tasks", headers=bearer(token_of()), json={"producer": "billing"}).json()
        here = f"{url}/tasks/{billing['task_id']}"
        answers = [
            httpx.patch(f"{here}/progress", headers=narrow, json={"attempt": 1, "done": 1}),
            httpx.put(f"{here}/results/a", headers=narrow, content=b"forged"),
            httpx.post(f"{here}/fail", headers=narrow, json={"attempt": 1, "error": {"message": "x"}}),
            httpx.post(f"{here}/complete", headers=narrow, json={"attempt": 1, "summary": {}}),
        ]
        assert [answer.status_code for answer in answers] == [403] * len(answers)
        assert httpx.get(here, headers=narrow).json()["status"] == "processing"

    def test_a_file_over_the_tokens_own_limit_is_413_however_it_comes(self, by_secret: Platform) -> None:
        url, alice, headers = by_secret.url, bearer(token_of()), narrowed(max_upload_bytes=4)
        announced = announce(url, alice).json()
        begun = tus(url, alice)
        piece = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        form: dict[str, Any] = {"data": {"processor": "checksum"}, "files": {"file": ("a.txt", b"12345")}}
        produced = httpx.post(f"{url}/tasks", headers=headers, json={"producer": "nightly"}).json()
        producer = bearer(produced["producer_token"])
        answers = [
            announce(url, headers),
            tus(url, headers),
            httpx.post(f"{url}/tasks", headers=headers, **form),
            httpx.put(f"{url}/tasks/{produced['task_id']}/results/a", content=b"12345", headers=producer),
            httpx.put(f"{url}{announced['links']['upload']}", content=b"12345", headers=headers),
            httpx.patch(f"{url}{begun.headers['location']}", content=b"12345", headers=headers | TUS | piece),
        ]
        assert [answer.status_code for answer in answers] == [413] * len(answers)
        form["files"] = {"file": ("a.txt", b"1234")}
        assert httpx.post(f"{url}/tasks", headers=headers, **form).status_code == 202
        assert httpx.options(f"{url}/uploads", headers=headers | TUS).headers["tus-max-size"] == "4"

    def test_giving_up_an_upload_is_cancelling_and_once_it_has_ended_deleting(self, by_secret: Platform) -> None:
        url, alice, headers = by_secret.url, bearer(token_of()), narrowed(tasks=["cancel"]) | TUS
        at = url + tus(url, alice).headers["location"]
        assert httpx.delete(at, headers=headers).status_code == 204
        assert httpx.delete(at, headers=headers).status_code in (403, 410)
        done = submit(url, alice)
        ended(url, done["task_id"], alice)
        assert httpx.delete(f"{url}/tasks/{done['task_id']}", headers=headers).status_code == 403


def sign_in(url: str, token: str, **headers: str) -> httpx.Response:
    answer = httpx.post(f"{url}/session", json={"token": token}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def cookie_of(answer: httpx.Response) -> dict[str, str]:
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


class TestSessions:
    def test_a_stream_ends_when_its_token_does(self, by_secret: Platform) -> None:
        alice = bearer(token_of())
        task = submit(by_secret.url, alice, steps=1, step_seconds=600)
        here = f"/tasks/{task['task_id']}/events"
        for seconds in (3, 12, 48):  # a busy machine may take longer than the first to open them all
            token = token_of(seconds=seconds)
            by_cookie = cookie_of(sign_in(by_secret.url, token))
            paths = (here, "/events", "/sse-updates")
            asked = [
                *((bearer(token), f"{url}{path}") for url in by_secret.urls for path in paths),
                *((by_cookie, f"{url}{here}") for url in by_secret.urls),
            ]
            with ExitStack() as stack:
                streams = [stack.enter_context(opened(url, **headers)) for headers, url in asked]
                if {stream.status_code for stream in streams} == {200}:
                    assert all(stream.read() for stream in streams)  # to their ends
                    break
        else:
            raise AssertionError("the streams were not opened")
        for headers in (bearer(token), by_cookie):
            assert httpx.get(f"{by_secret.url}/tasks", headers=headers).status_code == 401
        httpx.post(f"{by_secret.url}/tasks/{task['task_id']}/cancel", headers=alice)

    def test_a_session_may_what_its_token_may_until_it_ends(self, by_secret: Platform) -> None:
        answer = sign_in(by_secret.url, token_of(seconds=300, headway={"tasks": ["read"]}))
        age = next(part for part in answer.headers["set-cookie"].split("; ") if part.lower().startswith("max-age="))
        assert 0 < int(age.partition("=")[2]) <= 300
        cookie = cookie_of(answer)
        for url in by_secret.urls:
            told = httpx.get(f"{url}/session", headers=cookie).json()
            assert told == answer.json()
            assert told["owner"] == "alice"
            assert httpx.get(f"{url}/tasks", headers=cookie).status_code == 200
            assert httpx.post(f"{url}/tasks", headers=cookie).status_code == 403
        client = redis.Redis.from_url(by_secret.redis_url)
        assert all(0 < client.ttl(key) <= 12 * 3600 for key in client.keys("headway:session:*"))  # type: ignore[union-attr, operator]
        long = sign_in(by_secret.url, token_of(seconds=10 * 86_400))
        assert "max-age=43200" in long.headers["set-cookie"].lower()

    def test_a_token_that_is_not_good_signs_nobody_in(self, by_secret: Platform) -> None:
        for body, status in (
            ({"token": token_of(seconds=-1)}, 401),
            ({"key": token_of()[:500]}, 401),
            ({"token": token_of(), "key": "x"}, 422),
            ({}, 422),
            ({"token": 7}, 422),
        ):
            answer = httpx.post(f"{by_secret.url}/session", json=body)
            assert (answer.status_code, "set-cookie" in answer.headers) == (status, False)

    def test_a_fresh_token_takes_over_without_a_gap(self, by_secret: Platform) -> None:
        url = by_secret.url
        task = submit(url, bearer(token_of()), steps=1, step_seconds=600)
        first = cookie_of(sign_in(url, token_of(seconds=8)))
        with opened(f"{url}/tasks/{task['task_id']}/events", **first) as stream:
            frames = frames_of(stream)
            seen = next(frames)
            second = cookie_of(sign_in(url, token_of(seconds=600), **first))
            noted = httpx.post(
                f"{url}/tasks/{task['task_id']}/notes", json={"author": "a", "text": "b"}, headers=second
            )
            assert noted.status_code == 201  # while the first still streams
            *_, seen = [seen, *frames]  # which ends with the first token, and not before
        again = {"Last-Event-ID": str(seen.id), **second}
        httpx.post(f"{url}/tasks/{task['task_id']}/cancel", headers=second)
        with opened(f"{url}/tasks/{task['task_id']}/events", **again) as stream:
            assert int(next(frames_of(stream)).id or 0) == int(seen.id or 0) + 1
        out = httpx.delete(f"{url}/session", headers=second)
        assert out.status_code == 204
        for one in (first, second):
            assert httpx.get(f"{url}/tasks", headers=one).status_code == 401

    def test_another_owners_token_ends_the_session_before(self, by_secret: Platform) -> None:
        first = cookie_of(sign_in(by_secret.url, token_of("alice")))
        second = cookie_of(sign_in(by_secret.url, token_of("bob"), **first))
        assert httpx.get(f"{by_secret.url}/tasks", headers=first).status_code == 401
        assert httpx.get(f"{by_secret.url}/session", headers=second).json()["owner"] == "bob"


@pytest.fixture(scope="module")
def by_public_key(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder, url = tmp_path_factory.mktemp("public"), redis_server.fresh_url()
    key = PUBLIC.replace("\n", "\\n")  # as a line of .env has it
    with Platform(
        folder, url, HEADWAY_JWT_KEY=key, HEADWAY_API_KEYS='{"carol": "the-key-of-carol-1"}', **DEMANDED
    ) as platform:
        platform.start_api()
        platform.start_api()
        yield platform


class TestPublicKey:
    def test_what_it_verifies_is_let_in_and_what_is_signed_with_itself_is_not(self, by_public_key: Platform) -> None:
        good = jwt.encode(claims(), PRIVATE, "EdDSA")
        assert httpx.get(f"{by_public_key.url}/tasks", headers=bearer(good)).status_code == 200
        head, body = good.split(".")[:2]
        hs256 = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
        for secret in (PUBLIC, PUBLIC.strip(), PUBLIC.replace("\n", "\\n")):
            text = f"{hs256}.{body}"
            made = base64.urlsafe_b64encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))
            forged = f"{text}.{made.decode().rstrip('=')}"
            assert httpx.get(f"{by_public_key.url}/tasks", headers=bearer(forged)).status_code == 401
        assert httpx.get(f"{by_public_key.url}/tasks", headers=bearer(token_of())).status_code == 401
        assert head != hs256

    def test_keys_of_owners_go_on_beside_it(self, by_public_key: Platform) -> None:
        key = bearer("the-key-of-carol-1")
        task = submit(by_public_key.url, key)
        carol = bearer(jwt.encode(claims("carol"), PRIVATE, "EdDSA"))
        assert httpx.get(f"{by_public_key.url}/tasks/{task['task_id']}", headers=carol).status_code == 200
        assert httpx.get(f"{by_public_key.urls[1]}/tasks/{task['task_id']}", headers=bearer(task["token"])).is_success

    def test_what_is_signed_here_is_read_by_every_process_and_by_one_that_comes_later(
        self, by_public_key: Platform
    ) -> None:
        alice = bearer(jwt.encode(claims(), PRIVATE, "EdDSA"))
        first, second = by_public_key.urls[:2]
        for _ in range(2):
            task = submit(first, alice)
            reading = bearer(task["token"])
            cookie = cookie_of(sign_in(first, alice["Authorization"].removeprefix("Bearer ")))
            late = by_public_key.start_api()
            for url in by_public_key.urls:
                assert httpx.get(f"{url}/tasks/{task['task_id']}", headers=reading).status_code == 200
                assert httpx.get(f"{url}/session", headers=cookie).json()["owner"] == "alice"
            late.stop()
            by_public_key.urls.pop()
            client = redis.Redis.from_url(by_public_key.redis_url)
            assert client.ttl("headway:signing") > 30 * 86_400  # type: ignore[operator]
            client.flushdb()  # as a Redis that came back empty
            assert httpx.get(f"{first}/tasks/{task['task_id']}", headers=reading).status_code == 404
            first, second = second, first


class TestJwks:
    @pytest.fixture
    def login(self) -> Iterator[JwksServer]:
        with JwksServer(SigningKey("one")) as server:
            yield server

    @pytest.fixture
    def by_jwks(self, login: JwksServer, redis_server: RedisServer, tmp_path: Any) -> Iterator[Platform]:
        url = redis_server.fresh_url()
        with Platform(tmp_path, url, HEADWAY_JWT_KEY=login.url, **DEMANDED) as platform:
            yield platform

    def test_keys_are_fetched_once_and_again_for_one_that_is_new(self, by_jwks: Platform, login: JwksServer) -> None:
        by_jwks.start_api()
        [one] = login.keys
        old = bearer(one.sign(claims()))
        for _ in range(20):
            assert httpx.get(f"{by_jwks.url}/tasks", headers=old).status_code == 200
        assert login.asked == 1
        login.keys = [one, two := SigningKey("two")]
        new = bearer(two.sign(claims()))
        assert httpx.get(f"{by_jwks.url}/tasks", headers=new).status_code == 200
        assert login.asked == 2
        assert httpx.get(f"{by_jwks.url}/tasks", headers=old).status_code == 200
        login.keys = [two, three := SigningKey("three")]  # the first is taken away
        assert httpx.get(f"{by_jwks.url}/tasks", headers=bearer(three.sign(claims()))).status_code == 200
        assert httpx.get(f"{by_jwks.url}/tasks", headers=old).status_code == 401
        # The address is no way in: a key under another's name, or none of the set's.
        assert httpx.get(f"{by_jwks.url}/tasks", headers=bearer(two.sign(claims(), kid="three"))).status_code == 401

    def test_strangers_names_of_keys_cause_few_fetches(self, by_jwks: Platform, login: JwksServer) -> None:
        by_jwks.start_api()
        good = bearer(login.keys[0].sign(claims()))
        stranger = SigningKey("stranger")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            tokens = [stranger.sign(claims(), kid=f"made-up-{number}") for number in range(200)]
            answers = list(pool.map(lambda token: httpx.get(f"{by_jwks.url}/tasks", headers=bearer(token)), tokens))
        assert {answer.status_code for answer in answers} == {401}
        assert login.asked <= 1 + AT_ONCE + 1 + (time.monotonic() - began) / BETWEEN_SECONDS
        assert httpx.get(f"{by_jwks.url}/tasks", headers=good).status_code == 200

    def test_an_address_that_is_away_neither_opens_nor_locks_out(self, by_jwks: Platform, login: JwksServer) -> None:
        by_jwks.start_api()
        [one] = login.keys
        good = bearer(one.sign(claims()))
        assert httpx.get(f"{by_jwks.url}/tasks", headers=good).status_code == 200
        login.stop()
        two = SigningKey("two")
        assert httpx.get(f"{by_jwks.url}/tasks", headers=bearer(two.sign(claims()))).status_code == 401
        assert httpx.get(f"{by_jwks.url}/tasks", headers=good).status_code == 200
        late = by_jwks.start_api()  # knows none, and lets nobody in
        assert httpx.get(f"{by_jwks.urls[1]}/tasks", headers=good).status_code == 401
        assert httpx.get(f"{by_jwks.urls[1]}/healthz").status_code == 200
        assert "keys of tokens not fetched" in late.log
        login.keys = [one, two]
        login.start()
        for url in by_jwks.urls:
            for key in (one, two):
                headers = bearer(key.sign(claims()))
                wait_for(
                    f"{key.kid} is known at {url}",
                    lambda url=url, headers=headers: httpx.get(f"{url}/tasks", headers=headers).status_code == 200,  # type: ignore[misc]
                )

    def test_an_address_that_hangs_keeps_nobody_who_is_known(self, by_jwks: Platform, login: JwksServer) -> None:
        by_jwks.start_api()
        good = bearer(login.keys[0].sign(claims()))
        assert httpx.get(f"{by_jwks.url}/tasks", headers=good).status_code == 200
        login.may_answer.clear()
        new = SigningKey("new")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(httpx.get, f"{by_jwks.url}/tasks", headers=bearer(new.sign(claims())))
            wait_for("the address is asked", lambda: login.asked == 2)
            for _ in range(5):
                assert httpx.get(f"{by_jwks.url}/tasks", headers=good).status_code == 200
            login.keys.append(new)
            login.may_answer.set()
            assert waiting.result().status_code in (200, 401)  # as long as it took
        headers = bearer(new.sign(claims()))
        wait_for("the key is known", lambda: httpx.get(f"{by_jwks.url}/tasks", headers=headers).status_code == 200)


def test_a_schema_says_what_a_token_signs_in_with(by_secret: Platform) -> None:
    document = httpx.get(f"{by_secret.url}/openapi.json", headers=bearer(token_of())).json()
    sign_in = document["components"]["schemas"]["SignIn"]
    assert (sign_in["minProperties"], sign_in["maxProperties"]) == (1, 1)
    assert sign_in["properties"].keys() == {"key", "token"}
    assert json.dumps(document).count(SECRET) == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_that_is_asked_for_a_token_each_time_misses_nothing_when_one_ends(
    by_secret: Platform, kind: str
) -> None:
    """Each token lives for seconds, and the second one that is given has ended already."""
    given: list[str] = []

    def fresh() -> str:
        given.append(token_of(seconds=-1 if len(given) == 1 else 4))
        return given[-1]

    async def story_async() -> list[int]:
        async with AsyncClient(by_secret.url, fresh) as client:
            options = {"steps": 8, "step_seconds": 1}
            task_id = (await client.submit(None, "rehearsal", options=options))["task_id"]
            return [int(event.id) async for event in client.watch(task_id, last_event_id=0)]

    if kind == "async":
        ids = asyncio.run(story_async())
    else:
        with Client(by_secret.url, fresh) as client:
            task_id = client.submit(None, "rehearsal", options={"steps": 8, "step_seconds": 1})["task_id"]
            ids = [int(event.id) for event in client.watch(task_id, last_event_id=0)]
    assert ids == list(range(1, len(ids) + 1))
    assert len(given) > 3
