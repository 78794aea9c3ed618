"""`/processors`: what can be done with a file here; and which of it is paused, so that its tasks wait."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from headway.api.dependencies import OwnerDep, StateDep
from headway.api.lifespan import State
from headway.api.openapi import answer, problems, together
from headway.api.schemas import Processor as ProcessorSchema
from headway.api.schemas import ProcessorList
from headway.shared.errors import NotYours, UnknownProcessor
from headway.shared.redis.client import AWAY
from headway.shared.tasks.processors import Processor

router = APIRouter(tags=["processors"])


@router.get(
    "/processors",
    summary="The processors of this installation",
    responses={200: answer("The processors", ProcessorList)},
)
async def list_processors(request: Request, state: StateDep, _: OwnerDep) -> dict[str, list[dict[str, Any]]]:
    """Each with its name, description, accepted media types, limits, and the JSON Schema of its options. With a
    token that names processors, those."""
    granted = request.scope["headway.identity"].grant.processors
    paused: frozenset[str] | None = None
    with suppress(*AWAY):  # what can be done here is known without Redis
        paused = await state.line.paused()
    return {
        "processors": [
            _shown(processor, None if paused is None else processor.name in paused)
            for processor in state.registry.processors.values()
            if granted is None or processor.name in granted
        ]
    }


def _shown(processor: Processor, paused: bool | None) -> dict[str, Any]:
    retries = processor.retries
    return {
        "name": processor.name,
        "description": processor.description,
        "accepts": list(processor.accepts),
        "needs_file": processor.needs_file,
        "options": processor.options.model_json_schema(),
        "alias_of": processor.alias_of,
        "paused": paused,
        "concurrency": processor.concurrency,
        "timeout_seconds": processor.timeout_seconds,
        "memory_bytes": processor.memory_bytes,
        "retries": {"max": retries.max, "backoff_seconds": retries.backoff_seconds} if retries else None,
    }


def _get_processor(
    state: StateDep, owner: OwnerDep, name: Annotated[str, Path(description="As `GET /processors` has it")]
) -> Processor:
    """For what concerns every owner: in open mode anybody's, else theirs who have a key of the platform. Raises
    NotYours, UnknownProcessor."""
    if not state.keyring.is_open and not state.keyring.has_key(owner):
        raise NotYours
    if (found := state.registry.processors.get(name)) is None:
        raise UnknownProcessor
    return found


ProcessorDep = Annotated[Processor, Depends(_get_processor)]
CHANGED = together({200: answer("The processor", ProcessorSchema)}, problems(UnknownProcessor, NotYours))


@router.post(
    "/processors/{name}/pause",
    summary="Start no more of its tasks",
    operation_id="pause_processor",
    responses=CHANGED,
)
async def pause(state: StateDep, processor: ProcessorDep) -> dict[str, Any]:
    """What runs goes on to its end; what waits, and what is submitted from now on, waits for `/resume`."""
    return await _set(state, processor, paused=True)


@router.post(
    "/processors/{name}/resume",
    summary="Start its tasks again",
    operation_id="resume_processor",
    responses=CHANGED,
)
async def resume(state: StateDep, processor: ProcessorDep) -> dict[str, Any]:
    """Its tasks stand where they stood."""
    return await _set(state, processor, paused=False)


async def _set(state: State, processor: Processor, *, paused: bool) -> dict[str, Any]:
    await (state.line.pause if paused else state.line.resume)(processor.name)
    return _shown(processor, paused)
