"""Names and forms on their way in: whatever the network makes of the pieces, the form is the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from headway.api.uploads.multipart_upload import (
    FORM_FIELD_BYTES,
    FORM_FIELDS,
    PART_HEADER_BYTES,
    Form,
    clean_batch_id,
    clean_content_type,
    clean_filename,
    parse_options,
    read_form,
)
from headway.shared.errors import HeadwayError, InvalidRequest, TooLarge, UnsupportedType, UploadCut
from headway.shared.files.directory import DirectoryStorage
from headway.shared.tasks.models import TaskId

LIMIT_BYTES = 5_000_000
TASK = TaskId("0" * 32)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a.csv", "a.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.csv", "a.csv"),
        ("a/b\\c.csv", "c.csv"),
        ("  a.csv  ", "a.csv"),
        ("a\0\r\n\x1b[2J.csv", "a[2J.csv"),
        ("a\u202ecsv.exe", "acsv.exe"),
        ("täst 日本 🎉.csv", "täst 日本 🎉.csv"),
        ("Screenshot 2024-01-31 at 3.45.12\u202fPM.png", "Screenshot 2024-01-31 at 3.45.12 PM.png"),
        ("a\u00a0b\u2003c\u3000d.csv", "a b c d.csv"),
        ("\u3000a.csv\u00a0", "a.csv"),
        ("👨\u200d👩\u200d👧 family.txt", "👨\u200d👩\u200d👧 family.txt"),
        ("نمی\u200cخواهم.txt", "نمی\u200cخواهم.txt"),
        ("a\u2028b\u200e\u2066c\u00add.csv", "abcd.csv"),
        ("cafe\u0301.csv", "café.csv"),
        ("x" * 255, "x" * 255),
        ("...", "..."),
        (".env", ".env"),
    ],
)
def test_a_filename_is_the_last_part_of_what_was_sent_and_printable(sent: str, kept: str) -> None:
    assert clean_filename(sent) == kept


@pytest.mark.parametrize(
    "sent", ["", ".", "..", "a/", "a/..", "\0", " ", "\u202f", "\u200d", "\n\t", "x" * 256, "a\\ .. "]
)
def test_a_filename_of_which_nothing_is_left_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        clean_filename(sent)
    assert [error.field for error in refused.value.errors] == ["file"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("text/csv", "text/csv"),
        ("Text/CSV; charset=utf-8", "text/csv"),
        (None, None),
        ("", None),
        ("csv", None),
        ("text/", None),
        ("text/csv\r\nX: y", None),
        ("a/b/c", None),
    ],
)
def test_a_content_type_is_a_bare_media_type_or_none(sent: str | None, kept: str | None) -> None:
    assert clean_content_type(sent) == kept


@pytest.mark.parametrize("sent", [None, ""])
def test_no_batch_is_none(sent: str | None) -> None:
    assert clean_batch_id(sent) is None


@pytest.mark.parametrize("sent", ["a b", "a/b", "é", "x" * 65, "a\n"])
def test_a_batch_id_of_other_characters_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequest):
        clean_batch_id(sent)


@pytest.mark.parametrize(("text", "options"), [(None, {}), ("", {}), (" ", {}), ("{}", {}), ('{"a": [1]}', {"a": [1]})])
def test_options_are_a_json_object(text: str | None, options: dict[str, Any]) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize("text", ["{", "[]", "1", "null", '"a"', "[" * 50_000])
def test_options_that_are_not_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_options(text)
    assert [error.field for error in refused.value.errors] == ["options"]


class Sent:
    """A request whose body comes in the given pieces, from a client that may leave before the end."""

    def __init__(self, *pieces: bytes, content_type: str = "multipart/form-data; boundary=x", leaves: bool = False):
        last: Message = {"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b""}
        self._messages = [*({"type": "http.request", "body": piece, "more_body": True} for piece in pieces), last]
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> Message:
        return self._messages.pop(0)


def part(name: str, content: bytes, more: bytes = b"") -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%s"' % name.encode() + more + b"\r\n\r\n" + content + b"\r\n"


def file(content: bytes, name: bytes = b"a.csv") -> bytes:
    return part("file", content, b'; filename="%s"\r\nContent-Type: text/csv' % name)


END = b"--x--\r\n"
TRICKY = b"\r\n--\r\n-x\r\n\r\n--\rx\r-\n\r\n-" * 20  # nearly the boundary, again and again

FORMS = {
    "a file and its fields": part("processor", b"checksum") + file(b"1,2\n") + part("options", b"{}") + END,
    "no file": part("processor", b"rehearsal") + END,
    "an empty file": file(b"") + END,
    "content like the boundary": file(TRICKY) + part("processor", TRICKY) + END,
    "a preamble and an epilogue": b"\r\n" + file(b"x") + END + b"and so on",
    "a name in another script": file(b"x", "täst 日本.csv".encode()) + END,
    "a name that is no text": file(b"x", b"\xff\xfe.csv") + END,
    "a file without a filename is a field": part("file", b"x") + END,
    "a field twice": part("processor", b"one") + part("processor", b"two") + END,
    "nothing": END,
    # and what is wrong
    "cut in the content": file(b"1,2\n")[:-3],
    "cut before the end": file(b"1,2\n"),
    "no body": b"",
    "no form at all": b'{"processor": "checksum"}',
    "a part without a name": b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
    "a part without a disposition": b"--x\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
    "a broken header": b"--x\r\nContent Disposition form-data\r\n\r\nx\r\n" + END,
    "two files": file(b"1") + file(b"2") + END,
    "a file named nothing": file(b"1", b"") + END,
    "too many fields": b"".join(part(f"f{n}", b"x") for n in range(FORM_FIELDS + 1)) + END,
    "too long a field": part("options", b"x" * (FORM_FIELD_BYTES + 1)) + END,
    "one field again and again": part("x", b"") * 3000 + END,
    "many headers of a part": part("x", b"", b"".join(b"\r\nX-%d: y" % n for n in range(3000))) + END,
    "too long a header": part("x", b"", b"\r\nX-Long: " + b"x" * PART_HEADER_BYTES) + END,
}


async def received(tmp_path: Path, *pieces: bytes, limit_bytes: int = LIMIT_BYTES, **how: Any) -> tuple[Any, ...]:
    """What a form held, its file's content included, or the class and the words of the error it was refused with."""
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    upload = storage.upload(TASK)
    try:
        form: Form = await read_form(Sent(*pieces, **how).request, upload, limit_bytes=limit_bytes, patience_seconds=5)
    except HeadwayError as error:
        await upload.abort()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        return type(error), str(error)
    content = None
    if form.stored is not None:
        content = (await storage.input(TASK, form.stored.name)).path.read_bytes()
        assert form.stored.size_bytes == len(content)
    await upload.abort()
    return form.fields, form.filename, form.content_type, content


async def test_a_form_is_read_to_its_fields_and_its_file(tmp_path: Path) -> None:
    assert await received(tmp_path, FORMS["a file and its fields"]) == (
        {"processor": "checksum", "options": "{}"},
        "a.csv",
        "text/csv",
        b"1,2\n",
    )
    assert await received(tmp_path, FORMS["content like the boundary"]) == (
        {"processor": TRICKY.decode()},
        "a.csv",
        "text/csv",
        TRICKY,
    )


@pytest.mark.parametrize("form", FORMS)
async def test_a_form_that_comes_byte_by_byte_is_the_form_that_comes_whole(tmp_path: Path, form: str) -> None:
    body = FORMS[form]
    whole = await received(tmp_path, body)
    assert await received(tmp_path, *(body[at : at + 1] for at in range(len(body)))) == whole
    assert await received(tmp_path, *(body[at : at + 7] for at in range(0, len(body), 7))) == whole


@pytest.mark.parametrize(
    ("form", "error", "words"),
    [
        ("cut in the content", UploadCut, "ended before"),
        ("cut before the end", UploadCut, "ended before"),
        ("no body", UploadCut, "ended before"),
        ("no form at all", InvalidRequest, "not well-formed"),
        ("a part without a name", InvalidRequest, "no name"),
        ("a part without a disposition", InvalidRequest, "no name"),
        ("a broken header", InvalidRequest, "not well-formed"),
        ("two files", InvalidRequest, "one file a task"),
        ("a file named nothing", InvalidRequest, "needs a name"),
        ("too many fields", InvalidRequest, "more than 20 fields"),
        ("too long a field", InvalidRequest, "longer than"),
        ("too long a header", InvalidRequest, "too long a header"),
        ("one field again and again", InvalidRequest, "more than 20 fields"),
        ("many headers of a part", InvalidRequest, "not well-formed"),
    ],
)
async def test_what_is_wrong_with_a_form_is_told_and_leaves_nothing(
    tmp_path: Path, form: str, error: type[HeadwayError], words: str
) -> None:
    kind, told = await received(tmp_path, FORMS[form])
    assert kind is error
    assert words in told


@pytest.mark.parametrize(
    ("parameters", "kept", "as_sent"),
    [
        (b'; filename="a%22b.csv"', 'a"b.csv', None),
        (b'; filename="a\\"b.csv"', 'a"b.csv', None),
        (b'; filename="a%0D%0Ab%0a.csv"', "ab.csv", "a\r\nb\n.csv"),
        (b'; filename="100%25 %41.csv"', "100%25 %41.csv", None),
        (b'; filename="a;b=c.csv"', "a;b=c.csv", None),
        (b"; filename=plain.csv", "plain.csv", None),
        (b'; filename="C:\\temp\\a.csv"', "a.csv", "C:\\temp\\a.csv"),
        (b"; filename*=UTF-8''t%C3%A4st%20%e2%82%ac.csv", "täst €.csv", None),
        (b"; filename*=iso-8859-1'en'%A3%20rates", "£ rates", None),
        (b"; filename=\"fallback.csv\"; filename*=UTF-8''t%C3%A4st.csv", "täst.csv", None),
        (b"; filename*=klingon''a.csv", "a.csv", None),
        (b'; FileName="a.csv"', "a.csv", None),
        (b'; filename="a\xe2\x80\xafb.csv"', "a b.csv", "a\u202fb.csv"),
    ],
)
async def test_a_files_name_is_read_as_browsers_and_curl_write_it(
    tmp_path: Path, parameters: bytes, kept: str, as_sent: str | None
) -> None:
    upload = DirectoryStorage(tmp_path)
    upload.prepare()
    request = Sent(part("file", b"x", parameters) + END).request
    form = await read_form(request, upload.upload(TASK), limit_bytes=LIMIT_BYTES, patience_seconds=5)
    assert (form.filename, form.filename_as_sent) == (kept, as_sent)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (part("upload", b"x", b'; filename="a.csv"') + END, "file: the part 'upload' is a file; name it 'file'"),
        (part("file", b"eA==", b'; filename="a"\r\nContent-Transfer-Encoding: base64') + END, "is sent as base64"),
        (part("options", b"e30=", b"\r\nContent-Transfer-Encoding: BASE64") + END, "is sent as base64"),
    ],
)
async def test_a_part_that_is_not_as_it_has_to_be_is_refused_with_a_word(
    tmp_path: Path, body: bytes, words: str
) -> None:
    kind, told = await received(tmp_path, body)
    assert kind is InvalidRequest
    assert words in told


async def test_a_part_of_plain_bytes_may_say_so(tmp_path: Path) -> None:
    for encoding in (b"binary", b"8bit", b"7BIT"):
        more = b'; filename="a"\r\nContent-Transfer-Encoding: ' + encoding
        assert (await received(tmp_path / encoding.decode(), part("file", b"x", more) + END))[-1] == b"x"


async def test_a_packed_body_is_refused_with_a_word(tmp_path: Path) -> None:
    sent = Sent(b"\x1f\x8b" + bytes(99))
    sent.request.scope["headers"].append((b"content-encoding", b"gzip"))
    storage = DirectoryStorage(tmp_path)
    storage.prepare()
    with pytest.raises(UnsupportedType, match=r"packed.+gzip"):
        await read_form(sent.request, storage.upload(TASK), limit_bytes=LIMIT_BYTES, patience_seconds=5)


async def test_every_byte_of_a_form_counts(tmp_path: Path) -> None:
    """Also what no part holds: behind the end, and before the beginning."""
    piece = b"y" * 65_536
    endless = itertools.repeat(piece, 1000)
    assert (await received(tmp_path, file(b"x") + END, *endless))[0] is TooLarge
    assert (await received(tmp_path, b"\r\n" * 30_000, *itertools.repeat(b"\r\n" * 30_000, 100)))[0] is TooLarge


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    kind, _ = await received(tmp_path, FORMS["a file and its fields"][:120], leaves=True)
    assert kind is UploadCut


async def test_a_file_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    taken = await received(tmp_path, file(b"x" * 100) + END, limit_bytes=100)
    assert taken[-1] == b"x" * 100
    kind, told = await received(tmp_path, file(b"x" * 101) + END, limit_bytes=100)
    assert kind is TooLarge
    assert "100 bytes" in told


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "text/plain",
        "",
        "multipart/form-data; boundary=" + "x" * 201,
    ],
)
async def test_another_content_type_is_not_taken_for_a_form(tmp_path: Path, content_type: str) -> None:
    kind, _ = await received(tmp_path, FORMS["no file"], content_type=content_type)
    assert kind is UnsupportedType


async def test_a_field_that_is_no_utf8_is_taken_as_far_as_it_is(tmp_path: Path) -> None:
    fields, *_ = await received(tmp_path, part("options", b'{"a": "\xff"}') + END)
    assert json.loads(fields["options"]) == {"a": "\ufffd"}
