"""The bar, for any processor: what its calls become in the child, and what the worker makes of that."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.shared.json_text import text_of
from headway.shared.tasks.meter import MOST_PROGRESS, Meter
from headway.shared.tasks.processors import Options, Processor
from headway.worker.reporter import Reporter

COUNTS = st.integers(min_value=-(10**6), max_value=10**12)
MESSAGES = st.fixed_dictionaries(
    {
        "progress": st.floats(min_value=-10, max_value=110) | st.just(float("nan")),
        "step": st.integers(min_value=0, max_value=5),
        "total_steps": st.just(5),
        "message": st.just("working"),
        "done": COUNTS,
        "total": st.none() | COUNTS,
        "unit": st.none() | st.just("bytes"),
    }
)
PAUSES = st.floats(min_value=0, max_value=1000)


@given(base=st.floats(min_value=0, max_value=99), said=st.lists(st.tuples(MESSAGES, PAUSES), max_size=20))
def test_what_people_read_only_rises_and_is_always_a_number(
    base: float, said: list[tuple[dict[str, Any], float]]
) -> None:
    now = 100.0
    meter = Meter(base, now)
    before = round(base, 2)
    for message, pause in said:
        now += pause
        fields = meter.read(message, now)
        assert before <= fields["progress"] <= MOST_PROGRESS
        assert fields["rate"] is None or fields["rate"] > 0 or message["done"] >= 0
        assert fields["eta_seconds"] is None or fields["eta_seconds"] >= 0
        text_of(fields)  # JSON knows no infinity
        before = fields["progress"]


class Told:
    """A reporter, its messages, and the progress each of them said."""

    def __init__(self, folder: str, phases: dict[str, float]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.job = Reporter(
            Processor("any", run=lambda _: None, description="", phases=phases),
            options=Options(),
            input_path=None,
            output_folder=Path(folder),
            filename=None,
            content_type=None,
            size_bytes=0,
            memory_bytes=1024**3,
            attempt=1,
            restored=None,
            send=self.messages.append,
        )


PHASES = st.sampled_from(["read", "work", "write", "again"])
WEIGHTS = st.floats(min_value=1e-6, max_value=1e6)
TOTALS = st.none() | st.integers(min_value=0, max_value=10**9)
CALLS: st.SearchStrategy[Callable[[Reporter], object]] = st.one_of(
    st.builds(
        lambda name, weight, total: lambda job: job.phase(name, weight=weight, total=total),
        PHASES,
        st.none() | WEIGHTS,
        TOTALS,
    ),
    st.builds(lambda n: lambda job: job.advance(n), COUNTS),
    st.builds(lambda done, total: lambda job: job.progress_to(done, total), COUNTS, TOTALS),
    st.builds(
        lambda length, total: lambda job: [*job.track(range(length), total=total)],
        st.integers(min_value=0, max_value=20),
        TOTALS,
    ),
    st.builds(lambda text: lambda job: job.log(text), st.text()),
)


@settings(max_examples=60)
@given(
    declared=st.dictionaries(PHASES, WEIGHTS),
    planned=st.none() | st.dictionaries(PHASES, WEIGHTS),
    calls=st.lists(CALLS, max_size=15),
)
def test_whatever_a_processor_calls_its_progress_rises_from_0_to_100(
    declared: dict[str, float], planned: dict[str, float] | None, calls: list[Callable[[Reporter], object]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = Told(folder, declared)
        if planned is not None:
            told.job.plan(planned)
        for call in calls:
            call(told.job)
            with told.job.sampling():  # so that the count after each call is told
                pass
    states = [message for message in told.messages if message["kind"] != "log"]
    progress = [message["progress"] for message in states]
    assert progress == sorted(progress)
    assert all(0 <= value <= 100 for value in progress)
    steps = [message["step"] for message in states]
    assert steps == sorted(steps)
    assert all(message["step"] <= message["total_steps"] or message["step"] == 0 for message in states)
    for message in told.messages:
        json.dumps(message, allow_nan=False)
