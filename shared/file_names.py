"""Names of files as they are shown: what a sender wrote, without what no reader can see or would be misled by.

Spaces of every width are a space: macOS puts a narrow one into the names of its screenshots. What joins characters
(ZWJ, ZWNJ) stays, because emoji and Persian are written with it. Controls, and what turns the direction of text, go.
Letters with accents are one character each (NFC). Pure, and shown twice is shown once.
"""

from __future__ import annotations

import unicodedata
from typing import Final

JOINERS: Final = "\u200c\u200d"


def shown(name: str) -> str:
    """May be empty."""
    name = unicodedata.normalize("NFC", name)
    kept = (" " if unicodedata.category(one) == "Zs" else one for one in name if is_shown(one))
    return unicodedata.normalize("NFC", "".join(kept)).strip(" " + JOINERS)


def is_shown(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
