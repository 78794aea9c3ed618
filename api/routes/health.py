"""`/healthz`: this process answers. `/readyz`: what it needs, each with a reason. Neither asks for a key."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Response

from headway.api.access.identity import PUBLIC
from headway.api.dependencies import StateDep
from headway.api.lifespan import State
from headway.api.openapi import answer
from headway.api.schemas import Health, Readiness, Unreadiness
from headway.shared import keys
from headway.shared.redis.client import AWAY, RedisError, durability, trouble_ahead, why_away
from headway.shared.redis.faults import refused_lately
from headway.shared.tasks.line import line_counts
from headway.shared.tasks.queue import SILENT_LEASES
from headway.shared.version import VERSION

router = APIRouter(tags=["health"])

#: Of the disk of HEADWAY_DATA_DIR.
NEARLY_FULL = 0.95


@router.get(
    "/healthz",
    dependencies=[PUBLIC],
    summary="Is the process alive",
    responses={200: answer("It is", Health)},
)
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    dependencies=[PUBLIC],
    summary="Can it do its work",
    responses={
        200: answer("It can", Readiness),
        503: answer("Not ready; `checks` says why", Unreadiness),
    },
)
async def readyz(response: Response, state: StateDep) -> dict[str, Any]:
    """200 while Redis and the relay work. Without a worker, with a storage that cannot be used or a disk that is nearly
    full, or with a Redis that is full or evicts, it is still 200, `degraded`: streams go on, and the operator has
    something to do."""
    checks = {"redis": await _redis(state), "relay": _relay(state), "workers": await _workers(state)}
    checks["storage"] = await _storage(state)
    if not (checks["redis"]["ok"] and checks["relay"]["ok"]):
        response.status_code = 503
        response.headers["Retry-After"] = "2"
        return {"status": "unready", "checks": checks}
    found = checks.values()
    well = all(check["ok"] for check in found) and not any(check.get("degraded") for check in found)
    # For `headway doctor`, which looks at the whole from outside.
    about = {"version": VERSION, "heartbeat_seconds": state.settings.heartbeat_seconds}
    return {"status": "ready" if well else "degraded", **about, "checks": checks}


async def _redis(state: State) -> dict[str, Any]:
    try:
        await state.redis.ping()
        trouble = await trouble_ahead(state.redis)
        kept = await durability(state.redis)
    except (*AWAY, RedisError) as error:
        return {"ok": False, "reason": why_away(error)}
    trouble = trouble or refused_lately(state.redis)
    # It answers, so work goes on; what is wrong with it is said all the same.
    return {"ok": True, "degraded": trouble is not None, "reason": trouble or "answers", "durability": kept}


def _relay(state: State) -> dict[str, Any]:
    if (broken := state.relay.broken or state.sessions.broken) is not None:
        return {"ok": False, "reason": broken}
    return {"ok": True, "reason": "subscribed", "streams": state.relay.listener_count}


async def _storage(state: State) -> dict[str, Any]:
    """A disk that fills is said before uploads are refused, while there is time to make room."""
    trouble = await state.storage_check.trouble()
    if trouble is not None:
        return {"ok": False, "reason": trouble}
    if (used := state.storage_check.used) is None:
        return {"ok": True, "degraded": False, "reason": "can be written"}
    nearly = used >= NEARLY_FULL
    reason = f"can be written; {used:.0%} of the disk is used"
    return {"ok": True, "degraded": nearly, "reason": f"{reason}: make room" if nearly else reason}


async def _workers(state: State) -> dict[str, Any]:
    try:
        seconds, microseconds = await state.redis.time()
        now_ms = seconds * 1000 + microseconds / 1000
        async with state.redis.pipeline(transaction=False) as pipe:
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            pipe.hgetall(keys.WALLS)
            line_counts(pipe, int(now_ms))
            seen, told, *waiting, running = await pipe.execute()
    except (*AWAY, RedisError) as error:
        return {"ok": False, "reason": why_away(error)}
    silent_ms = SILENT_LEASES * state.settings.lease_seconds * 1000
    alive = [name for name, at in seen if now_ms - at < silent_ms]
    about = {"count": len(alive), "running": running, "queued": sum(waiting), **_walls(alive, told)}
    if not alive:
        return {"ok": False, "reason": "no worker is running; start one with `headway worker`", **about}
    return {"ok": True, "reason": "running", **about}


def _walls(alive: list[bytes], told: dict[bytes, bytes]) -> dict[str, Any]:
    """Of the walls around processors those that every worker has, and what any of them lacks. Nothing where nobody
    said."""
    found = [json.loads(told[name]) for name in alive if name in told]
    if not found:
        return {}
    common = set.intersection(*(set(one["walls"]) for one in found))
    return {
        "walls": [wall for wall in found[0]["walls"] if wall in common],
        "missing": {wall: reason for one in found for wall, reason in one["missing"].items()},
        "warning": next((one["warning"] for one in found if one["warning"]), None),
    }
