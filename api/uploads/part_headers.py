"""What a part of a form says of itself: its name, its file's name, and how its bytes are to be read. Pure.

Browsers and curl write a quote and the ends of lines in a name as `%22`, `%0D` and `%0A` and nothing else
(https://html.spec.whatwg.org/#multipart-form-data); older programs put a backslash before a quote. `filename*` (RFC
8187) is no part of forms, but is sent, and says more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

_PARAMETER: Final = re.compile(
    rb';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|"[^"]*"|[^;\s"]*)', re.DOTALL
)
_ESCAPED: Final = {b"%22": b'"', b"%0d": b"\r", b"%0a": b"\n"}
#: Bytes as they are. Any other would have to be decoded first.
PLAIN_ENCODINGS: Final = (b"", b"binary", b"8bit", b"7bit", b"identity")


def disposition_of(header: bytes) -> tuple[bytes, dict[bytes, str]]:
    """The kind, in lower case, and the parameters by their names in lower case, decoded. Of a parameter twice the first
    one counts."""
    kind, parameters, at = header.partition(b";")[0].strip().lower(), dict[bytes, str](), header.find(b";")
    while at >= 0 and (found := _PARAMETER.match(header, at)):
        parameters.setdefault(found[1].lower(), _value(found[1], found[2]))
        at = found.end()
        while at < len(header) and header[at : at + 1] in b" \t":
            at += 1
        at = at if header[at : at + 1] == b";" else -1
    return kind, parameters


def _value(name: bytes, value: bytes) -> str:
    if name.endswith(b"*"):
        charset, _, rest = value.strip(b'"').partition(b"'")
        raw = unquote_to_bytes(rest.partition(b"'")[2])
        try:
            return raw.decode(charset.decode("ascii") or "utf-8")
        except (LookupError, UnicodeDecodeError):
            return raw.decode("utf-8", "replace")
    if value.startswith(b'"'):
        value = re.sub(rb'\\(["\\])', rb"\1", value[1:-1])
    value = re.sub(rb"(?i)%(?:22|0d|0a)", lambda one: _ESCAPED[one[0].lower()], value)
    return value.decode("utf-8", "replace")


def file_name_of(parameters: Mapping[bytes, str]) -> str | None:
    """As it was sent; None for a part that is no file."""
    return parameters.get(b"filename*", parameters.get(b"filename"))
