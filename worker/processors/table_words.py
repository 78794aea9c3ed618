"""The words that stand for no value in a column of numbers, dates or times, where nobody says which do."""

from __future__ import annotations

from typing import Final

NO_VALUE: Final = (
    *("NA", "N/A", "n/a", "na", "NaN", "nan", "-NaN", "-nan", "NAN"),
    *("NULL", "Null", "null", "(null)", "None", "none", "nil", "\\N"),
    *("#N/A", "#N/A N/A", "#NA", "#NULL!", "<NA>", "<null>"),
    *("-", "--", "---", ".", "..", "?", "–", "—"),
)
