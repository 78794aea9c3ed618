"""How a table is to be read: the options that `table-profile` and `table-to-parquet` share, all found out if left "
"out."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from headway.shared.tasks.processors import Options

#: What a column can be made of by name. A date of digits alone is read as day/month/year or month/day/year.
TypeName = Literal[
    "text",
    "integer",
    "number",
    "boolean",
    "date",
    "date_dmy",
    "date_mdy",
    "timestamp",
    "timestamp_dmy",
    "timestamp_mdy",
    "time",
]

#: Media types of what is read. Text of any kind may be a table.
ACCEPTED: Final = (
    "text/*",
    "application/csv",
    "application/vnd.ms-excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/json",
    "application/x-ndjson",
    "application/vnd.apache.parquet",
    "application/gzip",
    "application/zstd",
    # A workbook is a zip, and which kind of zip it is shows in what is in it.
    "application/zip",
)


def _known_encoding(name: str) -> str:
    try:
        info = codecs.lookup(name)
        "a".encode(info.name)  # of text: `rot13` and `zip` are none
    except (LookupError, ValueError, TypeError):
        raise ValueError(f"there is no encoding {name[:40]!r}; examples: utf-8, cp1252, utf-16, shift_jis") from None
    return info.name


def _one_of_three(value: Any) -> Any:
    """True and False were the values of `header` before there were three of them."""
    return {True: "yes", False: "no", None: "auto"}[value] if value is None or isinstance(value, bool) else value


def _words(value: Any) -> Any:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _named_types(value: Any) -> Any:
    """Also `zip=text, day=date_dmy`; and as it was before: false for text everywhere, true for types that are found."""
    if value is True:
        return {}
    if value is False:
        return {"*": "text"}
    if isinstance(value, str):
        pairs = (part.rpartition("=") for part in re.split(r"[,\n]", value) if part.strip())
        return {name.strip(): kind.strip() for name, _, kind in pairs}
    return value


class TableOptions(Options):
    """What is left out is found out."""

    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        default=None, max_length=40, description="how characters are written, such as utf-8, cp1252 or utf-16"
    )
    delimiter: str | None = Field(
        default=None, pattern=r'^([^"\r\n\x00]|\\t|tab)$', description="the character between two values; \\t is a tab"
    )
    quote: str | None = Field(
        default=None,
        pattern=r"^([^\r\n\x00A-Za-z0-9]|none)$",
        description="the character around a value that has a delimiter in it; none if there is no such character",
    )
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_one_of_three)] = Field(
        default="auto", description="whether the first row has the names of the columns"
    )
    skip_rows: int = Field(default=0, ge=0, le=1_000_000, description="how many lines above the table to leave out")
    null_values: Annotated[list[str], BeforeValidator(_words)] | None = Field(
        default=None,
        max_length=100,
        description="words that stand for no value, in every column, such as NA; without it the usual ones are known "
        "in columns of numbers, dates and times",
    )
    types: Annotated[dict[str, TypeName], BeforeValidator(_named_types)] = Field(
        default_factory=dict,
        max_length=10_000,
        description="a column's name and its type, such as zip=text, day=date_dmy; * is every other column",
    )
    on_bad_rows: Literal["fail", "skip"] = Field(
        default="fail",
        description="what to do with a row that does not fit the table; skip leaves it out and counts it",
    )
    sheet: str | None = Field(default=None, max_length=255, description="which sheet of a workbook; else the first one")

    @property
    def separator(self) -> str | None:
        return "\t" if self.delimiter in ("\\t", "tab") else self.delimiter
