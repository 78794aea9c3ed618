"""The processor `text-stats`: what is in a text, in memory that does not grow with it, a single line of a gigabyte too.

The file is read twice: once to find how it is written, once to count. UTF-8 is what decodes as UTF-8 to the last byte;
UTF-16 and UTF-32 say so by their mark; any other text is taken for Latin-1, which every byte fits, and the summary
says that this is a guess. What is no text at all is BadInput, told from its first megabyte.
"""

from __future__ import annotations

import codecs
import io
import re
import string
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import filetype
from pydantic import Field

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor

HEAD_BYTES: Final = 1024 * 1024

#: Small enough that the different words of one chunk are few megabytes, large enough for the loop to cost nothing.
CHUNK_BYTES: Final = 256 * 1024

#: Of words that are kept to be counted. When there are more, the rare half is forgotten: a word that was forgotten and
#: comes again has lost at most as many as the summary's `top_words_missed`.
MOST_WORDS: Final = 100_000

#: A longer one is counted by its beginning: it is no word but a line without spaces.
WORD_CHARACTERS: Final = 64

#: Longest first: the mark of UTF-32 begins with that of UTF-16.
MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: What a text has of the control characters: tab, the ends of lines and pages, backspace, escape, DOS's end of file.
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b\x1a"))
#: Text of the seventies has a few others; random bytes have nine in a hundred.
MOST_CONTROLS: Final = 0.01

#: Around a word and not of it; the apostrophe within one stays.
_AROUND: Final = string.punctuation + "“”„‘’«»‹›…–—¿¡。、"
_LINE_ENDS: Final = {"\n": "lf", "\r\n": "crlf", "\r": "cr"}


class TextStatsOptions(Options):
    """What to list."""

    top_words: int = Field(default=10, ge=0, le=100, description="how many of the most frequent words to list")


@processor(
    "text-stats",
    description="Bytes, lines, words, characters, the longest line, the encoding and the most frequent words",
    accepts=("text/*", "application/json", "application/xml", "application/rtf", "application/postscript"),
    options=TextStatsOptions,
    # As measured on 1 GB of English.
    phases={"Finding the encoding": 5, "Counting": 95},
)
def text_stats(job: Job) -> dict[str, Any]:
    """Counts an empty file too, which is all zeros.

    Summary: `size_bytes`; `encoding` (`ascii`, `utf-8`, `utf-8-sig`, `utf-16`, `utf-32`, or `latin-1`, a guess);
    `lines`, the last one also where no end of line follows it; `words`, as spaces divide them; `characters`, of which
    the end of a line is one or two; `longest_line`, in characters without its end; `line_endings`, a list of `lf`,
    `crlf`, `cr`; `top_words`, a list of `word` in lower case without punctuation around it, and `count`, the most
    frequent first; `top_words_missed`, by how many a count may be too low: 0 below 100,000 different words.
    """
    options: TextStatsOptions = job.options
    job.phase("Finding the encoding", total=job.size_bytes, unit="bytes")
    encoding = _encoding(job)
    job.phase("Counting", total=job.size_bytes, unit="bytes")
    counts = _Counts()
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for chunk in _chunks(job):
        counts.take(decoder.decode(chunk))
        job.advance(len(chunk))
    counts.take(decoder.decode(b"", final=True), final=True)
    return {
        "size_bytes": job.size_bytes,
        "encoding": encoding,
        "lines": counts.lines,
        "words": counts.words,
        "characters": counts.characters,
        "longest_line": counts.longest_line,
        "line_endings": counts.line_endings,
        **counts.top(options.top_words),
    }


def _chunks(job: Job) -> Iterator[bytes]:
    with job.open_input() as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _encoding(job: Job) -> str:
    """Reads to the first byte that is not UTF-8, or to the end. Raises BadInput for what is no text."""
    with job.open_input() as file:
        head = file.read(HEAD_BYTES)
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head or len(head) - len(head.translate(None, _CONTROLS)) > MOST_CONTROLS * len(head):
        raise _no_text(head)
    decoder, ascii_only = codecs.getincrementaldecoder("utf-8")(), True
    try:
        for chunk in _chunks(job):
            ascii_only = ascii_only and chunk.isascii()
            decoder.decode(chunk)
            job.advance(len(chunk))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "ascii" if ascii_only else "utf-8"


def _no_text(head: bytes) -> BadInput:
    kind = filetype.guess(head[:8192])  # type: ignore[no-untyped-call]
    what = f"a file of the type {kind.mime}" if kind else "a binary file"
    hint = " If it is UTF-16 without a byte order mark, save it as UTF-8." if kind is None and b"\0" in head else ""
    return BadInput(f"This is {what}, not text. Send a text, for example .txt, .md, .log or .csv.{hint}")


class _Counts:
    """What has been seen so far. A line or a word that a chunk's end has cut is carried over by its length alone, a
    word by its beginning too."""

    def __init__(self) -> None:
        self.words = self.characters = self.longest_line = 0
        self._ends = self._line = 0  # ends of lines, characters since the last one
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._word = ""  # the beginning of the word that the last chunk's end has cut, if it has
        self._top: Counter[str] = Counter()
        self._missed = 0

    def take(self, text: str, *, final: bool = False) -> None:
        self.characters += len(text)
        self._take_words(text, final)
        first, *others = self._newlines.decode(text, final).split("\n")
        self._line += len(first)
        self.longest_line = max(self.longest_line, self._line, *map(len, others))
        if others:
            self._ends += len(others)
            self._line = len(others[-1])

    @property
    def lines(self) -> int:
        return self._ends + (self._line > 0)

    @property
    def line_endings(self) -> list[str]:
        seen = self._newlines.newlines or ()
        return sorted(_LINE_ENDS[end] for end in ([seen] if isinstance(seen, str) else seen))

    def _take_words(self, text: str, final: bool) -> None:
        words = text.split()
        goes_on = bool(self._word and text and not text[0].isspace())
        if goes_on:
            words[0] = self._word + words[0]
        elif self._word:
            words.insert(0, self._word)
        self._word = ""
        if words and not final and not text[-1:].isspace():
            # Without text the word that was cut stays cut, as it was.
            self._word = words.pop()[: WORD_CHARACTERS + len(_AROUND)]
        self.words += len(words)
        for word, count in Counter(words).items():
            if plain := word[: WORD_CHARACTERS + len(_AROUND)].strip(_AROUND)[:WORD_CHARACTERS].casefold():
                self._top[plain] += count
        if len(self._top) > MOST_WORDS:
            kept = self._top.most_common(MOST_WORDS // 2 + 1)
            self._missed += kept.pop()[1]
            self._top = Counter(dict(kept))

    def top(self, most: int) -> dict[str, Any]:
        found = sorted(self._top.items(), key=lambda item: (-item[1], item[0]))[:most]
        words = [{"word": re.sub(r"[\x00-\x1f\x7f]", "", word), "count": count} for word, count in found]
        return {"top_words": words, "top_words_missed": self._missed}
