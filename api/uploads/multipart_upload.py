"""A file on its way in: read from the request as it arrives, counted against the limit, stored, made a task.

Nothing is spooled: the body goes from the socket to the disk in flat memory, by multipart (the parser is driven
directly; Starlette's form would read the whole body first) or as a raw body. A body that is cut off, too long or not
what was promised leaves no file and, where the task came into being with it, no task.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from headway.api.serving.shutdown import BODY_SECONDS, Shutdown
from headway.api.serving.tally import Count, uncounted
from headway.api.uploads.part_headers import PLAIN_ENCODINGS, disposition_of, file_name_of
from headway.shared.errors import InvalidRequest, Stopping, TooLarge, TooSlow, UnsupportedType, UploadCut
from headway.shared.file_names import shown
from headway.shared.files.storage import StoredFile, Upload
from headway.shared.tasks.models import FieldError

#: Everything in a form that is not the file: names, options. Options are small JSON.
FORM_FIELD_BYTES: Final = 64 * 1024
PART_HEADER_BYTES: Final = 16 * 1024
#: The least that must come in HEADWAY_RECEIVE_TIMEOUT_SECONDS of waiting: no line is as slow as 34 bytes a second.
PATIENCE_BYTES: Final = 1024
FORM_FIELDS: Final = 20
#: All of a form that is not its file: parts with their headers, what stands between, before and behind them.
FORM_REST_BYTES: Final = FORM_FIELDS * (FORM_FIELD_BYTES + PART_HEADER_BYTES)
#: Behind the last boundary: a line break, as clients send it.
EPILOGUE_BYTES: Final = 1024
FILENAME_CHARACTERS: Final = 255
#: Of the name that was sent, its folders included.
AS_SENT_CHARACTERS: Final = 1024
BATCH_ID: Final = r"[A-Za-z0-9_.:-]{1,64}"
MEDIA_TYPE: Final = r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}"


def invalid(field_name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field_name}: {message}", [FieldError(field=field_name, message=message)])


def clean_filename(name: str) -> str:
    """A name to show and to offer for a download: the last part of a path, as shared/file_names.py shows it, at most
    255 characters.

    Raises InvalidRequest where nothing sensible is left. It never becomes a path here.
    """
    name = shown(name.replace("\\", "/").rsplit("/", 1)[-1])
    if name in ("", ".", ".."):
        raise invalid("file", "the file needs a name")
    if len(name) > FILENAME_CHARACTERS:
        raise invalid("file", f"the file's name has {len(name)} characters; at most {FILENAME_CHARACTERS} are taken")
    return name


class FileNames(TypedDict):
    filename: str | None
    filename_as_sent: str | None


def names_of(sent: str | None) -> FileNames:
    """The fields of a task: the name that is shown, and, where that is another, the one that was sent."""
    if sent is None:
        return {"filename": None, "filename_as_sent": None}
    name = clean_filename(sent)
    return {"filename": name, "filename_as_sent": sent[:AS_SENT_CHARACTERS] if sent != name else None}


def clean_content_type(value: str | None) -> str | None:
    """The bare media type, or None for what is not one."""
    bare = (value or "").split(";")[0].strip().lower()
    return bare if re.fullmatch(MEDIA_TYPE, bare) else None


def clean_batch_id(value: str | None) -> str | None:
    if value in (None, ""):
        return None
    assert value is not None
    if not re.fullmatch(BATCH_ID, value):
        raise invalid("batch_id", "1 to 64 letters, digits or _ . : -")
    return value


def parse_options(text: str | None) -> dict[str, Any]:
    if text is None or not text.strip():
        return {}
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("options", 'not JSON; send an object such as {"steps": 10}') from None
    if not isinstance(options, dict):
        raise invalid("options", 'not a JSON object; send one such as {"steps": 10}')
    return options


def check_length(request: Request, limit_bytes: int) -> None:
    """Refuses by Content-Length, before a byte is read. A form is a little longer than its file."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes + FORM_REST_BYTES:
        raise too_large(limit_bytes)


def certain_length(request: Request) -> int | None:
    """What of a form's Content-Length is certain to be its file, as good as; None where the client does not say."""
    declared = declared_length(request)
    return max(0, declared - PART_HEADER_BYTES) if declared is not None else None


def declared_length(request: Request) -> int | None:
    """Content-Length; None where the client does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdigit() else None


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The file is larger than {limit_bytes} bytes, the most this server takes.")


async def body_of(request: Request, *, patience_seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises UploadCut where the client went away in the middle, TooSlow where it was waited
    for longer than `patience_seconds` until PATIENCE_BYTES came, Stopping where the server is told to stop. What is
    done with the bytes is no fault of the client, so that time does not count."""
    if (packed := request.headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
        raise UnsupportedType(
            f"The body is packed (Content-Encoding: {packed[:40]}). Send it as it is, without that header; a file that "
            "is packed itself, such as a .gz, needs none."
        )
    pieces = aiter(request.stream())
    stop = Shutdown.of(request.scope)
    waited_seconds, received_bytes, late = 0.0, 0, False
    while True:
        began = time.monotonic()
        try:
            async with stop.limit(patience_seconds - waited_seconds, at_a_stop=BODY_SECONDS):
                chunk = await anext(pieces, None)
        except ClientDisconnect:
            raise UploadCut from None
        except TimeoutError:
            raise _stopping() if stop.has_begun else TooSlow from None  # a timer may be a moment early
        if chunk is None:
            return
        if chunk and stop.is_over(BODY_SECONDS):  # what is always there is never waited for
            if late:
                raise _stopping()
            late = True  # it may have been the last piece
        received_bytes += len(chunk)
        if received_bytes < PATIENCE_BYTES:
            waited_seconds += time.monotonic() - began
        else:
            waited_seconds, received_bytes = 0.0, 0
        if chunk:
            yield chunk


def _stopping() -> Stopping:
    return Stopping("This server is being stopped. Send it again in a moment.")


async def store_raw(body: AsyncIterator[bytes], upload: Upload, *, limit_bytes: int, count: Count = uncounted) -> None:
    """Writes a raw body; `upload.size_bytes` is what has come so far. The caller ends the upload."""
    async for chunk in body:
        if upload.size_bytes + len(chunk) > limit_bytes:
            raise too_large(limit_bytes)
        await upload.write(chunk)
        count(len(chunk))


@dataclass(slots=True)
class Form:
    """What a multipart form held. `stored` is None where it had no file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    filename_as_sent: str | None = None
    content_type: str | None = None
    stored: StoredFile | None = None


class _Reader:
    """Drives the parser: it calls back for each piece of each part, and `events` hands them on in order."""

    def __init__(self, boundary: bytes) -> None:
        self.events: list[tuple[str, bytes]] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: self.events.append(("begin", b"")),
                "on_part_data": lambda data, start, end: self.events.append(("data", data[start:end])),
                "on_part_end": lambda: self.events.append(("end", b"")),
                "on_header_field": lambda data, start, end: self.events.append(("header_name", data[start:end])),
                "on_header_value": lambda data, start, end: self.events.append(("header_value", data[start:end])),
                "on_header_end": lambda: self.events.append(("header_end", b"")),
                "on_headers_finished": lambda: self.events.append(("headers", b"")),
                "on_end": lambda: self.events.append(("done", b"")),
            },
            max_header_size=2 * PART_HEADER_BYTES,  # so that our own check, with its word to the user, comes first
        )

    def feed(self, chunk: bytes) -> list[tuple[str, bytes]]:
        self._parser.write(chunk)
        events, self.events = self.events, []
        return events


async def read_form(
    request: Request, upload: Upload, *, limit_bytes: int, patience_seconds: float, count: Count = uncounted
) -> Form:
    """Reads a form to its end, the part named `file` into `upload`, which is committed. On any error it is not."""
    media_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    boundary = parameters.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary or len(boundary) > 200:
        raise UnsupportedType
    reader, form = _Reader(boundary), Form()
    part = _Part()
    finished = False
    received_bytes = fields = epilogue_bytes = 0
    async for chunk in body_of(request, patience_seconds=patience_seconds):
        received_bytes += len(chunk)
        epilogue_bytes += len(chunk) if finished else 0
        if received_bytes - upload.size_bytes - len(chunk) > FORM_REST_BYTES or epilogue_bytes > EPILOGUE_BYTES:
            raise TooLarge(f"The form has more than {FORM_REST_BYTES} bytes beside its file, or goes on after its end.")
        try:
            events = reader.feed(chunk)
        except MultipartParseError:
            raise InvalidRequest("The form is not well-formed multipart/form-data.") from None
        for kind, data in events:
            match kind:
                case "begin":
                    part = _Part()
                case "header_name":
                    part.add_header(name=data)
                case "header_value":
                    part.add_header(value=data)
                case "header_end":
                    part.end_header()
                case "headers":
                    part.begin_content(form)
                    fields += not part.is_file
                    if fields > FORM_FIELDS:
                        raise InvalidRequest(f"The form has more than {FORM_FIELDS} fields.")
                case "data" if part.is_file:
                    if upload.size_bytes + len(data) > limit_bytes:
                        raise too_large(limit_bytes)
                    await upload.write(data)
                    count(len(data))
                case "data":
                    part.add(data)
                case "end":
                    part.end_content(form)
                case "done":
                    finished = True
    if not finished:
        raise UploadCut
    if form.filename is not None:
        form.stored = await upload.commit()
    return form


class _Part:
    """One part of a form, as its headers and its content arrive."""

    def __init__(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._headers_bytes = 0
        self._content = bytearray()
        self._name = ""
        self.is_file = False

    def add_header(self, name: bytes = b"", value: bytes = b"") -> None:
        self._header_name += name
        self._header_value += value
        self._headers_bytes += len(name) + len(value)
        if self._headers_bytes > PART_HEADER_BYTES:
            raise InvalidRequest("A part of the form has too long a header; a file's name has at most 255 characters.")

    def end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def begin_content(self, form: Form) -> None:
        disposition, parameters = disposition_of(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in parameters:
            raise InvalidRequest("A part of the form has no name.")
        self._name = parameters[b"name"]
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in PLAIN_ENCODINGS:
            shown_encoding = encoding[:40].decode("ascii", "replace")
            raise invalid(
                self._name[:80], f"is sent as {shown_encoding}; send it as it is, without Content-Transfer-Encoding"
            )
        sent = file_name_of(parameters)
        self.is_file = self._name == "file" and sent is not None
        if sent is not None and not self.is_file and (sent or self._headers.get(b"content-type")):
            raise invalid("file", f"the part {self._name[:80]!r} is a file; name it 'file'")
        if self.is_file:
            if form.filename is not None:
                raise invalid("file", "there are two; send one file a task")
            names = names_of(sent)
            form.filename, form.filename_as_sent = names["filename"], names["filename_as_sent"]
            form.content_type = clean_content_type(self._headers.get(b"content-type", b"").decode("latin-1"))

    def add(self, data: bytes) -> None:
        self._content += data
        if len(self._content) > FORM_FIELD_BYTES:
            raise invalid(self._name[:80], f"longer than {FORM_FIELD_BYTES} bytes")

    def end_content(self, form: Form) -> None:
        if self.is_file:
            return
        form.fields[self._name] = self._content.decode("utf-8", "replace")
