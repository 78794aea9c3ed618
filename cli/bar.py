"""What a stream says, on stderr: a bar a task on a terminal, nothing elsewhere, or plain lines for a demonstration.

It draws what the event stream says and computes nothing: rate, time left and percentage are the server's. stdout stays
for results. What is shown came from outside, so no markup is read and nothing can steer the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from headway.cli.exits import complain, printable

if TYPE_CHECKING:
    from headway import Batch, Event, Task

#: More bars than this at a time would not fit a screen; the others are counted on the last line.
MOST_BARS: Final = 12


class Display(Protocol):
    def show(self, event: Event) -> None:
        """Takes every event of the stream, in order."""

    def pause(self) -> None:
        """Leaves the terminal to a question."""

    def resume(self) -> None: ...


def size(bytes_: float) -> str:
    """`104.9 MB`, in decimal units as disks are sold and downloads shown."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 1000:
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.1f} TB"


def duration(seconds: float) -> str:
    """`0.8 s`, `12 s`, `3:05`, `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def phase(state: Task) -> str:
    """What is being done: `2/3 Profiling columns`, with the attempt from the second on."""
    step, steps = state.get("step") or 0, state.get("total_steps") or 0
    text = printable(state.get("message") or state.get("status", "")).replace("\n", " ")[:48]
    if place := state.get("queue_position"):
        text += f", number {place} in the line"
    again = f" (attempt {state['attempt']})" if state.get("attempt", 1) > 1 else ""
    return (f"{step}/{steps} {text}" if steps > 1 and step else text) + again


def pace(state: Task) -> str:
    """How fast, and how long still: `73.4 MB/s, 0.8 s left`."""
    parts: list[str] = []
    if state.get("status") in {"completed", "failed", "cancelled"}:
        return ""
    if rate := state.get("rate"):
        unit = state.get("unit") or ""
        parts.append(f"{size(rate)}/s" if unit == "bytes" else f"{rate:,.0f} {printable(unit)}/s".replace(" /", "/"))
    if (eta := state.get("eta_seconds")) is not None:
        parts.append(f"{duration(eta)} left")
    if (starts := state.get("starts_in_seconds")) is not None:
        parts.append(f"starts in about {duration(starts)}")
    return ", ".join(parts)


def counted(rollup: Batch) -> str:
    """`3 completed, 1 processing`."""
    counts = rollup.get("counts") or {}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def said(event: Event) -> str | None:
    """The line of a named event, if a person wants it: what the processor logged, what somebody noted."""
    match event.name:
        case "log":
            return f"{event.data.get('level', 'info')}: {event.message}"
        case "note":
            return f"{event.data.get('author')}: {event.message}"
        case _:
            return None


@contextmanager
def on_stderr(names: Callable[[str], str] | None = None, *, lines_without_terminal: bool = False) -> Iterator[Display]:
    """Draws while it is entered; leaves the last picture standing. `names` says what a task is called, where there are
    several."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Lines() if lines_without_terminal else Quiet(names)
        return
    bars = Bars(console, names)
    try:
        bars.resume()
        yield bars
    finally:
        bars.pause()


class Quiet:
    """What a pipe gets: what was logged and noted, and no bar."""

    def __init__(self, names: Callable[[str], str] | None = None) -> None:
        self._names = names

    def show(self, event: Event) -> None:
        if (line := said(event)) is not None:
            complain(f"{self._names(event.task_id)}: {line}" if self._names else line)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Lines(Quiet):
    """A line for every new phase and every ten per cent."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ("", -1)

    def show(self, event: Event) -> None:
        super().show(event)
        if event.name:
            return
        state = cast("Task", event.data)
        now = (phase(state), int(state.get("progress", 0) // 10))
        if now != self._last:
            self._last = now
            complain(f"{state.get('progress', 0):5.1f} %  {now[0]}  {pace(state)}".rstrip())


class Bars:
    """A bar for each task that moves; with several, those that have ended make room for the next."""

    def __init__(self, console: Any, names: Callable[[str], str] | None) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn("{task.percentage:>5.1f} %"),
            TextColumn("{task.fields[pace]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, expand=True)
        self._names = names
        self._drawn: dict[str, Any] = {}
        self._first: Any = self._progress.add_task("Waiting for the platform", total=100, pace="")

    def show(self, event: Event) -> None:
        if event.name:
            if (line := said(event)) is not None:
                whose = f"{self._names(event.task_id)}: " if self._names else ""
                self._progress.console.print(printable(whose + line), markup=False)
            return
        if self._first is not None:
            self._progress.remove_task(self._first)
            self._first = None
        state, task_id = cast("Task", event.data), event.task_id
        if self._names and event.is_terminal:
            if (drawn := self._drawn.pop(task_id, None)) is not None:
                self._progress.remove_task(drawn)
            return
        waiting = self._names is not None and not state.get("progress")
        if task_id not in self._drawn:
            if waiting or len(self._drawn) >= MOST_BARS:
                return
            self._drawn[task_id] = self._progress.add_task("", total=100, pace="")
        text = counted(cast("Batch", state)) if "counts" in state else phase(state)
        if self._names:
            text = f"{printable(self._names(task_id))[:32]:<20}  {text}"
        self._progress.update(
            self._drawn[task_id], description=text, completed=state.get("progress", 0), pace=pace(state)
        )

    def pause(self) -> None:
        with suppress(BrokenPipeError):
            self._progress.stop()

    def resume(self) -> None:
        self._progress.start()


@contextmanager
def download_bar(name: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
    """Takes the size of each piece that came; draws on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), console=console, expand=True, disable=not console.is_terminal
    ) as progress:
        drawn = progress.add_task(printable(name)[:48], total=size_bytes)
        yield lambda came: progress.advance(drawn, came)
