"""`/session`: the browser's sign-in. A key or a token comes once, a cookie stays that no script can read."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from headway.api.access.crowd import network_of
from headway.api.access.grant import WHOLE, Grant, claim_of
from headway.api.access.identity import COOKIE, PUBLIC, address_of
from headway.api.access.keyring import SIGNED_CHARACTERS
from headway.api.access.sessions import SESSION_SECONDS
from headway.api.access.tokens import TOKEN_CHARACTERS
from headway.api.dependencies import IdentityDep, OwnerDep, StateDep
from headway.api.lifespan import State
from headway.api.openapi import answer, header, problems, together
from headway.api.schemas import Session
from headway.api.serving.counted_log import counted_line
from headway.api.serving.small_body import SmallBody
from headway.shared.errors import InvalidRequest, NotAllowed, TooLarge
from headway.shared.logging import get_logger
from headway.shared.tasks.models import OwnerId, rfc3339

log = get_logger(__name__)

router = APIRouter(tags=["session"], route_class=SmallBody)


class SignIn(BaseModel):
    """One of the two."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "maxProperties": 1})

    key: Annotated[SecretStr, Field(max_length=512)] | None = None
    #: Of somebody else's login (HEADWAY_JWT_KEY).
    token: Annotated[SecretStr, Field(max_length=TOKEN_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("send `key` or `token`")
        return self


def _cookie(request: Request, response: Response, value: str, seconds: int) -> None:
    secure, path = request.url.scheme == "https", request.scope.get("root_path") or "/"
    response.set_cookie(COOKIE, value, max_age=seconds, path=path, secure=secure, httponly=True, samesite="strict")


def _told(owner: OwnerId | None, expires_at: float | None) -> dict[str, Any]:
    until = rfc3339(datetime.fromtimestamp(expires_at, UTC)) if expires_at is not None else None
    return {"owner": owner, "expires_at": until}


@router.post(
    "/session",
    dependencies=[PUBLIC],
    summary="Sign in with a key or a token, for a cookie",
    responses=together(
        {
            200: answer(
                "Signed in",
                Session,
                {"Set-Cookie": header("`headway_session`; not in open mode", always=False)},
            )
        },
        problems(NotAllowed, InvalidRequest, TooLarge),
    ),
)
async def sign_in(
    request: Request, response: Response, state: StateDep, asking: IdentityDep, given: SignIn
) -> dict[str, Any]:
    """`owner`, and when the session ends: with the token, where it was one. A session that the browser had is ended;
    with a fresh token of the same owner it goes on. In open mode there is nobody to be: `owner` is null, and no cookie
    is set."""
    if state.keyring.is_open:
        return _told(None, None)
    address = address_of(request.scope)
    peer = request.scope.get("headway.peer")
    async with state.limits.one_try(address, f"address {network_of(peer[0])}" if peer else None):
        owner, grant, until = await _who(state, given)
        if owner is None:
            counted_line(log.warning, "sign-in refused", address=address)
            raise NotAllowed("This is nobody's key." if given.key is not None else "This token lets nobody in.")
    now = int(time.time())
    expires_at = min(now + SESSION_SECONDS, until)
    seconds = max(1, expires_at - now)
    session_id = None
    if asking is not None and asking.session_id is not None:
        # Its streams end when their token does, and find the new cookie when they come back.
        goes_on = given.token is not None and asking.owner == owner
        if goes_on and await state.sessions.go_on(asking.session_id, owner, seconds):
            session_id = asking.session_id
        else:
            await state.sessions.end(asking.session_id)
    if session_id is None:
        session_id = await state.sessions.begin(owner, seconds)
    await state.secret.ready_for(owner)
    narrowed = {} if grant == WHOLE else {"headway": claim_of(grant)}
    signed = state.keyring.sign("session", owner, expires_at, jti=session_id, **narrowed)
    if len(signed) > SIGNED_CHARACTERS:
        raise InvalidRequest("The token's claim `headway` is longer than a cookie can be. Name fewer processors.")
    _cookie(request, response, signed, seconds)
    if request.scope.get("root_path"):
        # One of the time before there was a prefix. Of two, none counts (api/access/identity.py).
        response.set_cookie(COOKIE, "", max_age=0, path="/", httponly=True, samesite="strict")
    response.headers["Cache-Control"] = "no-store"
    counted_line(log.info, "signed in", owner=owner, address=address)
    return _told(owner, expires_at)


async def _who(state: State, given: SignIn) -> tuple[OwnerId | None, Grant, int]:
    """And what they may do, and until when at the longest, in Unix time."""
    never = int(time.time()) + SESSION_SECONDS
    if given.key is not None:
        return state.keyring.owner_of(given.key.get_secret_value()), WHOLE, never
    if given.token is None or state.tokens is None:
        return None, WHOLE, never
    claimed = await state.tokens.read(given.token.get_secret_value())
    return (None, WHOLE, never) if claimed is None else (claimed.owner, claimed.grant, int(claimed.expires_at))


@router.get("/session", summary="Who is asking", operation_id="get_session", responses={200: answer("You", Session)})
async def look(response: Response, state: StateDep, owner: OwnerDep, asking: IdentityDep) -> dict[str, Any]:
    """As the sign-in answered; of who comes with a key, `expires_at` is null."""
    response.headers["Cache-Control"] = "no-store"
    if state.keyring.is_open:
        return _told(None, None)
    return _told(owner, asking.expires_at if asking is not None else None)


@router.delete("/session", status_code=204, summary="Sign out", responses={204: answer("Signed out")})
async def sign_out(request: Request, response: Response, state: StateDep, _: OwnerDep, asking: IdentityDep) -> None:
    """The session is over for every API process, and so are its streams. A key that is sent along stays good."""
    if asking is not None and asking.session_id is not None:
        await state.sessions.end(asking.session_id)
        counted_line(log.info, "signed out", owner=asking.owner)
    _cookie(request, response, "", 0)
