"""The file that a submission takes from another task, instead of sending one."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from headway.api.access.grant import Action
from headway.api.access.identity import check_action
from headway.api.lifespan import State
from headway.api.uploads.multipart_upload import invalid
from headway.shared.errors import UnknownTask
from headway.shared.tasks.models import InputOf, OwnerId, Status, Task, TaskId


class AskedInput(BaseModel):
    """The input of another task of yours; with `file`, a result of it."""

    model_config = ConfigDict(extra="forbid")

    task_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    file: Annotated[str | None, Field(min_length=1, max_length=255, description="The name of a result file")] = None

    @property
    def input_of(self) -> InputOf:
        return {"task_id": self.task_id} if self.file is None else {"task_id": self.task_id, "file": self.file}


async def source_of(asked: AskedInput, request: Request, state: State, owner: OwnerId) -> Task:
    """The other task. Raises UnknownTask for one that is not known or another owner's, NotWithToken, InvalidRequest for
    one that has no such file and never will."""
    check_action(request.scope, Action.READ)
    try:
        source = await state.reader.task(TaskId(asked.task_id), owner)
    except UnknownTask:
        raise UnknownTask("There is no task with the id in `input`.") from None
    if asked.file is None:
        has_file = source.input_name is not None or (source.filename is not None and not source.status.is_terminal)
        if not has_file and source.follows is None:
            raise invalid("input.task_id", "that task has no file")
    elif source.status is Status.COMPLETED:
        names = [file.name for file in source.result.files] if source.result is not None else []
        if asked.file not in names:
            there = f"it has {', '.join(names[:10])}" if names else "it has none"
            raise invalid("input.file", f"that task has no result file of this name; {there}")
    return source
