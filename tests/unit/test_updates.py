"""What waits to be published: joined where it comes too fast, never lost, and bounded in what a history holds of it."""

from __future__ import annotations

from typing import Any

from headway.shared.json_text import text_of
from headway.worker.updates import ALONE, HISTORY_EVENTS, HISTORY_TEXT_BYTES, JOINED_BYTES, LEAST_TEXT_BYTES, Updates


def line(text: str, level: str = "info") -> dict[str, Any]:
    return {"level": level, "message": text, "at": "2026-12-01T00:00:00.000Z"}


async def taken(updates: Updates) -> list[dict[str, Any]]:
    await updates.close()
    found = []
    while (update := await updates.take()) is not None:
        found.append(update[1])
    return found


async def test_a_few_lines_are_an_event_each() -> None:
    updates = Updates()
    for number in range(ALONE):
        await updates.put(line(str(number)), name="log")
    assert [one["message"] for one in await taken(updates)] == [str(number) for number in range(ALONE)]


async def test_lines_that_come_faster_than_they_are_published_are_joined_and_none_is_lost() -> None:
    updates = Updates()
    lines = [f"line {number}" for number in range(50_000)]
    for text in lines:
        await updates.put(line(text), name="log")
    events = await taken(updates)
    assert "\n".join(event["message"] for event in events).split("\n") == lines
    assert len(events) < 5000
    for at in range(0, len(events), 100):
        kept = sum(len(text_of(event["message"])) for event in events[at : at + HISTORY_EVENTS])
        assert kept <= HISTORY_TEXT_BYTES + HISTORY_EVENTS * LEAST_TEXT_BYTES
    assert max(len(text_of(event["message"])) for event in events) <= JOINED_BYTES


async def test_lines_of_another_level_and_other_events_are_not_joined() -> None:
    updates = Updates()
    for number in range(ALONE):
        await updates.put(line(str(number)), name="log")
    await updates.put(line("worse", "error"), name="log")
    await updates.put({"message": "a phase", "progress": 5})
    await updates.put(line("after"), name="log")
    assert [one["message"] for one in (await taken(updates))[-3:]] == ["worse", "a phase", "after"]


async def test_a_history_full_of_words_takes_only_short_ones_and_long_ones_again_later() -> None:
    updates = Updates()
    sizes: list[int] = []
    for _ in range(2 * HISTORY_EVENTS):
        await updates.put({"message": "\U0001f600" * 500, "progress": 1})
        update = await updates.take()
        assert update is not None
        sizes.append(len(text_of(update[1]["message"])))
        assert sum(sizes[-HISTORY_EVENTS:]) <= HISTORY_TEXT_BYTES + HISTORY_EVENTS * (LEAST_TEXT_BYTES + 20)
    for _ in range(HISTORY_EVENTS):
        await updates.put({"message": "short", "progress": 1})
        await updates.take()
    await updates.put({"message": "x" * 500, "progress": 1})
    update = await updates.take()
    assert update is not None
    assert update[1]["message"] == "x" * 500
