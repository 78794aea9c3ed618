"""The steps of a pipeline: each is a task, and takes the result of the one before it as its file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.api.access.identity import check_processor
from headway.api.lifespan import State
from headway.api.uploads.multipart_upload import invalid
from headway.shared.errors import InvalidRequest
from headway.shared.tasks.models import FieldError, InputOf, Status, Task, TaskId, Webhook
from headway.shared.tasks.progress import WAITS_FOR_ANOTHER

MOST_STEPS: Final = 20


class Step(BaseModel):
    """One task of a pipeline."""

    model_config = ConfigDict(extra="forbid")

    processor: str
    options: dict[str, Any] = Field(default_factory=dict)
    file: Annotated[
        str | None,
        Field(
            min_length=1, max_length=255,
            description="The result file of the step before that it takes, where there may be more than one",
        ),
    ] = None  # fmt: skip


Steps = Annotated[list[Step], Field(min_length=1, max_length=MOST_STEPS)]


class _Form(BaseModel):
    steps: Steps


def steps_of(text: str | None) -> list[Step]:
    """Of a form's field. Raises InvalidRequest."""
    if not text:
        raise invalid("steps", 'missing; a JSON list such as [{"processor": "compress"}, {"processor": "checksum"}]')
    try:
        return _Form.model_validate_json('{"steps":' + text + "}").steps
    except ValidationError as error:
        fields = [
            FieldError(field=".".join(map(str, one["loc"])) or "steps", message=one["msg"]) for one in error.errors()
        ]
    raise InvalidRequest("; ".join(f"{field.field}: {field.message}" for field in fields[:5]), fields)


@dataclass(frozen=True, slots=True)
class Chain:
    """What follows the first step. `webhook` is told of the end of the last one, and so of that of all."""

    steps: Sequence[Step]
    webhook: Webhook | None = None

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Chain:
        """Raises InvalidRequest."""
        if steps[0].file is not None:
            raise invalid("steps.0.file", "the first step has none before it; say `input`, or send a file")
        return cls(steps[1:])

    def told(self, webhook: Webhook | None) -> Chain:
        return replace(self, webhook=webhook)

    def after(self, first: Task, request: Request, state: State) -> list[Task]:
        """All tasks, the first one too. Their ids follow from its id, so a request that is sent again has the same.
        Raises InvalidRequest, NotWithToken."""
        tasks = [first]
        for number, step in enumerate(self.steps, start=1):
            check_processor(request.scope, step.processor)
            options = state.registry.get(step.processor).parse_options(step.options)
            before = tasks[-1].task_id
            input_of: InputOf = {"task_id": before, "result": True}
            if step.file is not None:
                input_of = {"task_id": before, "file": step.file}
            tasks.append(
                first.model_copy(
                    update={
                        "task_id": _task_id(first.task_id, number),
                        "processor": step.processor,
                        "options": options.model_dump(mode="json"),
                        "status": Status.QUEUED,
                        "message": WAITS_FOR_ANOTHER,
                        "filename": step.file,
                        "size_bytes": None,
                        "content_type": None,
                        "input_of": input_of,
                        "input_name": None,
                        "input_sha256": None,
                        "declared_sha256": None,
                        "not_before": None,
                        "total": None,
                        "unit": None,
                        "progress_base": 0.0,
                        "webhook": self.webhook if number == len(self.steps) else None,
                    }
                )
            )
        return tasks


def _task_id(first: TaskId, number: int) -> TaskId:
    return TaskId(hashlib.sha256(f"{first} step {number}".encode()).hexdigest()[:32])
