"""What must hold for any text: the wire, the names of files, the cursors of pages."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headway.api.routes.tasks import _cursor, _place
from headway.api.streams.sse import NDJSON, SSE, Text
from headway.api.uploads.multipart_upload import FILENAME_CHARACTERS, clean_content_type, clean_filename
from headway.shared.errors import BadInput, InvalidRequest
from headway.shared.files.storage import check_result_name
from headway.shared.json_text import text_of
from headway.shared.tasks.models import Event, TaskId
from headway.shared.tasks.reader import decode_message
from tests.streams import parse_block

VERSIONS = st.integers(min_value=1, max_value=10**15)
NAMES = st.sampled_from(["", "log", "note", "transfer", "gap"])
#: Half a surrogate pair too: JSON can write it, UTF-8 cannot.
ANY_TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"])) | st.text('\r\n\0\u2028\ufeff:é{}" ')
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(version=VERSIONS, name=NAMES, data=st.dictionaries(st.text(), JSON))
def test_any_event_is_read_by_a_strict_client_as_it_was_meant(version: int, name: str, data: dict[str, Any]) -> None:
    version = 0 if name == "transfer" else version  # of the moment alone, and without an id
    block = SSE().event(Event(version, name, text_of(data).encode()))
    assert block.endswith(b"\n\n")
    assert block.count(b"\n\n") == 1
    frame = parse_block(block.removesuffix(b"\n\n"))
    assert frame is not None
    assert (frame.id, frame.name, frame.data) == (version, name, data)


@given(text=ANY_TEXT)
def test_any_text_is_one_ascii_line_of_json(text: str) -> None:
    line = text_of({"message": text})
    assert line.isascii()
    assert line.isprintable()
    # Half a character cannot be encoded again by whoever reads it, so it is replaced.
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert json.loads(line) == {"message": whole}


@given(version=VERSIONS, name=NAMES, data=st.dictionaries(st.text(), JSON))
def test_what_goes_through_redis_comes_out_as_it_went_in(version: int, name: str, data: dict[str, Any]) -> None:
    event = Event(version, name, text_of(data).encode())
    message = b"%d %s %s" % (version, name.encode(), event.data)  # as progress.lua joins it
    assert decode_message(message) == event


@given(events=st.lists(st.tuples(VERSIONS, NAMES, st.dictionaries(st.text(), JSON)), max_size=5))
def test_any_events_are_one_ndjson_line_each(events: list[tuple[int, str, dict[str, Any]]]) -> None:
    encoder = NDJSON()
    body = b"".join(encoder.event(Event(version, name, text_of(data).encode())) for version, name, data in events)
    lines = body.split(b"\n")
    assert lines.pop() == b""
    for (version, name, data), line in zip(events, lines, strict=True):
        head = {"event": name, "version": version} if name else {}
        assert json.loads(line) == head | data


@given(name=st.sampled_from(["log", "note"]), text=st.text(), at=st.text())
def test_a_line_for_people_is_one_line_whoever_wrote_it(name: str, text: str, at: str) -> None:
    key = "message" if name == "log" else "text"
    line = Text().event(Event(1, name, text_of({key: text, "at": at}).encode())).decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@given(name=ANY_TEXT | st.text("ab./\\\0\n ~", max_size=300))
def test_a_cleaned_filename_is_a_short_printable_name_and_no_path(name: str) -> None:
    try:
        cleaned = clean_filename(name)
    except InvalidRequest:
        return
    assert 0 < len(cleaned) <= FILENAME_CHARACTERS
    assert all(one.isprintable() or one in "\u200c\u200d" for one in cleaned)
    assert not set(cleaned) & {"/", "\\", "\0"}
    assert cleaned not in (".", "..")
    assert clean_filename(cleaned) == cleaned


@given(name=ANY_TEXT | st.text("ab./\\\0\n ~", max_size=300))
def test_a_result_name_that_is_taken_leads_nowhere_else(name: str) -> None:
    try:
        assert check_result_name(name) == name
    except (BadInput, UnicodeEncodeError):
        return
    assert name
    assert not name.startswith(".")
    assert not set(name) & {"/", "\\", "\0", "\n"}
    assert len(name.encode(errors="surrogateescape")) <= 255


@given(value=ANY_TEXT)
def test_a_cleaned_content_type_can_stand_in_a_header(value: str) -> None:
    cleaned = clean_content_type(value)
    if cleaned is not None:
        assert cleaned.isascii()
        assert cleaned.isprintable()
        assert cleaned.count("/") == 1
        assert not set(cleaned) & set(' ;,"')


@given(
    created_ms=st.integers(min_value=0, max_value=10**15 - 1), task_id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
)
def test_a_cursor_leads_back_to_its_place(created_ms: int, task_id: str) -> None:
    place = (created_ms, TaskId(task_id))
    assert _place(_cursor(place)) == place


@given(cursor=ANY_TEXT | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_other_cursor_is_refused_or_is_a_place(cursor: str) -> None:
    try:
        place = _place(cursor)
    except InvalidRequest:
        return
    assert place is not None
    assert _place(_cursor(place)) == place
