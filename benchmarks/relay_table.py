"""What benchmarks/relay.py found, as a table and a plot in docs/performance.md: multiples of the bare C server, medians
with the least and the most of the rounds."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from math import log10
from pathlib import Path
from statistics import median
from typing import Any, Final

DOCS: Final = Path(__file__).parent.parent / "docs"
BEGIN: Final = "<!-- relay: written by `make bench` -->"
END: Final = "<!-- relay: end -->"
C: Final = "bare C"


def publish(results: dict[int, list[Any]], *, write: bool) -> None:
    """Prints the tables; with `write`, puts them and the plot into docs/."""
    parts = [_table(clients, measured) for clients, measured in results.items() if measured]
    when = datetime.datetime.now(datetime.UTC).date()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    text = "\n\n".join([*parts, f"Measured {when}, {machine}."])
    print("\n" + text)
    if not write:
        return
    clients, measured = next(iter(results.items()))
    (DOCS / "relay.svg").write_text(_plot(clients, measured))
    page = DOCS / "performance.md"
    whole = page.read_text()
    head, _, rest = whole.partition(BEGIN)
    _, _, tail = rest.partition(END)
    alt = f"CPU per delivered event as a multiple of a bare C server, {clients} clients"
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n![{alt}](relay.svg)\n\n{END}{tail}")


def _costs(measured: Sequence[Any], server: str, measure: str) -> list[float]:
    """Multiples of what the C server's event costs in the same kind of run; a backlog's of one event, one write."""
    base_measure = "one task" if measure == "backlog" else measure
    base = [one.us_per_event for one in measured if one.server.startswith(C) and one.measure == base_measure]
    unit = median(base) if base else 1.0
    return sorted(one.us_per_event / unit for one in measured if one.server == server and one.measure == measure)


def _spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    if not values:
        return "–"
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def _table(clients: int, measured: Sequence[Any]) -> str:
    bare = [one.us_per_event for one in measured if one.server.startswith(C) and one.measure == "one task"]
    measures = list(dict.fromkeys(one.measure for one in measured))
    rounds = max(sum(one.server == measured[0].server and one.measure == m for one in measured) for m in measures)
    lines = [
        f"**{clients} clients**, CPU per delivered event as a multiple of the bare C server"
        + (f" (1.00 is {median(bare):.1f} µs an event)" if bare else "")
        + f"; {rounds} rounds, median (least–most).",
        "",
        "| server | " + " | ".join(measures) + " | p99, ms: one / each | KiB a connection | new streams a second |",
        "| --- " * (len(measures) + 4) + "|",
    ]
    for server in dict.fromkeys(one.server for one in measured):
        mine = [one for one in measured if one.server == server]
        cells = [_spread(_costs(measured, server, measure)) for measure in measures]
        late = [
            _spread([one.p99_ms for one in mine if one.measure == measure], "{:.1f}").split(" ")[0]
            for measure in ("one task", "a task each")
        ]
        memory = _spread([one.kib_per_connection for one in mine], "{:.1f}").split(" ")[0]
        connects = _spread([one.connects_per_second for one in mine if one.measure != "a task each"], "{:,.0f}")
        lost = sum(one.lost for one in mine)
        name = server + (f" ({lost:,} of {sum(one.owed for one in mine):,} events lost or late)" if lost else "")
        lines.append(f"| {name} | " + " | ".join([*cells, " / ".join(late), memory, connects.split(" ")[0]]) + " |")
    return "\n".join(lines)


def _plot(clients: int, measured: Sequence[Any]) -> str:
    """Bars, one task and a task each, on a logarithmic scale: what is ten times as dear is not ten times as long."""
    servers = list(dict.fromkeys(one.server for one in measured))
    left, wide, row = 310, 420, 40
    most = max(
        (max(_costs(measured, s, m), default=1) for s in servers for m in ("one task", "a task each")), default=1
    )
    span = log10(max(most, 10) / 0.5)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 70} {len(servers) * row + 60}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    out = [
        head,
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="10" y="22">CPU per delivered event, {clients} clients; 1 = bare C server; logarithmic</text>',
    ]
    for number, server in enumerate(servers):
        top = 40 + number * row
        title = server.replace("*", "").replace("`", "")
        out.append(f'<text x="{left - 8}" y="{top + 19}" text-anchor="end" fill="#222">{title}</text>')
        for offset, (measure, colour) in enumerate((("one task", "#2563eb"), ("a task each", "#93b4f5"))):
            if costs := _costs(measured, server, measure):
                middle = median(costs)
                length = wide * max(log10(middle / 0.5), 0.005) / span
                y = top + offset * 15
                out.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="13" fill="{colour}"/>')
                out.append(f'<text x="{left + length + 5:.0f}" y="{y + 11}" font-size="11">{middle:.2f}</text>')
    y = 50 + len(servers) * row
    out.append(f'<text x="{left}" y="{y}" fill="#2563eb">■ one task for all</text>')
    out.append(f'<text x="{left + 140}" y="{y}" fill="#93b4f5">■ a task each</text></svg>')
    return "\n".join(out) + "\n"
