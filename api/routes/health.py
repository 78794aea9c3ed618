"""`/healthz`: this process answers. `/readyz`: what it needs, each with a reason. Neither asks for a key."""

from __future__ import annotations

import asyncio
import shutil
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from api.dependencies import StateDep
from api.identity import PUBLIC
from api.lifespan import State
from shared import keys
from shared.errors import StorageFull
from shared.redis import AWAY, durability, trouble_ahead, why_away

router = APIRouter(tags=["health"])

#: A worker says that it is alive three times a lease; one that missed this many leases is not counted.
SILENT_LEASES = 3
#: Running jobs are counted among this many of the queue's oldest, where they are unless far more run at once.
LOOKED_AT = 512
#: Of the disk of HEADWAY_DATA_DIR.
NEARLY_FULL = 0.95


@router.get("/healthz", dependencies=[PUBLIC], summary="Is the process alive")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    dependencies=[PUBLIC],
    summary="Can it do its work",
    responses={503: {"description": "Not ready; `checks` says why"}},
)
async def readyz(response: Response, state: StateDep) -> dict[str, Any]:
    """200 while Redis and the relay work. Without a worker, with a disk that is nearly full, or a Redis that is full or
    evicts, it is still 200, `degraded`: files are taken and wait, or the operator has something to do."""
    checks = {"redis": await _redis(state), "relay": _relay(state), "workers": await _workers(state)}
    if not (checks["redis"]["ok"] and checks["relay"]["ok"]):
        response.status_code = 503
        response.headers["Retry-After"] = "2"
        return {"status": "unready", "checks": checks}
    checks["storage"] = await _storage(state)
    well = checks["workers"]["ok"] and not (checks["redis"]["degraded"] or checks["storage"]["degraded"])
    # For `headway doctor`, which looks at the whole from outside.
    about = {"version": version("headway"), "heartbeat_seconds": state.settings.heartbeat_seconds}
    return {"status": "ready" if well else "degraded", **about, "checks": checks}


async def _redis(state: State) -> dict[str, Any]:
    try:
        await state.redis.ping()
        trouble = await trouble_ahead(state.redis)
        kept = await durability(state.redis)
    except AWAY as error:
        return {"ok": False, "reason": why_away(error)}
    # It answers, so work goes on; what is wrong with it is said all the same.
    return {"ok": True, "degraded": trouble is not None, "reason": trouble or "answers", "durability": kept}


async def _storage(state: State) -> dict[str, Any]:
    """Of a disk of ours. It is said before uploads are refused, while there is time to make room."""
    if state.settings.storage_url:
        return {"ok": True, "degraded": False, "reason": "object storage"}
    try:
        await state.storage.check_room(0)
        disk = await asyncio.to_thread(shutil.disk_usage, state.settings.data_dir)
    except StorageFull:
        return {"ok": True, "degraded": True, "reason": "the disk is full: uploads are refused; make room"}
    except OSError as error:
        return {"ok": True, "degraded": True, "reason": f"HEADWAY_DATA_DIR cannot be read: {error.strerror}"}
    used = disk.used / max(1, disk.used + disk.free)  # as `df` says it
    reason = f"{used:.0%} of the disk is used"
    nearly = used >= NEARLY_FULL
    return {"ok": True, "degraded": nearly, "reason": f"{reason}: make room" if nearly else reason}


def _relay(state: State) -> dict[str, Any]:
    if (broken := state.relay.broken) is not None:
        return {"ok": False, "reason": broken}
    return {"ok": True, "reason": "subscribed", "streams": state.relay.listener_count}


async def _workers(state: State) -> dict[str, Any]:
    try:
        async with state.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            pipe.zcard(keys.QUEUE)
            pipe.zrange(keys.QUEUE, 0, LOOKED_AT - 1)
            (seconds, microseconds), seen, jobs, oldest = await pipe.execute()
        running = await state.redis.exists(*(keys.job_lease(job.decode()) for job in oldest)) if oldest else 0
    except AWAY as error:
        return {"ok": False, "reason": why_away(error)}
    silent_ms = SILENT_LEASES * state.settings.lease_seconds * 1000
    now_ms = seconds * 1000 + microseconds / 1000
    alive = sum(1 for _, at in seen if now_ms - at < silent_ms)
    about = {"count": alive, "running": running, "queued": jobs - running}
    if not alive:
        return {"ok": False, "reason": "no worker is running; start one with `headway worker`", **about}
    return {"ok": True, "reason": "running", **about}
