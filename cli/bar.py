"""A task's state on stderr: a bar on a terminal, nothing elsewhere, or plain lines for a demonstration without one.

It draws what the event stream says and computes nothing: rate, time left and percentage are the server's. stdout stays
for results. What is shown came from outside, so no markup is read and nothing can steer the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cli.exits import complain, printable

if TYPE_CHECKING:
    from cli.client import StreamEvent, TaskView

#: Takes every event of the stream, in order.
Show = Callable[["StreamEvent"], None]


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


def phase(state: TaskView) -> str:
    """What is being done: `2/3 Profiling columns`, with the attempt from the second on."""
    step, steps = state.get("step") or 0, state.get("total_steps") or 0
    text = printable(state.get("message") or state.get("status", "")).replace("\n", " ")[:48]
    again = f" (attempt {state['attempt']})" if state.get("attempt", 1) > 1 else ""
    return (f"{step}/{steps} {text}" if steps > 1 and step else text) + again


def pace(state: TaskView) -> str:
    """How fast, and how long still: `73.4 MB/s, 0.8 s left`."""
    parts: list[str] = []
    if state.get("status") in {"completed", "failed", "cancelled"}:
        return ""
    if rate := state.get("rate"):
        unit = state.get("unit") or ""
        parts.append(f"{size(rate)}/s" if unit == "bytes" else f"{rate:,.0f} {printable(unit)}/s".replace(" /", "/"))
    if (eta := state.get("eta_seconds")) is not None:
        parts.append(f"{duration(eta)} left")
    return ", ".join(parts)


def said(event: StreamEvent) -> str | None:
    """The line of a named event, if a person wants it: what the processor logged, what somebody noted."""
    data: Mapping[str, Any] = event.data
    match event.name:
        case "log":
            return f"{data.get('level', 'info')}: {data.get('text', data.get('message', ''))}"
        case "note":
            return f"{data.get('author')}: {data.get('text')}"
        case _:
            return None


@contextmanager
def on_stderr(*, lines_without_terminal: bool = False) -> Iterator[Show]:
    """Draws while it is entered; leaves the last picture standing."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield _lines() if lines_without_terminal else _nothing


def _nothing(event: StreamEvent) -> None:
    if (line := said(event)) is not None:
        complain(line)


def _lines() -> Show:
    """A line for every new phase and every ten per cent."""
    last = ("", -1)

    def show(event: StreamEvent) -> None:
        nonlocal last
        if event.name:
            return _nothing(event)
        state: TaskView = event.data  # type: ignore[assignment]
        now = (phase(state), int(state.get("progress", 0) // 10))
        if now != last:
            last = now
            complain(f"{state.get('progress', 0):5.1f} %  {now[0]}  {pace(state)}".rstrip())
        return None

    return show


@contextmanager
def _bar(console: Any) -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn("{task.percentage:>5.1f} %"),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        drawn = progress.add_task("Waiting for the platform", total=100, pace="")

        def show(event: StreamEvent) -> None:
            if event.name:
                if (line := said(event)) is not None:
                    progress.console.print(printable(line), markup=False)
                return
            state: TaskView = event.data  # type: ignore[assignment]
            progress.update(drawn, description=phase(state), completed=state.get("progress", 0), pace=pace(state))

        yield show
