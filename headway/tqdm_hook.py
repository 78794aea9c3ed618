"""Loops that draw themselves with tqdm, in anybody's library, counted for the people who watch instead.

While the hook is in place every tqdm bar is made silent, as with `disable=True`, and what it counts goes to the job:
the outermost bar is a phase named by its description, those inside it count nothing. Bars made before it, and bars
that somebody disabled, are left alone. The class itself is changed, because a library has its own name for it; leaving
the block puts everything back. Where tqdm is not installed there is nothing to hook.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_METHODS = ("__init__", "__iter__", "update", "reset", "close")


class Counted(Protocol):
    """What the hook needs of a job."""

    def phase(self, name: str, *, total: int | None = None, unit: str | None = None, done: int = 0) -> Any: ...
    def progress_to(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def hooked(job: Counted) -> Iterator[None]:
    """Until the block is left, tqdm's bars report to `job`."""
    try:
        bar_class: Any = importlib.import_module("tqdm.std").tqdm
    except ImportError:
        yield
        return
    before = {name: vars(bar_class)[name] for name in _METHODS}
    original: dict[str, Any] = {name: getattr(bar_class, name) for name in _METHODS}
    signature = inspect.signature(original["__init__"])
    open_bars: list[Any] = []  # the first one is the outermost, which is the one that is shown

    def show(bar: Any) -> None:
        if open_bars and open_bars[0] is bar:
            job.progress_to(int(bar.n), int(bar.total) if bar.total else None)

    def __init__(bar: Any, *args: Any, **given: Any) -> None:
        bound = signature.bind(bar, *args, **given)
        asked = dict(bound.arguments)
        bound.arguments["disable"] = True
        original["__init__"](*bound.args, **bound.kwargs)
        bar.counted = not asked.get("disable")  # None is tqdm's "only where there is a terminal"
        if not bar.counted:
            return
        if not open_bars:
            total = int(bar.total) if bar.total else None
            name = str(asked.get("desc") or "Processing").rstrip(": ")
            job.phase(name, total=total, unit=str(asked.get("unit", "it")), done=int(bar.n))
        open_bars.append(bar)

    def __iter__(bar: Any) -> Iterator[Any]:
        if not getattr(bar, "counted", False):
            yield from original["__iter__"](bar)
            return
        try:
            for item in bar.iterable:
                yield item
                bar.update()
        finally:
            bar.close()

    def update(bar: Any, n: float | None = 1) -> Any:
        if not getattr(bar, "counted", False):
            return original["update"](bar, n)
        bar.n += 1 if n is None else n
        show(bar)
        return None

    def reset(bar: Any, total: float | None = None) -> None:
        original["reset"](bar, total)
        show(bar)

    def close(bar: Any) -> None:
        show(bar)
        open_bars[:] = [one for one in open_bars if one is not bar]  # to tqdm, bars on the same line are equal
        original["close"](bar)

    try:
        for method in (__init__, __iter__, update, reset, close):
            setattr(bar_class, method.__name__, method)
        yield
    finally:
        for name, method in before.items():
            setattr(bar_class, name, method)
