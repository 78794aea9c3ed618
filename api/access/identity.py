"""Who is asking, and whether they may: decided in front of every route there is, and of every one there will be.

A request is somebody's by a key, a session, a task token or a token of somebody else's login, and by nothing in its
URL; or by the word of the app that this one is part of. Without one it gets 401, unless its route says that it is
public. A task token reads its task and nothing else; what is narrowed (api/access/grant.py) does no more than that.
Each route states its policy by what it depends on (`public` here, or one of api/dependencies.py's); one that states
none is refused.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from headway.api.access.crowd import network_of
from headway.api.access.grant import ANYBODY, NEEDS, WHOLE, Action, Grant, Owner, grant_of
from headway.api.access.keyring import Keyring
from headway.api.access.origin_check import SAFE_METHODS, is_own_origin
from headway.api.lifespan import State
from headway.api.problems import answer_to, is_refusal
from headway.api.root_path import route_path
from headway.api.serving.methods import Methods
from headway.api.serving.turns import Gone
from headway.shared.errors import HeadwayError, NoPolicy, NotAllowed, NotWithToken, UnknownTask
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisError
from headway.shared.tasks.models import ANYONE, OwnerId, TaskId
from headway.shared.tasks.progress import ACTIVE_TTL_SECONDS

log = get_logger(__name__)

COOKIE: Final = "headway_session"
#: Asked by who has no key and must not wait behind those who have none either.
PROBES: Final = frozenset({"/healthz", "/readyz"})
#: A body over this, or of unknown length, is an upload; less is a few words of JSON.
UPLOAD_BYTES: Final = 64 * 1024

#: Of an app that this one is part of: `create_app(settings, identify=f)`. None: nobody that it knows.
Identify = Callable[[Request], Awaitable[Owner | None]]

#: Where POST stands for what X-HTTP-Method-Override says.
_OVERRIDDEN: Final = re.compile(r"/uploads/[^/]+")
#: Whatever is about one task.
_ONE_TASK: Final = re.compile(r"/(?:tasks|task-progress|uploads)/([^/]+)(?:/.*)?")
_TASK: Final = re.compile(r"/(?:tasks|task-progress)/([^/]+)(?:/.*)?")
#: What a producer reports by, on its task.
_PRODUCERS: Final = re.compile(r"/tasks/([^/]+)/(?:progress|attempts|complete|fail|results/[^/]+)")
#: Streams of what Redis holds, which are held open while it is away.
_WAITING: Final = re.compile(r"/(?:events|(?:tasks|batches)/[^/]+/events|task-progress/[^/]+)")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who may ask. With `task_id` it is by a token, for that task; with `session_id` by a cookie."""

    owner: OwnerId
    task_id: TaskId | None = None
    session_id: str | None = None
    #: The token is a producer's: it reports on the task, and reads nothing.
    produces: bool = False
    #: When the token or the session is over, in seconds of Unix time.
    expires_at: float | None = None
    #: Redis was away, so nobody could say whether the session has ended; only what waits for Redis is let in.
    unasked: bool = False
    #: What of the owner's they may use.
    grant: Grant = WHOLE


_PRODUCERS_ALONE: Final = "A producer token reports on its task and does nothing else. Send a key."

OPEN: Final = Identity(ANYONE)


class Policy(StrEnum):
    """Who may use a route."""

    PUBLIC = "public"  #: everybody
    READER = "reader"  #: a key, a session, or the token of the task
    PRODUCER = "producer"  #: a key, a session, or the producer token of the task
    OWNER = "owner"  #: a key or a session


_STATEMENTS: Final[dict[Callable[..., Any], Policy]] = {}
#: What is no route of FastAPI states its policy here.
MOUNTS: Final = {"/static": Policy.PUBLIC}

F = TypeVar("F", bound=Callable[..., Any])


def states(policy: Policy) -> Callable[[F], F]:
    """For a dependency: whatever route depends on it has stated this policy."""

    def register(dependency: F) -> F:
        _STATEMENTS[dependency] = policy
        return dependency

    return register


@states(Policy.PUBLIC)
async def public() -> None:
    """For a route that asks nobody who they are."""


PUBLIC: Final = Depends(public)


@dataclass(frozen=True, slots=True)
class Stated:
    """A route and its policy; None: it states none."""

    path: str
    #: None: all of them.
    methods: frozenset[str] | None
    policy: Policy | None
    route: BaseRoute


def policies_of(app: FastAPI) -> list[Stated]:
    """Every route of the app, those of routers and mounts included."""
    return list(_walk(app.routes))


def _walk(routes: Iterable[BaseRoute]) -> Iterator[Stated]:
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _walk(included.routes)
            continue
        path: str = getattr(route, "path", "")
        methods = getattr(route, "methods", None)
        policy = _stated(route.dependant) if isinstance(route, APIRoute) else MOUNTS.get(path)
        yield Stated(path, frozenset(methods) if methods else None, policy, route)


def methods_of(routes: Iterable[Stated]) -> Methods:
    return Methods((stated.methods, stated.route) for stated in routes)


def _stated(dependant: Dependant) -> Policy | None:
    """The strictest of those it depends on."""
    found = {_stated(needed) for needed in dependant.dependencies} | {_STATEMENTS.get(dependant.call or public)}
    return next((policy for policy in reversed(Policy) if policy in found), None)


async def token_of(state: State, scope: Scope, task_id: TaskId) -> str | None:
    """What reads this one task for HEADWAY_TOKEN_SECONDS. None in open mode, where nobody needs it, and for who may not
    read. AWAY."""
    identity: Identity = scope["headway.identity"]
    if state.keyring.is_open or not may(identity, Action.READ):
        return None
    await state.secret.ready_for(identity.owner)
    expires_at = int(time.time()) + state.settings.token_seconds
    return state.keyring.sign("task", identity.owner, expires_at, task=task_id)


async def with_producer_token(answer: Response, state: State, scope: Scope) -> Response:
    """The same with what an outside producer reports by, as long as a task is kept; any other answer as it is. In open
    mode it is a word that nobody looks at, so that a producer need not know. AWAY."""
    body = json.loads(bytes(answer.body))
    if "progress" not in body["links"]:
        return answer
    task_id, token = TaskId(body["task_id"]), secrets.token_urlsafe()
    if not state.keyring.is_open:
        identity: Identity = scope["headway.identity"]
        await state.secret.ready_for(identity.owner)
        expires_at = int(time.time()) + ACTIVE_TTL_SECONDS
        most = identity.grant.max_upload_bytes  # of a result, too, by whoever holds the token
        token = state.keyring.sign("producer", identity.owner, expires_at, task=task_id, most=most)
    kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    return JSONResponse(body | {"producer_token": token}, answer.status_code, kept)


async def with_token(answer: Response, state: State, scope: Scope) -> Response:
    """The answer to a submission, with the task's token. It is made anew for an answer that is given again, so that it
    has its whole life before it and is kept nowhere. AWAY."""
    body = json.loads(bytes(answer.body))
    if (token := await token_of(state, scope, TaskId(body["task_id"]))) is None:
        return answer
    body["token"] = token
    kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    return JSONResponse(body, answer.status_code, kept)


def may(identity: Identity, action: Action) -> bool:
    return identity.grant.actions is None or action in identity.grant.actions


def check_action(scope: Scope, action: Action) -> None:
    """For what a route finds out only when it has looked. Raises NotWithToken."""
    if not may(scope["headway.identity"], action):
        raise NotWithToken(f"This token may not do that: its claim `headway` has no `{action}` in `tasks`.")


def check_processor(scope: Scope, name: str) -> None:
    """Whether who asks may have this one run. Raises NotWithToken."""
    processors = scope["headway.identity"].grant.processors
    if processors is not None and name not in processors:
        raise NotWithToken("This token may not have that run: its claim `headway` names other `processors`.")


def most_upload_bytes(scope: Scope, state: State) -> int:
    """Of one file, of who asks."""
    most: int | None = scope["headway.identity"].grant.max_upload_bytes
    limit = int(state.settings.max_upload_bytes)
    return limit if most is None else min(most, limit)


class Gate:
    """The layer in front of the routes. It leaves the Identity in the scope, None where a public route has no need."""

    def __init__(
        self, app: ASGIApp, keyring: Keyring, routes: Iterable[Stated], identify: Identify | None = None
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._app_says = identify
        routes = list(routes)
        self._methods = methods_of(routes)
        #: What a narrowed request needs, by the route's method and path.
        self._needs: list[tuple[str, re.Pattern[str], Action | str]] = []
        self._public: set[tuple[str, str]] = set()
        self._public_mounts: tuple[str, ...] = ()
        self._closed: list[Stated] = []
        for stated in routes:
            for method in stated.methods or ():
                if (need := NEEDS.get((method, stated.path))) is not None:
                    self._needs.append((method, stated.route.path_regex, need))  # type: ignore[attr-defined]
            if stated.policy is None:
                log.error("route without a policy is refused", path=stated.path)
                self._closed.append(stated)
            elif stated.policy is Policy.PUBLIC and stated.methods is None:
                self._public_mounts += (f"{stated.path}/",)
            elif stated.policy is Policy.PUBLIC:
                self._public |= {(method, stated.path) for method in stated.methods or ()}
        #: Where nobody is asked, nobody is asked before a method is refused.
        self._public_paths = {path for _, path in self._public}
        self._public_paths -= {stated.path for stated in routes if stated.policy is not Policy.PUBLIC}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: State = scope["state"]["headway"]
        headers = Headers(scope=scope)
        uploads = scope["method"] in ("POST", "PUT", "PATCH") and _is_upload(headers)
        refusal = None
        try:
            await self._let_in(state, scope, headers)
            if uploads:
                state.limits.uploads.check(*names_of(scope))
        except (HeadwayError, RedisError) as error:
            refusal = answer_to(error, scope)
        except Gone:
            return  # no answer: nobody is there to read one
        if refusal is not None:
            await refusal(scope, receive, send)
        elif uploads:
            with state.limits.uploads.held(*names_of(scope)):
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _let_in(self, state: State, scope: Scope, headers: Headers) -> None:
        """Raises what is to be answered instead."""
        path = route_path(scope) or "/"
        method = self._methods.routed(scope["method"], path)
        is_public = (method, path) in self._public or path in self._public_paths or path.startswith(self._public_mounts)
        open_to_all = is_public and method in SAFE_METHODS
        # What everybody may see asks nobody who they are: it is there without Redis too.
        who = OPEN if self._keyring.is_open else None
        identity = scope["headway.identity"] = who if open_to_all else await self._identify(state, path, headers, scope)
        connection = scope.pop("headway.connection", None)
        if connection is not None and identity is not None:
            connection.known()
        if identity is None:
            name = "probes" if path in PROBES else address_of(scope)
            await state.turns.wait(name, lambda: connection is None or not connection.has_left())
        if not open_to_all:
            await state.limits.count_request(names_of(scope)[0], changes=method not in SAFE_METHODS)
        if not is_public:
            if identity is None:
                raise NotAllowed
            self._check(identity, path, method)
            if identity.grant != WHOLE:
                self._check_grant(identity, path, method, headers)

    def _check_grant(self, identity: Identity, path: str, method: str, headers: Headers) -> None:
        """Raises NotWithToken for what the narrowing does not name, UnknownTask for another task than its own."""
        if method == "OPTIONS":
            return  # what a path takes is the same for everybody
        if method == "POST" and _OVERRIDDEN.fullmatch(path):
            method = headers.get("x-http-method-override", "").upper()
        need = next((need for known, pattern, need in self._needs if known == method and pattern.match(path)), None)
        if need is None:
            raise NotWithToken("This token is for some of its owner's tasks, and not for this.")
        if isinstance(need, Action) and not may(identity, need):
            raise NotWithToken(f"This token may not do that: its claim `headway` has no `{need}` in `tasks`.")
        if identity.grant.task_id is not None and need != ANYBODY:
            found = _ONE_TASK.fullmatch(path)
            if found is None:
                raise NotWithToken("This token is for one task, and not for this.")
            if found[1] != identity.grant.task_id:
                raise UnknownTask

    def _check(self, identity: Identity, path: str, method: str) -> None:
        if identity.task_id is not None:
            found = (_PRODUCERS if identity.produces else _TASK).fullmatch(path)
            if found is None or (method in SAFE_METHODS) is identity.produces:
                raise NotWithToken(_PRODUCERS_ALONE if identity.produces else None)
            if found[1] != identity.task_id:
                raise UnknownTask
        for stated in self._closed:
            pattern = getattr(stated.route, "path_regex", None)
            if (pattern is None or pattern.match(path)) and (stated.methods is None or method in stated.methods):
                raise NoPolicy

    async def _identify(self, state: State, path: str, headers: Headers, scope: Scope) -> Identity | None:
        """Raises AWAY."""
        if self._keyring.is_open:
            return OPEN
        kind, _, credential = headers.get("authorization", "").partition(" ")
        known = await self._bearer(state, credential.strip()) if kind.lower() == "bearer" else None
        if known is None and self._app_says is not None:
            if scope["method"] not in SAFE_METHODS and not is_own_origin(headers, scope):
                # A page of another site asks. What its browser sends by itself, the app's cookie, does not count.
                kept = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
                return await _by_word_of(self._app_says, {**scope, "headers": kept, "session": {}})
            return await _by_word_of(self._app_says, scope)
        if kind.lower() == "bearer":
            return known
        # A cookie is sent by the browser, whoever made it ask; so it counts for our own page alone.
        if "cookie" not in headers or not is_own_origin(headers, scope):
            return None
        cookies = [cookie_parser(part).get(COOKIE) for part in headers["cookie"].split(";")]
        if len(given := {cookie for cookie in cookies if cookie is not None}) != 1:
            return None  # of two, one is a neighbour's plant: `other.example.com` may set one for all of `example.com`
        cookie = given.pop()
        await state.secret.look_for(cookie)
        claims = self._keyring.read("session", cookie)
        if claims is None:
            return None
        session_id, owner, expires_at = str(claims["jti"]), OwnerId(claims["sub"]), float(claims["exp"])
        grant = grant_of(claims["headway"]) if "headway" in claims else WHOLE
        try:
            if not await state.sessions.is_alive(session_id):
                return None
        except AWAY:
            if _WAITING.fullmatch(path) is None:
                raise
            return Identity(owner, session_id=session_id, expires_at=expires_at, unasked=True, grant=grant)
        return Identity(owner, session_id=session_id, expires_at=expires_at, grant=grant)

    async def _bearer(self, state: State, credential: str) -> Identity | None:
        """Raises AWAY."""
        if (owner := self._keyring.owner_of(credential)) is not None:
            return Identity(owner)
        await state.secret.look_for(credential)
        if (claims := self._keyring.read("task", credential)) is not None:
            return Identity(OwnerId(claims["sub"]), task_id=TaskId(claims["task"]), expires_at=float(claims["exp"]))
        if (claims := self._keyring.read("producer", credential)) is not None:
            grant = Grant(max_upload_bytes=claims["most"])
            return Identity(OwnerId(claims["sub"]), task_id=TaskId(claims["task"]), produces=True, grant=grant)
        if state.tokens is not None and (claimed := await state.tokens.read(credential)) is not None:
            return Identity(claimed.owner, expires_at=claimed.expires_at, grant=claimed.grant)
        return None


async def _by_word_of(app_says: Identify, scope: Scope) -> Identity | None:
    """What the app says of a request. It sees everything but the body, which is for the route."""
    try:
        owner = await app_says(Request(scope))
    except Exception as error:
        if is_refusal(error):  # as a dependency of FastAPI refuses
            return None
        raise
    if owner is None:
        return None
    if not isinstance(owner, Owner):
        raise TypeError(f"identify has to return headway.app.Owner or None, and returned {type(owner).__name__}")
    return Identity(owner.owner_id, expires_at=owner.expires_at, grant=owner.grant)


def names_of(scope: Scope) -> tuple[str, ...]:
    """Whose limits a request that was let in counts against: an owner's, where there are owners, and an address's."""
    identity: Identity | None = scope["headway.identity"]
    address = address_of(scope)
    return (address,) if identity is None or identity is OPEN else (f"owner {identity.owner}", address)


def address_of(scope: Scope) -> str:
    """What counts as one address: of IPv6 the first half, the other being free for everybody to choose."""
    return f"address {network_of((scope.get('client') or ('',))[0])}"


def _is_upload(headers: Headers) -> bool:
    declared = headers.get("content-length", "")
    return "transfer-encoding" in headers or (declared.isdigit() and int(declared) > UPLOAD_BYTES)
