"""From the file that was sent to the table in it: unpacked, told by its content, and counted.

A simple CSV is read as it was sent. Everything else is written as one first, beside the results, in this task's
temporary folder: packed files, other encodings, JSON, workbooks, and each CSV with which the reader finds fault. What
was found out, left out or guessed on the way is in `Read`, and becomes a part of the summary.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job
from headway.worker.processors import table_json, table_sheet
from headway.worker.processors.archive_stream import PIECE_BYTES, Stream, packing_of
from headway.worker.processors.table_layout import find_layout
from headway.worker.processors.table_options import TableOptions
from headway.worker.processors.table_parquet import MAGIC, parquet_source
from headway.worker.processors.table_query import NotSimple, Source, csv_source
from headway.worker.processors.table_rows import rewrite
from headway.worker.processors.table_scan import HEAD_BYTES, Scan, scan

T = TypeVar("T")

#: The phases before the work itself: the second for what is not simple.
LOOKING: Final = "Looking at the file"
READING: Final = "Reading row by row"

#: A packed table may be this many times as large, and is no bomb.
MOST_RATIO: Final = 1000
ALWAYS_BYTES: Final = 64 * 1024 * 1024

_ZIP: Final = b"PK\3\4"
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(slots=True)
class Read:
    """How the file was read: `format`, `packed`, `encoding`, `delimiter`, `header`, …; what was left out of it, counted
    by its kind; and a sentence for each thing that was left out, changed or guessed."""

    about: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        left_out = {"left_out": self.left_out} if self.left_out else {}
        return {"read_as": self.about, **left_out, "notes": self.notes}


def on_table(job: Job, options: TableOptions, work: Callable[[Source, Read], T]) -> T:
    """What `work` returns. It may be called twice: with the file as it was sent, and, if it raises NotSimple, with what
    was written from it. Raises BadInput, MemoryError, OSError for a full disk, and what `work` raises."""
    job.phase(LOOKING, total=job.size_bytes, unit="bytes")
    with TemporaryDirectory(prefix="table-") as folder:
        return _Input(job, options, Path(folder)).work(work)


class _Input:
    def __init__(self, job: Job, options: TableOptions, folder: Path) -> None:
        self._job, self._options, self._folder = job, options, folder
        self._path = Path(job.input_path)
        self._read = Read()
        self._nulls = None if options.null_values is None else tuple(options.null_values)
        self._skip_bad = options.on_bad_rows == "skip"

    def work(self, work: Callable[[Source, Read], T]) -> T:
        head = self._head()
        if packing := packing_of(head):
            self._unpack(packing.name)
            head = self._head()
        about = self._read.about
        if head.startswith(MAGIC):
            about["format"] = "parquet"
            source = parquet_source(self._path, self._job.memory_bytes, self._nulls)
            return self._done(work, source)
        if head.startswith((_ZIP, _OLE)):
            self._of_workbook(head)
        return self._of_text(work)

    def _done(self, work: Callable[[Source, Read], T], source: Source) -> T:
        try:
            return work(source, self._read)
        except NotSimple as error:
            raise BadInput(f"The table cannot be read to its end: {error}. Send it in another format.") from error

    def _head(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(HEAD_BYTES)

    def _unpack(self, kind: str) -> None:
        job, target = self._job, self._folder / "unpacked"
        self._read.about["packed"] = kind
        most = max(ALWAYS_BYTES, MOST_RATIO * job.size_bytes)
        with self._path.open("rb") as raw, target.open("wb") as out:
            head = raw.read(PIECE_BYTES)
            raw.seek(0)
            stream = Stream(raw, packing_of(head), memory_bytes=job.memory_bytes, most_bytes=most)
            while piece := stream.read(PIECE_BYTES):
                out.write(piece)
                job.progress_to(raw.tell(), job.size_bytes)
        self._path = target

    def _of_workbook(self, head: bytes) -> None:
        if head.startswith(_ZIP) and not any(part in head for part in (b"xl/", b"[Content_Types].xml", b"mimetype")):
            raise BadInput("This is a zip, not a table. Unpack it, for example by the processor `extract`.")
        target = self._folder / "sheet.csv"
        sheet = table_sheet.write(self._path, target, self._options.sheet, self._read.notes)
        self._read.about |= {"format": "workbook", "sheet": sheet}
        self._path = target
        self._options = self._options.model_copy(update={"encoding": "utf-8", "delimiter": ",", "quote": None})

    def _of_text(self, work: Callable[[Source, Read], T]) -> T:
        job, read = self._job, self._read
        size = self._path.stat().st_size
        found = scan(self._path, self._options.encoding, lambda done: job.progress_to(done, size))
        if found.guessed:
            read.notes.append(
                f"The file is not UTF-8; it was read as {found.encoding}, which is a guess. If letters look wrong, "
                "name how it is written by the option `encoding`."
            )
        if found.nuls and found.plain:
            read.notes.append(f"Values have {found.nuls:,} NUL character{'s' * (found.nuls > 1)}, which were kept.")
        text, whole = self._decoded_head(found)
        if not text.strip("\ufeff \t\r\n"):
            raise BadInput("The file is empty. Send a table with at least a header.")
        if "format" not in read.about:
            if table_json.kind_of(text):
                return self._of_json(work, found)
            read.about["format"] = "csv"
        if read.about["format"] == "csv":
            read.about["encoding"] = "utf-8" if found.encoding == "utf-8-sig" else found.encoding
        return self._of_csv(work, found, text, whole)

    def _decoded_head(self, found: Scan) -> tuple[str, bool]:
        with self._path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            whole = not file.read(1)
        try:
            return codecs.getincrementaldecoder(found.encoding)().decode(head, whole), whole
        except UnicodeError as error:
            raise _not_in(found.encoding) from error

    def _of_json(self, work: Callable[[Source, Read], T], found: Scan) -> T:
        job, target = self._job, self._folder / "rows.csv"
        self._read.about["format"] = "json"
        size = self._path.stat().st_size
        job.phase(READING, weight=0.5, unit="bytes")
        try:
            written = table_json.write(
                *(self._path, found.encoding, target),
                skip_bad=self._skip_bad,
                notes=self._read.notes,
                progress=lambda done: job.progress_to(done, size),
            )
        except UnicodeError as error:
            raise _not_in(found.encoding) from error
        if written.bad_rows:
            self._read.left_out["bad_rows"] = written.bad_rows
        more: dict[str, Any] = {"nulls": self._nulls, "only": written.only}
        return self._done(work, csv_source(target, ",", written.names, written.rows, header=False, **more))

    def _of_csv(self, work: Callable[[Source, Read], T], found: Scan, text: str, whole: bool) -> T:
        job, read, options = self._job, self._read, self._options
        layout = find_layout(text.removeprefix("\ufeff"), whole, options)
        if read.about["format"] == "csv":
            read.about["delimiter"] = layout.shown_separator
        read.about["header"] = layout.header
        more: dict[str, Any] = {"nulls": self._nulls, "padded": layout.padded}
        if found.plain and layout.simple and (len(layout.names) > 1 or not self._skip_bad):
            rows = found.lines - layout.header
            source = csv_source(
                *(self._path, layout.separator, layout.names, rows),
                header=layout.header,
                end=found.end,
                simple=True,
                **more,
            )
            notes = list(read.notes)
            try:
                read.notes += layout.notes
                return work(source, read)
            except NotSimple:
                read.notes[:] = notes
        if layout.above:
            read.left_out["lines_above"] = layout.above
        target = self._folder / "rows.csv"
        size = self._path.stat().st_size
        job.phase(READING, weight=0.5, unit="bytes")
        try:
            with self._path.open("rb") as raw, io.TextIOWrapper(raw, found.encoding, newline="") as lines:
                written = rewrite(
                    *(lines, layout, target),
                    skip_bad=self._skip_bad,
                    progress=lambda: job.progress_to(raw.tell(), size),
                )
        except UnicodeError as error:
            raise _not_in(found.encoding) from error
        read.notes += [*layout.notes, *written.notes]
        read.left_out |= written.left_out
        return self._done(work, csv_source(target, ",", layout.names, written.rows, header=False, **more))


def _not_in(encoding: str) -> BadInput:
    return BadInput(
        f"The file is not all {encoding} text. Save it as UTF-8 (in Excel: “CSV UTF-8”), or name how it is written by "
        "the option `encoding`."
    )
