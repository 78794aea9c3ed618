"""One report of an outside producer, and what a list of them makes of its task. Pure: no I/O, no clock.

The rules are a processor's (worker/reporter.py): phases take their weights' shares of the bar, progress never falls,
and `done` of `total` is the count inside the phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headway.shared.json_text import text_of
from headway.shared.tasks.models import TEXT_CHARACTERS, Producer, Task
from headway.shared.units import DAY_SECONDS

#: What a client can read exactly.
MOST_UNITS: Final = 2**53
UNIT_CHARACTERS: Final = 100
NAME_CHARACTERS: Final = 100
MOST_PHASES: Final = 50
#: Of one request: about one task, and about many. And lines of one report.
MOST_REPORTS: Final = 100
MOST_REPORTS_OF_MANY: Final = 1000
MOST_LINES: Final = 100
#: As of a processor's checkpoint.
CHECKPOINT_BYTES: Final = 64 * 1024
#: Numbers of reports that a task remembers.
SEQS: Final = 64
#: Events that the log lines of one request may become: as many as progress.lua remembers, so that one that is sent
#: again counts once. More lines are joined, up to JOINED_BYTES of JSON each.
LOG_EVENTS: Final = 16
JOINED_BYTES: Final = 2048

#: The message of a task that nobody has reported on.
WAITS: Final = "Waiting to be started"

Level = Literal["info", "warning", "error"]


def _whole(value: Any) -> Any:
    """A number, and no text that looks like one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a whole number")  # noqa: TRY004 - pydantic takes a ValueError for a bad request
    return value


def _plain(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("must be printable, and not empty")
    return name


def _small(state: Any) -> Any:
    try:
        size = len(text_of(state))
    except (ValueError, RecursionError):
        raise ValueError("must be JSON: no NaN, no Infinity") from None
    if size > CHECKPOINT_BYTES:
        raise ValueError(f"is at most {CHECKPOINT_BYTES} bytes of JSON; this one is {size}")
    return state


Units = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MOST_UNITS)]
Attempt = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MOST_UNITS)]
Name = Annotated[str, Field(max_length=NAME_CHARACTERS), AfterValidator(_plain)]
Weight = Annotated[float, BeforeValidator(_whole), Field(gt=0, le=1e9, allow_inf_nan=False)]
Unit = Annotated[str, Field(max_length=UNIT_CHARACTERS)]


class LogLine(BaseModel):
    """A line of the log; longer ones are cut to 500 characters."""

    model_config = ConfigDict(extra="forbid")

    message: str
    level: Level = "info"


class Report(BaseModel):
    """What a producer says of its work. Whatever is left out stays as it is; a report with `attempt` alone says that
    the producer lives."""

    model_config = ConfigDict(extra="forbid")

    attempt: Attempt
    seq: Annotated[Units | None, Field(description="Its number: a report that is sent again counts once")] = None
    done: Annotated[Units | None, Field(description="The count inside the phase")] = None
    advance: Annotated[Units | None, Field(description="So many more, in place of `done`")] = None
    total: Annotated[Units | None, Field(description="Of the phase; null: unknown")] = None
    unit: Unit | None = None
    phase: Annotated[Name | None, Field(description="The phase that it is in from now on")] = None
    weight: Annotated[Weight | None, Field(description="Of a phase that was not declared, beside the rest")] = None
    message: Annotated[str | None, Field(description="Cut to 500 characters")] = None
    log: Annotated[list[LogLine | str] | None, Field(max_length=MOST_LINES)] = None
    checkpoint: Annotated[Any, AfterValidator(_small)] = None
    lease_seconds: Annotated[
        Units | None, Field(ge=1, le=DAY_SECONDS, description="The next report comes within this: this once")
    ] = None

    @model_validator(mode="after")
    def _one_count(self) -> Report:
        if self.done is not None and self.advance is not None:
            raise ValueError("done and advance: send one of them")
        return self

    @property
    def changes_the_state(self) -> bool:
        return bool(self.model_fields_set - {"attempt", "log", "task_id", "lease_seconds"})


class NamedReport(Report):
    """A report among those of many tasks."""

    task_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class UnknownPhase(Exception):
    """The phases were declared, and this is none of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One `log` event. `seq` and `place`: of its report, and in it; None where the report has no number."""

    level: str
    message: str
    seq: int | None
    place: int


def fresh(task: Task, reports: Iterable[Report]) -> list[Report]:
    """Those that have not counted yet."""
    assert task.producer is not None
    seen, found = list(task.producer.seqs), []
    for report in reports:
        if report.seq is not None:
            if report.seq in seen or (len(seen) >= SEQS and report.seq < min(seen)):
                continue
            seen = [*seen, report.seq][-SEQS:]
        found.append(report)
    return found


def lines_of(reports: Sequence[Report]) -> list[Line]:
    """The log events of the reports, in order, at most LOG_EVENTS but for what JOINED_BYTES keeps apart."""
    found: list[Line] = []
    join = sum(len(report.log or ()) for report in reports) > LOG_EVENTS
    for report in reports:
        for place, line in enumerate(report.log or ()):
            given = line if isinstance(line, LogLine) else LogLine(message=line)
            message = given.message[:TEXT_CHARACTERS]
            if join and found and found[-1].level == given.level and found[-1].seq == report.seq:
                joined = f"{found[-1].message}\n{message}"
                if len(text_of(joined)) <= JOINED_BYTES:
                    found[-1] = Line(given.level, joined, report.seq, found[-1].place)
                    continue
            found.append(Line(given.level, message, report.seq, place))
    return found


def applied(task: Task, reports: Sequence[Report]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The count after the reports, as headway.shared.tasks.meter takes it, and the other fields that they change.

    Raises UnknownPhase."""
    assert task.producer is not None
    producer = task.producer.model_copy()  # its list and its phases are not changed, but replaced
    count: dict[str, Any] = {
        "progress": task.progress, "step": task.step, "total_steps": task.total_steps, "message": task.message,
        "done": task.done, "total": task.total, "unit": task.unit,
    }  # fmt: skip
    others: dict[str, Any] = {}
    for report in reports:
        if report.seq is not None:
            producer.seqs = [*producer.seqs, report.seq][-SEQS:]
        if report.phase is not None and report.phase != producer.phase:
            _enter(report.phase, report.weight, producer, count)
        if "total" in report.model_fields_set:
            count["total"] = report.total
        if report.unit is not None:
            count["unit"] = report.unit
        if report.done is not None:
            count["done"] = report.done
        if report.advance is not None:
            count["done"] = min(MOST_UNITS, count["done"] + report.advance)
        if report.message is not None:
            count["message"] = report.message[:TEXT_CHARACTERS]
        fraction = min(1.0, count["done"] / count["total"]) if count["total"] else 0.0
        count["progress"] = max(count["progress"], 100 * min(1.0, producer.spent + producer.share * fraction))
        if "checkpoint" in report.model_fields_set:
            others["checkpoint"] = {"state": report.checkpoint, "progress": count["progress"]}
    others["producer"] = producer.model_dump()
    return count, others


def _enter(name: str, weight: float | None, producer: Producer, count: dict[str, Any]) -> None:
    declared = places_of(producer.phases)
    if declared and name not in declared:
        raise UnknownPhase(f"{name!r} is none of the phases that were declared: {', '.join(declared)}")
    if producer.phase is not None:
        producer.spent = min(1.0, producer.spent + producer.share)
    if name in declared:
        step, before, share = declared[name]
        count["step"], producer.spent = max(count["step"], step), max(producer.spent, before)
        producer.share = min(max(0.0, 1.0 - producer.spent), share)
    else:
        given = weight or 1.0
        count["step"] += 1
        producer.share = max(0.0, 1.0 - producer.spent) * given / (given + 1)
    producer.phase = name
    count |= {"total_steps": max(count["step"], len(declared)), "message": name, "done": 0, "total": None, "unit": None}


def places_of(phases: Mapping[str, float]) -> dict[str, tuple[int, float, float]]:
    """Of each phase its step, the share of the whole that those before it have, and its own."""
    found, before, whole = {}, 0.0, sum(phases.values())
    for step, (name, weight) in enumerate(phases.items(), start=1):
        found[name] = (step, before / whole, weight / whole)
        before += weight
    return found
