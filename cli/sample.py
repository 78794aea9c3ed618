"""A table to try the platform with: taxi trips that never took place, as large as asked for.

The same seed and size give the same bytes on every machine. What is written is a valid CSV of whole rows, in order of
pickup, with what real tables have: repeated names, one of them quoted for its comma, amounts, times, empty fields.
"""

from __future__ import annotations

import csv
import io
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Final

COLUMNS: Final = (
    *("trip_id", "pickup_at", "dropoff_at", "pickup_zone", "dropoff_zone", "passengers"),
    *("distance_km", "fare", "tip", "payment"),
)

ZONES: Final = (
    *("Airport, North Terminal", "Airport, South Terminal", "Botanic Garden", "Bridge Street", "Canal Side"),
    *("Castle Hill", "Central Station", "City Hall", "Cathedral", "Docklands", "East Market", "Fair Ground"),
    *("Garden Suburb", "Harbour", "Hospital", "Kingsway", "Lakeside", "Museum Quarter", "New Town", "Old Mill"),
    *("Opera", "Parliament", "Queen's Park", "Riverside", "Stadium", "Theatre Row", "University", "West Gate"),
)

#: One block is one day. Only this many rows are ever made at random; each further day repeats them with its own dates
#: and trip numbers, which is what makes 100 MB a matter of a second.
ROWS_A_DAY: Final = 4096
DAY_SECONDS: Final = 24 * 60 * 60
FIRST_DAY: Final = date(2024, 1, 1)
FIRST_TRIP: Final = 1_000_000


def write_sample(path: Path, size_bytes: int, *, seed: int = 2024) -> int:
    """Writes a CSV of as many whole rows as fit `size_bytes`, and answers how many rows that is.

    The header is always there, so a smaller size gives a file of the header alone. A file that exists is replaced.
    """
    template = _day(random.Random(seed))  # noqa: S311 - a sample, not a secret
    header = (",".join(COLUMNS) + "\n").encode()
    rows, left_bytes, day = 0, size_bytes - len(header), FIRST_DAY
    with path.open("wb") as file:
        file.write(header)
        while left_bytes > 0:
            first = FIRST_TRIP + rows
            block = (template.replace("{day}", day.isoformat()) % tuple(range(first, first + ROWS_A_DAY))).encode()
            if len(block) > left_bytes:
                block = block[: block.rfind(b"\n", 0, left_bytes) + 1]
                left_bytes = 0
            file.write(block)
            rows += block.count(b"\n")
            left_bytes -= len(block)
            day += timedelta(days=1)
    return rows


def _day(chance: random.Random) -> str:
    """A day of trips, in which `%d` stands for each trip's number and `{day}` for the date."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    # Pickups end an hour before midnight and no trip takes longer: each trip is over on its own day.
    for pickup in sorted(chance.randrange(DAY_SECONDS - 3600) for _ in range(ROWS_A_DAY)):
        distance_km = min(chance.lognormvariate(1.2, 0.7), 60.0)
        drive_seconds = min(3600, int(120 + distance_km * chance.uniform(70, 200)))
        fare = 3.2 + 1.9 * distance_km
        payment = chance.choices(("card", "cash", "account", "disputed"), (70, 22, 7, 1))[0]
        write(
            (
                "%d",
                f"{{day}} {_clock(pickup)}",
                f"{{day}} {_clock(pickup + drive_seconds)}",
                chance.choice(ZONES),
                # Rare, and empty together with nothing else, as a lost reading is.
                chance.choice(ZONES) if chance.random() > 0.01 else "",
                chance.choices((1, 2, 3, 4, 5, ""), (60, 20, 8, 5, 3, 4))[0],
                f"{distance_km:.2f}",
                f"{fare:.2f}",
                f"{fare * chance.uniform(0.05, 0.25):.2f}" if payment == "card" else "",
                payment,
            )
        )
    return text.getvalue()


def _clock(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
