"""`/tasks/{id}/notes`: a word to everybody who watches the task; its chat. Kept with the task's history."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from headway.api.dependencies import ReadTaskDep, StateDep, TaskDep
from headway.api.openapi import answer, problems, together
from headway.api.schemas import Note, NoteList
from headway.api.serving.small_body import SmallBody
from headway.shared.errors import Conflict, InvalidRequest, NearlyFull, QuotaFull, TooLarge, UnknownTask
from headway.shared.tasks.models import rfc3339, utc_now

router = APIRouter(tags=["notes"], route_class=SmallBody)

#: With every character escaped a note still fits one event of 16 KiB.
NOTE_CHARACTERS: Final = 1000
AUTHOR_CHARACTERS: Final = 80


def _has_a_word(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


class NewNote(BaseModel):
    model_config = ConfigDict(extra="forbid")

    author: Annotated[str, Field(max_length=AUTHOR_CHARACTERS), AfterValidator(_has_a_word)]
    text: Annotated[str, Field(max_length=NOTE_CHARACTERS), AfterValidator(_has_a_word)]


@router.get("/tasks/{task_id}/notes", summary="What was said", responses={200: answer("The notes", NoteList)})
async def get_notes(state: StateDep, task: ReadTaskDep) -> dict[str, Any]:
    """The notes that the task's history still holds, oldest first, those after its end included."""
    notes = await state.reader.named(task.task_id, "note")
    return {"notes": [json.loads(note.data) | {"version": note.version} for note in notes]}


@router.post(
    "/tasks/{task_id}/notes",
    status_code=201,
    summary="Say something to everybody who watches",
    responses=together(
        {201: answer("The note", Note)},
        problems(UnknownTask, Conflict, InvalidRequest, TooLarge, QuotaFull, NearlyFull),
    ),
)
async def post_note(state: StateDep, task: TaskDep, note: NewNote) -> dict[str, Any]:
    """Sent to watchers as a `note` event. Plain text: whoever shows it does not run it."""
    state.limits.check_head_room()
    await state.limits.count_note(task.owner)
    said = {"author": note.author, "text": note.text, "at": rfc3339(utc_now())}
    version = await state.publisher.emit(task.task_id, "note", said)
    return {"task_id": task.task_id, **said, "version": version}
