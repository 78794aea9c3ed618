"""The answers that several routes have in common, for the schema."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Header

from headway.api.openapi import Responses, answer, header, problems, together
from headway.api.schemas import Task as TaskSchema
from headway.api.uploads.idempotency import HEADER
from headway.shared.errors import (
    Conflict,
    InvalidRequest,
    KeyInUse,
    KeyReused,
    NearlyFull,
    NotTheAnnouncedFile,
    QuotaFull,
    StorageAway,
    StorageFull,
    TooLarge,
    UnknownTask,
    UnsupportedType,
)

#: For the schema; it is read by api/uploads/idempotency.py.
IdempotencyKey = Annotated[str | None, Header(alias=HEADER, description="One task, however often this is sent")]


SUBMITTED_HEADERS: Final = {
    "Location": header("The task"),
    "Idempotency-Replayed": header("`true`: the first answer to this Idempotency-Key again", always=False),
}
#: What can be wrong with a form, or with a file that comes with it.
FORM_PROBLEMS: Final = problems(
    *(KeyInUse, TooLarge, UnsupportedType, InvalidRequest, KeyReused, NotTheAnnouncedFile),
    *(StorageFull, QuotaFull, StorageAway, NearlyFull),
)
#: Of every event stream.
SEEN: Final[Responses] = {204: answer("The end has been seen; EventSource stops")}
ONE_TASK: Final = answer("The task", TaskSchema)
CHANGED: Final = together({202: ONE_TASK}, problems(UnknownTask, Conflict))
