"""Which bytes are sent, whether any are, and under which name: RFC 9110 (13 and 14), 6266 and 8187."""

from __future__ import annotations

import email.message
import email.policy
import re
import time
from email.utils import formatdate
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from headway.api.downloads.attachment import disposition
from headway.api.downloads.preconditions import Verdict, judge, range_counts
from headway.api.downloads.ranges import MAX_RANGES, Piece, framed, parse_ranges
from headway.shared.errors import RangeNotSatisfiable

SIZE = 10_000
ETAG = '"abc"'
MODIFIED_AT = 1_700_000_000
NUMBERS = st.integers(0, 2 * SIZE)
SPECS = st.one_of(
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    NUMBERS.map(lambda number: f"{number}-"),
    NUMBERS.map(lambda number: f"-{number}"),
)


def pieces(header: str, size: int = SIZE) -> list[tuple[int, int]] | None:
    found = parse_ranges(header, size)
    return None if found is None else [(piece.start, piece.end) for piece in found]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-499", [(0, 500)]),
        ("bytes=9999-", [(9999, SIZE)]),
        ("bytes=-1", [(9999, SIZE)]),
        ("bytes=-99999", [(0, SIZE)]),
        ("bytes=5-99999", [(5, SIZE)]),
        ("Bytes = 1 - 2 ", [(1, 3)]),
        ("bytes=,0-1,,", [(0, 2)]),
        (f"bytes=5-{'9' * 5000}", [(5, SIZE)]),
        (f"bytes={'0' * 5000}5-6", [(5, 7)]),
        ("bytes=0-1,5000-5001", [(0, 2), (5000, 5002)]),
        ("bytes=5000-5001,0-1", [(5000, 5002), (0, 2)]),
        ("bytes=0-1,20000-,-2", [(0, 2), (9998, SIZE)]),
        ("bytes=0-499,400-999", [(0, 1000)]),
        ("bytes=0-1,2-3,5-6", [(0, 2), (2, 4), (5, 7)]),
        ("bytes=7000-7001,0-1,7000-7500", [(7000, 7501), (0, 2)]),
    ],
)
def test_the_bytes_asked_for_are_those_sent(header: str, expected: list[tuple[int, int]]) -> None:
    assert pieces(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=,", "bytes=a-b", "bytes=2-1", "bytes=1-2,x", "bytes=1--2"),
        *("bytes=+1-2", "bytes=٣-٤", "bytes=0x1-2", "bytes=1-2;", "bytes:0-1", "lines=1-2"),
        "bytes=" + "0-0," * (MAX_RANGES + 1),
    ],
)
def test_a_range_that_is_not_understood_is_ignored(header: str) -> None:
    assert pieces(header) is None


@pytest.mark.parametrize("header", ["bytes=10000-", "bytes=-0", "bytes=20000-30000,10000-10000", f"bytes={'9' * 60}-"])
def test_bytes_that_do_not_exist_are_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable, match="10000 bytes"):
        pieces(header)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-5", "bytes=0-0", "bytes=5-"])
def test_an_empty_file_is_sent_whole_whatever_is_asked_for(header: str) -> None:
    assert pieces(header, 0) is None


@given(st.text() | st.text("bytes=0123456789-, ", max_size=40).map(lambda text: "bytes=" + text), NUMBERS)
def test_no_header_does_harm(header: str, size: int) -> None:
    try:
        found = parse_ranges(header, size)
    except RangeNotSatisfiable:
        return
    assert found is None or all(0 <= piece.start < piece.end <= size for piece in found)


@given(st.lists(SPECS, min_size=1, max_size=MAX_RANGES))
def test_every_byte_asked_for_is_sent_once(specs: list[str]) -> None:
    asked: set[int] = set()
    for spec in specs:
        first, _, last = spec.partition("-")
        if first:
            asked.update(range(int(first), min(int(last) + 1 if last else SIZE, SIZE)))
        else:
            asked.update(range(max(0, SIZE - int(last)), SIZE))
    try:
        found = parse_ranges("bytes=" + ",".join(specs), SIZE)
    except RangeNotSatisfiable:
        assert not asked
        return
    assert found is not None
    sent = [number for piece in found for number in range(piece.start, piece.end)]
    assert len(sent) == len(set(sent))
    assert asked <= set(sent)


def test_a_multipart_body_is_read_by_pythons_own_parser() -> None:
    content = bytes(range(256)) * 40
    body = b"".join(
        part if isinstance(part, bytes) else content[part.start : part.end]
        for part in framed([Piece(300, 310), Piece(0, 5)], len(content), "application/x-thing", "limit")
    )
    head = b"Content-Type: multipart/byteranges; boundary=limit\r\n\r\n"
    parsed = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    assert [(part["content-range"], part.get_payload(decode=True)) for part in parsed.iter_parts()] == [
        ("bytes 300-309/10240", content[300:310]),
        ("bytes 0-4/10240", content[:5]),
    ]
    assert {part.get_content_type() for part in parsed.iter_parts()} == {"application/x-thing"}
    assert not parsed.defects


def asked(**headers: str) -> Headers:
    return Headers({name.replace("_", "-"): value for name, value in headers.items()})


DATE, EARLIER, LATER = (formatdate(MODIFIED_AT + seconds, usegmt=True) for seconds in (0, -1, 1))


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, Verdict.SEND),
        ({"if_none_match": ETAG}, Verdict.NOT_MODIFIED),
        ({"if_none_match": f"W/{ETAG}"}, Verdict.NOT_MODIFIED),
        ({"if_none_match": f'"x,y", {ETAG}'}, Verdict.NOT_MODIFIED),
        ({"if_none_match": " * "}, Verdict.NOT_MODIFIED),
        ({"if_none_match": '"x"'}, Verdict.SEND),
        ({"if_none_match": "abc"}, Verdict.SEND),
        ({"if_none_match": '"x"', "if_modified_since": LATER}, Verdict.SEND),
        ({"if_modified_since": DATE}, Verdict.NOT_MODIFIED),
        ({"if_modified_since": "Tuesday, 14-Nov-23 22:13:20 GMT"}, Verdict.NOT_MODIFIED),
        ({"if_modified_since": "Tue Nov 14 22:13:20 2023"}, Verdict.NOT_MODIFIED),
        ({"if_modified_since": EARLIER}, Verdict.SEND),
        ({"if_modified_since": "soon"}, Verdict.SEND),
        ({"if_match": ETAG}, Verdict.SEND),
        ({"if_match": "*"}, Verdict.SEND),
        ({"if_match": f"W/{ETAG}"}, Verdict.FAILED),
        ({"if_match": '"x"'}, Verdict.FAILED),
        ({"if_match": ETAG, "if_none_match": ETAG}, Verdict.NOT_MODIFIED),
        ({"if_unmodified_since": DATE}, Verdict.SEND),
        ({"if_unmodified_since": EARLIER}, Verdict.FAILED),
        ({"if_match": ETAG, "if_unmodified_since": EARLIER}, Verdict.SEND),
    ],
)
def test_preconditions_count_in_the_order_of_the_rfc(headers: dict[str, str], verdict: Verdict) -> None:
    assert judge(asked(**headers), etag=ETAG, modified_at=MODIFIED_AT) is verdict


def test_a_file_without_a_tag_matches_no_tag() -> None:
    assert judge(asked(if_none_match='"None"'), etag=None, modified_at=0) is Verdict.SEND
    assert judge(asked(if_match='"None"'), etag=None, modified_at=0) is Verdict.FAILED
    assert not range_counts(asked(if_range='"None"'), etag=None, modified_at=0)


@given(st.text(st.characters(max_codepoint=255)))
def test_no_precondition_does_harm(value: str) -> None:
    names = ("if-match", "if-none-match", "if-range", "if-modified-since", "if-unmodified-since")
    for name in names:
        headers = Headers({name: value})
        judge(headers, etag=ETAG, modified_at=MODIFIED_AT)
        range_counts(headers, etag=ETAG, modified_at=MODIFIED_AT)


@pytest.mark.parametrize(
    ("value", "counts"),
    [(ETAG, True), (DATE, True), (f"W/{ETAG}", False), ('"x"', False), (EARLIER, False), (LATER, False), ("", False)],
)
def test_a_range_counts_only_for_the_very_same_file(value: str, counts: bool) -> None:
    assert range_counts(asked(if_range=value), etag=ETAG, modified_at=MODIFIED_AT) is counts


def test_a_date_of_this_second_is_not_strong() -> None:
    now = int(time.time()) + 1
    assert not range_counts(asked(if_range=formatdate(now, usegmt=True)), etag=ETAG, modified_at=now)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("report.csv", 'attachment; filename="report.csv"'),
        ("two words.csv", 'attachment; filename="two words.csv"'),
        ("naïve €.csv", "attachment; filename=\"naive _.csv\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.csv"),
        ("100%.csv", "attachment; filename=\"100_.csv\"; filename*=UTF-8''100%25.csv"),
        ('a"b.csv', "attachment; filename=\"a_b.csv\"; filename*=UTF-8''a%22b.csv"),
        ("../../etc/passwd", 'attachment; filename=".._.._etc_passwd"'),
        ("a\r\nSet-Cookie: x=1", 'attachment; filename="a__Set-Cookie: x=1"'),
        ("\u202egpj.exe", 'attachment; filename="_gpj.exe"'),
        ("", 'attachment; filename="download"'),
    ],
)
def test_a_name_is_told_to_old_clients_and_new(name: str, header: str) -> None:
    assert disposition(name) == header


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"])) | st.text('\r\n\0\\"%;/=\ud800a'))
def test_no_name_breaks_out_of_its_header(name: str) -> None:
    header = disposition(name)
    assert header.isascii()
    assert header.isprintable()
    matched = re.fullmatch(r"attachment; filename=\"([^\"\\/]*)\"(?:; filename\*=UTF-8''([\w!#$&+.^`|~%-]+))?", header)
    assert matched is not None
    given_name = unquote(matched[2], errors="strict") if matched[2] is not None else matched[1]
    fit = "".join(c if c not in "/\\" else "_" for c in name)
    assert not name or len(given_name) == len(fit)
