"""Keys, signatures, and the statement that every route makes: who may use it."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from headway.api.access.identity import Gate, Policy, address_of, policies_of
from headway.api.access.keyring import Keyring
from headway.api.access.limits import Buckets, Gauge
from headway.api.access.origin_check import _is_local, is_own_origin
from headway.api.app import create_app
from headway.shared.errors import TooMany
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import OwnerId
from tests.processes import free_port
from tests.unit.test_problems import assert_problem, served

KEYS: Final = {OwnerId("alice"): SecretStr("a-key-of-alices"), OwnerId("bob"): SecretStr("a-key-of-bobs-own")}
ALICE: Final = OwnerId("alice")


@pytest.fixture(scope="module")
def keyring() -> Keyring:
    return Keyring(KEYS)


def soon() -> int:
    return int(time.time()) + 60


def forged(token: str, **changes: Any) -> Iterator[str]:
    """The token with other claims, signed by nobody, in the ways that have worked on others."""
    head, body, signature = token.split(".")

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    yield f"{head}.{part(claims)}.{signature}"
    yield f"{part({'alg': 'none', 'typ': 'JWT', 'kid': 'alice'})}.{part(claims)}."
    yield f"{part({'alg': 'HS256', 'kid': None})}.{part(claims)}.{signature}"
    yield f"{part({'alg': 'HS256', 'kid': ['alice']})}.{part(claims)}.{signature}"
    yield jwt.encode(claims, "a-key-of-alices-and-nothing-else-x", "HS256", headers={"kid": "alice"})
    yield jwt.encode(claims, "x" * 32, "HS256", headers={"kid": "alice"})
    yield f"{head}.{body}.{signature[:-4]}AAAA"
    yield f"{head}.{body}"


class TestKeyring:
    def test_a_key_is_its_owners_and_nothing_else_is(self, keyring: Keyring) -> None:
        assert [keyring.owner_of(key.get_secret_value()) for key in KEYS.values()] == list(KEYS)
        for wrong in ("", "a-key-of-alice", "a-key-of-alicess", "A-KEY-OF-ALICES", "ä", "\udcff", "x" * 100_000):
            assert keyring.owner_of(wrong) is None

    def test_the_keys_themselves_are_not_kept(self, keyring: Keyring) -> None:
        held = repr(vars(keyring))
        assert not [key for key in KEYS.values() if key.get_secret_value() in held]
        assert vars(keyring)["_digests"] != vars(Keyring(KEYS))["_digests"]  # of no use in another process

    def test_what_was_signed_is_read_by_every_process_with_that_key(self, keyring: Keyring) -> None:
        token = keyring.sign("task", ALICE, soon(), task="1")
        claims = Keyring(KEYS).read("task", token)
        assert claims is not None
        assert (claims["sub"], claims["task"]) == ("alice", "1")

    def test_another_key_ends_what_was_signed_and_another_owners_does_not(self, keyring: Keyring) -> None:
        token = keyring.sign("task", ALICE, soon(), task="1")
        assert Keyring(KEYS | {ALICE: SecretStr("the-next-key-of-alices")}).read("task", token) is None
        assert Keyring(KEYS | {OwnerId("bob"): SecretStr("the-next-key-of-bobs")}).read("task", token)
        assert Keyring({}).read("task", token) is None

    def test_a_session_is_no_token_and_a_token_no_session(self, keyring: Keyring) -> None:
        assert keyring.read("session", keyring.sign("task", ALICE, soon(), task="1")) is None
        assert keyring.read("task", keyring.sign("session", ALICE, soon(), jti="1")) is None

    def test_what_has_expired_is_nothing(self, keyring: Keyring) -> None:
        assert keyring.read("task", keyring.sign("task", ALICE, int(time.time()) - 1, task="1")) is None

    def test_what_was_not_signed_here_is_nothing(self, keyring: Keyring) -> None:
        token = keyring.sign("task", ALICE, soon(), task="1")
        for wrong in forged(token, task="2"):
            assert keyring.read("task", wrong) is None, wrong
        for wrong in ("", ".", "..", "a.b.c", "é.é.é", "." * 5000, token + "." + token, token + " "):
            assert keyring.read("task", wrong) is None, wrong

    def test_an_owner_cannot_sign_for_another(self, keyring: Keyring) -> None:
        secret = vars(keyring)["_secrets"][OwnerId("bob")]
        claims = {"sub": "alice", "aud": "task", "exp": soon(), "task": "1"}
        assert keyring.read("task", jwt.encode(claims, secret, "HS256", headers={"kid": "bob"})) is None
        assert keyring.read("task", jwt.encode(claims, secret, "HS256", headers={"kid": "alice"})) is None


def app_with(*routers: APIRouter) -> FastAPI:
    app = create_app(Settings())
    for router in routers:
        app.include_router(router)
    return app


class TestPolicies:
    def test_every_route_states_who_may_use_it(self) -> None:
        """Depend on OwnerDep, ReaderDep, TaskDep, ReadTaskDep, or write `dependencies=[PUBLIC]`."""
        stated = policies_of(create_app(Settings()))
        assert len(stated) > 30
        assert [(route.path, route.methods) for route in stated if route.policy is None] == []

    def test_public_is_what_the_contract_says_and_no_more(self) -> None:
        public = [route for route in policies_of(create_app(Settings())) if route.policy is Policy.PUBLIC]
        found = {(method, route.path) for route in public for method in route.methods or ["*"]}
        assert found == {
            ("GET", "/"),
            ("GET", "/healthz"),
            ("GET", "/readyz"),
            ("POST", "/session"),
            ("*", "/static"),
        }

    def test_a_token_is_enough_to_read_a_task_and_for_no_more(self) -> None:
        readers = [route for route in policies_of(create_app(Settings())) if route.policy is Policy.READER]
        assert {route.path for route in readers} == {
            "/tasks/{task_id}",
            "/tasks/{task_id}/events",
            "/task-progress/{task_id}",
            "/tasks/{task_id}/files/{name}",
            "/tasks/{task_id}/input",
            "/tasks/{task_id}/notes",
        }
        assert {method for route in readers for method in route.methods or ["*"]} == {"GET", "HEAD"}

    def test_a_route_that_states_nothing_is_found_wherever_it_hangs(self) -> None:
        inner, outer = APIRouter(), APIRouter()

        @inner.get("/inner")
        async def of_inner() -> None: ...

        outer.include_router(inner)
        app = app_with(outer)
        app.router.routes.append(Route("/plain", PlainTextResponse("x")))
        app.router.routes.append(Mount("/mounted", PlainTextResponse("x")))
        assert {route.path for route in policies_of(app) if route.policy is None} == {"/inner", "/plain", "/mounted"}

    async def test_a_route_that_states_nothing_is_refused(self, settings: Settings) -> None:
        app = create_app(settings)

        @app.get("/forgotten/{name}")
        async def forgotten(name: str) -> str:
            return name

        app.mount("/mounted", PlainTextResponse("x"))
        for middleware in app.user_middleware:
            if getattr(middleware.cls, "__name__", "") == Gate.__name__:  # as create_app would have done, had it known
                middleware.kwargs["routes"] = policies_of(app)
        async with served(app) as client:
            assert_problem(await client.get("/forgotten/x"), 403)
            assert_problem(await client.get("/mounted/x"), 403)
            assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "anything"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://headway.test"}, False),
        ({"Origin": "https://headway.test"}, True),
        ({"Origin": "https://HEADWAY.test"}, True),
        ({"Origin": "http://headway.test"}, False),
        ({"Origin": "https://other.headway.test"}, False),
        ({"Origin": "https://headway.test:8443"}, False),
        ({"Origin": "https://headway.test.evil.test"}, False),
        ({"Origin": "https://evil.test/headway.test"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://["}, False),
    ],
)
def test_only_our_own_page_is_of_our_own_origin(headers: dict[str, str], own: bool) -> None:
    assert is_own_origin(Headers({"Host": "headway.test"} | headers), {"scheme": "https"}) is own


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("api:8000", True),
        ("app.localhost:8000", True),
        ("", True),
        ("evil.test:8000", False),
        ("evil.test.", False),
        ("127.0.0.1.nip.io:8000", False),
        ("localhost.evil.test", False),
        ("[::1", False),
        ("127.0.0.1@evil.test", False),
    ],
)
def test_a_name_that_anybody_may_have_given_is_not_local(host: str, local: bool) -> None:
    assert _is_local(host) is local


async def test_a_page_that_had_its_name_lead_here_reads_nothing(settings: Settings) -> None:
    async with served(create_app(settings)) as client:
        assert_problem(await client.get("/processors", headers={"Host": "evil.test:8000"}), 403)
    async with served(create_app(settings.model_copy(update={"insecure": True}))) as client:
        assert (await client.get("/processors", headers={"Host": "headway.test"})).status_code == 200


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.1", 5), "address 192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5), "address 2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "address fe80::/64"),
        (("no:address", 5), "address no:address"),
        (None, "address "),
    ],
)
def test_an_address_of_ipv6_counts_by_its_network(client: Any, address: str) -> None:
    assert address_of({"client": client}) == address


def test_a_gauge_counts_each_name_and_forgets_who_has_let_go() -> None:
    gauge = Gauge(2, "At most")
    with gauge.held("owner a", "address 1"), gauge.held("owner a", "address 2"):
        with pytest.raises(TooMany) as refused, gauge.held("owner a", "address 3"):
            pass
        assert refused.value.retry_after_seconds > 0
        with gauge.held("owner b", "address 1"):
            pass
    assert len(gauge) == 0


def test_a_gauge_without_a_limit_refuses_nobody() -> None:
    gauge = Gauge(0, "At most")
    with gauge.held("a"), gauge.held("a"):
        gauge.check("a")


async def test_every_answer_says_what_a_browser_must_not_do_with_it(settings: Settings) -> None:
    keyed = settings.model_copy(update={"api_keys": KEYS, "cors_origins": ["https://app.test"]})
    async with served(create_app(keyed)) as client:
        key = {"Authorization": "Bearer a-key-of-alices"}
        paths = ("/", "/static/app.js", "/tasks", "/nothing", "/healthz", "/docs", "/openapi.json", "/download/x")
        answers = [await client.get(path, headers=key) for path in paths]
        answers += [await client.get("/tasks"), await client.post("/tasks", headers={"Sec-Fetch-Site": "cross-site"})]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        policy = answer.headers["content-security-policy"]
        script = next((part for part in policy.split("; ") if part.startswith("script-src")), policy)
        assert "unsafe" not in script
        assert "frame-ancestors 'none'" in policy or "sandbox" in policy


async def test_another_origin_reads_with_a_key_and_never_with_a_cookie(settings: Settings) -> None:
    keyed = settings.model_copy(update={"api_keys": KEYS, "cors_origins": ["https://app.test"]})
    async with served(create_app(keyed)) as client:
        asked = {"Origin": "https://app.test", "Access-Control-Request-Method": "POST"}
        preflight = await client.options("/tasks", headers=asked | {"Access-Control-Request-Headers": "authorization"})
        assert preflight.status_code == 200
        refused = await client.get("/tasks", headers={"Origin": "https://app.test"})
        assert_problem(refused, 401)  # and the page may read that it is
        for answer in (preflight, refused):
            assert answer.headers["access-control-allow-origin"] == "https://app.test"
            assert "access-control-allow-credentials" not in answer.headers
        stranger = await client.get("/tasks", headers={"Origin": "https://evil.test"})
        assert "access-control-allow-origin" not in stranger.headers


async def test_requests_in_a_second_are_counted_over_all_processes_and_for_strangers_by_address(
    settings: Settings, redis_client: RedisClient
) -> None:
    keyed = settings.model_copy(update={"api_keys": KEYS, "max_requests_per_second": 5})
    async with served(create_app(keyed)) as one, served(create_app(keyed)) as other:
        for headers, status in (({"Authorization": "Bearer a-key-of-alices"}, 200), ({}, 401)):
            answers = [await client.get("/processors", headers=headers) for client in (one, other) * 40]
            assert {answer.status_code for answer in answers} == {status, 429}
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert_problem(refused, 429)
            assert refused.headers["retry-after"] == "1"
            kept = await redis_client.keys("headway:limits*")
            assert [key for key in kept if await redis_client.ttl(key) == -1] == []
        assert {(await one.get("/healthz")).status_code for _ in range(20)} == {200}


async def test_requests_that_change_something_have_a_rate_by_default(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.api.access.limits.CHANGES_PER_SECOND", 0.001)
    monkeypatch.setattr("headway.api.access.limits.CHANGES_AT_ONCE", 5)
    async with served(create_app(settings.model_copy(update={"api_keys": KEYS}))) as client:
        alice, bob = ({"Authorization": f"Bearer {key.get_secret_value()}"} for key in KEYS.values())
        answers = [await client.post("/tasks/nothing/cancel", headers=alice) for _ in range(7)]
        assert [answer.status_code for answer in answers] == [404] * 5 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) > 0
        assert {(await client.get("/processors", headers=alice)).status_code for _ in range(10)} == {200}
        assert (await client.post("/tasks/nothing/cancel", headers=bob)).status_code == 404


def test_a_rate_is_remembered_only_as_long_as_it_says_something() -> None:
    buckets = Buckets(10, 20)
    assert [buckets.take("a", 0.0) for _ in range(21)] == [True] * 20 + [False]
    assert [buckets.take("a", 0.5) for _ in range(6)] == [True] * 5 + [False]
    for number in range(1000):
        assert buckets.take(f"{number}", number / 10)
    assert len(buckets) <= 21


async def test_a_redis_that_is_away_limits_nobody(settings: Settings) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    changes = {"api_keys": KEYS, "max_requests_per_second": 1, "redis_url": nowhere}
    async with served(create_app(settings.model_copy(update=changes))) as client:
        key = {"Authorization": "Bearer a-key-of-alices"}
        assert {(await client.get("/processors", headers=key)).status_code for _ in range(3)} == {200}


def test_the_tests_that_the_security_page_names_are_there() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"\b(test_\w+)", (root / "SECURITY.md").read_text(encoding="utf-8")))
    paths = list((root / "tests").rglob("test_*.py"))
    written = "".join(path.read_text(encoding="utf-8") for path in paths)
    there = {path.stem for path in paths} | set(re.findall(r"def (test_\w+)\(", written))
    assert len(named) > 30
    assert named - there == set()
