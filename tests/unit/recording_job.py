"""A `Job` for a processor's own tests: it does the work in this process and remembers what it was told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from headway.shared.tasks.processors import Processor

T = TypeVar("T")


class RecordingJob:
    """`phases` are in order, `counts` what was said to be done as (phase, done, total), `logs` the texts."""

    def __init__(
        self,
        folder: Path,
        data: bytes | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        processor: Processor,
        memory_bytes: int = 1024**3,
    ) -> None:
        self.options: Any = processor.parse_options(options or {})
        self.filename: str | None = None if data is None else "input.csv"
        self.content_type: str | None = None if data is None else "text/csv"
        self.size_bytes = len(data or b"")
        self.memory_bytes = memory_bytes
        self.attempt = 1
        self.restored: Any = None
        self.planned = dict(processor.phases)
        self.phases: list[str] = []
        self.counts: list[tuple[str, int, int | None]] = []
        self.logs: list[str] = []
        self.partials: list[Any] = []
        self.outputs = folder / "outputs"
        self.outputs.mkdir()
        self._input = folder / "input"
        self._input.write_bytes(data or b"")
        self._total: int | None = None
        self._done = 0

    @property
    def input_path(self) -> str:
        return str(self._input)

    def open_input(self) -> BinaryIO:
        return self._input.open("rb")

    def create_output(self, name: str, content_type: str | None = None, *, live: bool = False) -> BinaryIO:
        return (self.outputs / name).open("wb")

    def output_path(self, name: str, content_type: str | None = None) -> str:
        return str(self.outputs / name)

    def plan(self, phases: Mapping[str, float]) -> None:
        self.planned = dict(phases)

    def phase(
        self,
        name: str,
        *,
        weight: float | None = None,
        total: int | None = None,
        unit: str | None = None,
        done: int = 0,
    ) -> AbstractContextManager[None]:
        self.phases.append(name)
        self._done, self._total = done, total
        return nullcontext()

    def advance(self, n: int = 1) -> None:
        self.progress_to(self._done + n)

    def progress_to(self, done: int, total: int | None = None) -> None:
        self._done, self._total = done, total if total is not None else self._total
        self.counts.append((self.phases[-1], done, self._total))

    def tqdm_hook(self) -> AbstractContextManager[None]:
        return nullcontext()

    def track(
        self, iterable: Iterable[T], *, total: int | None = None, unit: str | None = None, done: int = 0
    ) -> Iterator[T]:
        for item in iterable:
            yield item
            self.advance()

    def log(self, text: str, level: str = "info") -> None:
        self.logs.append(text)

    def partial(self, value: Any) -> None:
        self.partials.append(value)

    def checkpoint(self, state: Any) -> None:
        self.restored = state
