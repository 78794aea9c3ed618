"""A row whose quotes break the rules, read in the only way that makes sense of it. Pure."""

from __future__ import annotations

import re


def split_by_position(line: str, separator: str, quote: str) -> list[str] | None:
    """The values of a line in which a quote closes only before a delimiter or the end; one after a backslash never.
    None where that is no way to read it."""
    q, s = re.escape(quote), re.escape(separator)
    quoted = re.compile(rf"\s*{q}((?:\\{q}|.)*?){q}\s*(?={s}|$)")
    bare = re.compile(rf"[^{q}{s}][^{s}]*|(?={s}|$)")
    values, at = list[str](), 0
    while True:
        if found := quoted.match(line, at):
            values.append(found[1].replace(quote * 2, quote).replace(f"\\{quote}", quote))
        elif found := bare.match(line, at):
            values.append(found[0])
        else:
            return None
        at = found.end()
        if at >= len(line):
            return values
        at += len(separator)
