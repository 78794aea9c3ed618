"""Tables out: `/tasks.csv`, an owner's tasks as they are while it is read, and the tutorial's `/download-large-csv`.

Both are made in pages while they are sent (api/downloads/generated_download.py), so that memory does not grow with the
number of rows and the event loop is never kept for longer than a page takes.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from headway.api.dependencies import OwnerDep, StateDep
from headway.api.downloads.generated_download import GeneratedDownload
from headway.api.openapi import TEXT, answer, header, problems, together
from headway.api.uploads.multipart_upload import BATCH_ID
from headway.shared.errors import ExportCut, InvalidRequest
from headway.shared.tasks.models import OwnerId, Status
from headway.shared.tasks.reader import Reader, Rows, patiently

router = APIRouter()

MEDIA_TYPE: Final = "text/csv; charset=utf-8"

#: Tasks read and written at a time: some 60 KiB, and about 4 ms of the event loop, gzip included.
PAGE_ROWS: Final = 200
#: A Redis that goes away in the middle is waited for this long: a restart with a large append-only file takes less, and
#: few clients wait longer for the next byte.
PATIENCE_SECONDS: Final = 30.0

#: What is read of a task; each is a column of that name, but for the last two, which become three.
FIELDS: Final = (
    *("task_id", "processor", "filename", "size_bytes", "content_type", "batch_id", "status", "progress"),
    *("attempt", "version", "created_at", "started_at", "finished_at", "error", "result"),
)
PROCESSOR, STATUS, ERROR, RESULT = (FIELDS.index(name) for name in ("processor", "status", "error", "result"))
COLUMNS: Final = (*FIELDS[:ERROR], "error_type", "error_message", "result_summary")

#: A spreadsheet takes a cell that begins so for a formula, which may call a program or send the sheet's contents away
#: (OWASP, CSV injection). The wide forms count as the narrow ones where the sheet's language is East Asian.
FORMULA_STARTS: Final = tuple("=+-@\t\r\n＝＋－＠")

#: Rows of the tutorial's table made at a time: as many as take about this long, and no more of them.
PIECE_SECONDS: Final = 0.0005
NUMBERED_ROWS: Final = 2000
#: Tasks written at a time, for the same reason.
WRITTEN_ROWS: Final = 25


TABLE: Final = together(
    {
        200: answer(
            "The table, made while it is sent",
            {"text/csv": TEXT},
            {"Content-Disposition": header("`attachment`, with a name")},
        )
    },
    problems(InvalidRequest),
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which of an owner's tasks; as in `GET /tasks`."""

    status: Status | None = None
    processor: str | None = None
    batch_id: str | None = None


def cell(value: Any) -> Any:
    """A value as it is safe in a spreadsheet: text that would be a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def csv_of(rows: Sequence[Sequence[bytes | None]], wanted: Filter) -> bytes:
    """A page as RFC 4180 has it, in UTF-8. A null is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    # Read at once: a call for each value would take several times as long, all of it on the event loop.
    texts = b",".join(value or b"null" for row in rows for value in row)
    flat: list[Any] = json.loads(b"[" + texts + b"]")
    for start in range(0, len(flat), len(FIELDS)):
        values = flat[start : start + len(FIELDS)]
        error, result = values[ERROR] or {"type": None, "message": None}, values[RESULT]
        if wanted.status is not None and values[STATUS] != wanted.status:
            continue
        if wanted.processor is not None and values[PROCESSOR] != wanted.processor:
            continue
        # What was too large for an event stands whole beside it. It would be too large for a cell, and for flat memory.
        shown = result is not None and not result["truncated"]
        summary = json.dumps(result["summary"], ensure_ascii=False, separators=(",", ":")) if shown else None
        writer.writerow(map(cell, (*values[:ERROR], error["type"], error["message"], summary)))
    return text.getvalue().encode("utf-8", "replace")


async def task_pages(
    reader: Reader, owner: OwnerId, wanted: Filter, first: Rows, *, patience_seconds: float = PATIENCE_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The table from its head on, `first` being its first page. Raises ExportCut where Redis stays away, or comes back
    without what it had: its index then ends early."""
    rows = first
    yield ",".join(COLUMNS).encode() + b"\r\n"
    while True:
        for start in range(0, len(rows.rows), WRITTEN_ROWS):
            if table := csv_of(rows.rows[start : start + WRITTEN_ROWS], wanted):
                yield table
        if rows.place is None:
            return
        number = rows.number
        read = partial(reader.rows, owner, FIELDS, limit=PAGE_ROWS, before=rows.place, batch_id=wanted.batch_id)
        try:
            async with asyncio.timeout(patience_seconds):
                rows = await patiently(read, True)
        except TimeoutError:
            raise ExportCut(f"Redis stayed away for {patience_seconds:g} s") from None
        if rows.number < number:
            raise ExportCut("Redis came back without some of the tasks")


@router.head("/tasks.csv", response_class=Response, responses=TABLE, tags=["tasks"])
@router.get(
    "/tasks.csv",
    summary="Every task as CSV, newest first",
    response_class=Response,
    responses=TABLE,
    tags=["tasks"],
)
async def tasks_csv(
    state: StateDep,
    owner: OwnerDep,
    status: Annotated[Status | None, Query()] = None,
    processor: Annotated[str | None, Query(max_length=200)] = None,
    batch_id: Annotated[str | None, Query(pattern=f"^{BATCH_ID}$")] = None,
) -> Any:
    """Streamed in pages that are read behind the scenes; gzip where it is accepted. A task that comes meanwhile is not
    in it. A body that ends well is whole: where the rest cannot be had, the connection is cut."""
    wanted = Filter(status, processor, batch_id)
    first = await state.reader.rows(owner, FIELDS, limit=PAGE_ROWS, batch_id=batch_id)
    return GeneratedDownload(
        task_pages(state.reader, owner, wanted, first),
        filename="tasks.csv",
        media_type=MEDIA_TYPE,
        send_timeout_seconds=state.settings.send_timeout_seconds,
        count=state.metrics.tally.downloaded,
    )


async def numbered_pages(rows: int) -> AsyncGenerator[bytes, None]:
    yield b"id,name,value\n"
    start, count = 1, NUMBERED_ROWS // 10
    while start <= rows:
        end = min(start + count, rows + 1)
        began = time.perf_counter()
        piece = "".join([f"{i},Item {i},{i * 10}\n" for i in range(start, end)]).encode()
        count = max(50, min(NUMBERED_ROWS, int(count * PIECE_SECONDS / max(1e-6, time.perf_counter() - began))))
        start = end
        yield piece


@router.head("/download-large-csv", response_class=Response, responses=TABLE, tags=["tutorial"])
@router.get("/download-large-csv", response_class=Response, responses=TABLE, tags=["tutorial"])
async def download_large_csv(
    state: StateDep, _: OwnerDep, rows: Annotated[int, Query(ge=0, le=100_000_000)] = 100_000
) -> Any:
    """`id,name,value`, made while it is sent; gzip where it is accepted."""
    return GeneratedDownload(
        numbered_pages(rows),
        filename="large_data.csv",
        media_type=MEDIA_TYPE,
        send_timeout_seconds=state.settings.send_timeout_seconds,
        count=state.metrics.tally.downloaded,
    )
