"""A sheet of a workbook (.xlsx, .xls, .xlsb, .ods), written as text: a line for each row, as a spreadsheet shows it."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any, Final

from headway.shared.errors import BadInput

#: A whole number beyond it is no longer told from its neighbours.
_WHOLE: Final = 2.0**53


def write(source: Path, target: Path, sheet: str | None, notes: list[str]) -> str:
    """Writes the sheet, the first that has anything if none is named, and returns its name. Raises BadInput."""
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    try:
        with CalamineWorkbook.from_path(str(source)) as book:
            names = list(book.sheet_names)
            if sheet is not None and sheet not in names:
                raise BadInput(f"There is no sheet {sheet[:80]!r}. There are: {', '.join(map(repr, names))[:500]}.")
            for name in [sheet] if sheet is not None else names:
                found = book.get_sheet_by_name(name)
                if found.height and found.width:
                    _write(found, target)
                    if len(names) > 1 and sheet is None:
                        others = ", ".join(repr(one) for one in names if one != name)
                        notes.append(f"Read the sheet {name!r}. The option `sheet` names another one: {others[:500]}.")
                    return str(name)
    except PasswordError:
        raise BadInput("The workbook is locked by a password. Save it without one, then send it again.") from None
    except CalamineError:
        raise BadInput("The workbook is damaged, or is none that is known here. Save it as .xlsx or as CSV.") from None
    raise BadInput("The workbook is empty. Send one with a table in a sheet.")


def _write(sheet: Any, target: Path) -> None:
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        put = csv.writer(file, lineterminator="\r\n").writerow
        blank = True
        for cells in sheet.iter_rows():
            row = [_text(cell) for cell in cells]
            filled = sum(1 for text in row if text)
            # Above the table and below it a title or a note stands alone. In text it has no empty cells beside it.
            put(row[:1] if filled == 1 and row[0] and blank else row if filled else [])
            blank = not filled


def _text(cell: Any) -> str:
    match cell:
        case bool():
            return "true" if cell else "false"
        case float() if cell.is_integer() and abs(cell) < _WHOLE:
            return str(int(cell))
        case datetime.datetime():
            return cell.isoformat(" ")
        case datetime.date() | datetime.time():
            return cell.isoformat()
        case datetime.timedelta():
            return _clock(cell)
    return str(cell)


def _clock(passed: datetime.timedelta) -> str:
    """A duration of less than a day is how a spreadsheet keeps a time."""
    if datetime.timedelta(0) <= passed < datetime.timedelta(days=1):
        return (datetime.datetime(1, 1, 1, tzinfo=datetime.UTC) + passed).time().isoformat()
    return str(passed)
