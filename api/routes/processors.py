"""`GET /processors`: what can be done with a file here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from headway.api.dependencies import OwnerDep, StateDep
from headway.api.openapi import answer
from headway.api.schemas import ProcessorList

router = APIRouter(tags=["processors"])


@router.get(
    "/processors",
    summary="The processors of this installation",
    responses={200: answer("The processors", ProcessorList)},
)
async def list_processors(request: Request, state: StateDep, _: OwnerDep) -> dict[str, list[dict[str, Any]]]:
    """Each with its name, description, accepted media types, and the JSON Schema of its options. With a
    token that names processors, those."""
    granted = request.scope["headway.identity"].grant.processors
    return {
        "processors": [
            {
                "name": processor.name,
                "description": processor.description,
                "accepts": list(processor.accepts),
                "needs_file": processor.needs_file,
                "options": processor.options.model_json_schema(),
                "alias_of": processor.alias_of,
            }
            for processor in state.registry.processors.values()
            if granted is None or processor.name in granted
        ]
    }
