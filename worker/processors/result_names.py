"""Names for result files, made from names that come from outside: an upload's, or an archive's members'.

Pure. Whatever comes in, what goes out passes `headway.shared.files.storage.check_result_name`: one plain printable
name, no folder, no leading dot, short enough for every file system. A name that needs no change is not changed.
"""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from typing import Final

from headway.shared.file_names import is_shown, shown

#: Under the 200 characters and 255 bytes of `check_result_name`, with room for a number and an ending of ours.
NAME_CHARACTERS: Final = 150
NAME_BYTES: Final = 200

#: What stands for the folders of a member: `a/b.txt` becomes `a__b.txt`.
FOLDER: Final = "__"

#: Kept when a name is cut: what comes later is no ending but a dot in a sentence.
ENDING_CHARACTERS: Final = 12


def plain_name(name: str | None, otherwise: str = "file") -> str:
    """One plain name like `name`, or `otherwise` where nothing of it can be kept."""
    visible = "".join(one if is_shown(one) else "_" for one in name or "")
    flat = shown(visible).replace("/", FOLDER).replace("\\", FOLDER)
    if flat.startswith("."):
        flat = f"_{flat}"
    return _short(flat) or otherwise


def stem(name: str | None, otherwise: str = "file") -> str:
    """The name without its last ending: `trips.csv` is `trips`."""
    return PurePosixPath(plain_name(name, otherwise)).stem


def _short(name: str) -> str:
    if len(name) <= NAME_CHARACTERS and len(name.encode()) <= NAME_BYTES:
        return name
    ending = PurePosixPath(name).suffix
    if len(ending) > ENDING_CHARACTERS:
        ending = ""
    room = NAME_BYTES - len(ending.encode()) - len("…".encode())
    body = name.removesuffix(ending)[: NAME_CHARACTERS - len(ending) - 1].encode()[:room].decode(errors="ignore")
    return f"{body}…{ending}"


class Names:
    """Gives each name once: the second `a.txt` is `a-2.txt`. Names that a file system which ignores case, or the way
    an accent is written, would take for the same count as the same."""

    def __init__(self, *taken: str) -> None:
        self._taken = {_same(name) for name in taken}
        self._next: dict[str, int] = {}

    def give(self, name: str) -> str:
        key = _same(name)
        if key not in self._taken:
            self._taken.add(key)
            return name
        path = PurePosixPath(name)
        number = self._next.get(key, 2)
        while _same(found := str(path.with_name(f"{path.stem}-{number}{path.suffix}"))) in self._taken:
            number += 1
        self._next[key] = number + 1
        self._taken.add(_same(found))
        return found


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
