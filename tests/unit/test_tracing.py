"""Tracing is off until the environment says where to; what it cannot do it says before anything starts; and a job's
payload is understood by those of before it and of after it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from arq.jobs import deserialize_job_raw

from headway.api.app import create_app
from headway.shared.errors import SettingsError
from headway.shared.settings import Settings
from headway.shared.span_export import plain_path
from headway.shared.tasks.models import TaskId
from headway.shared.tasks.queue import PROCESS_FILE, JobTicket, deserialize, traceparent_of
from headway.shared.tracing import OFF, tracing_of

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SOMEWHERE = "http://127.0.0.1:4318"
TASK = TaskId("6f1c" * 8)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def test_without_an_endpoint_it_is_off_and_fastapi_does_nothing_for_it() -> None:
    assert tracing_of("headway-api").provider is None
    assert not create_app(Settings())._native_telemetry.enabled()


@pytest.mark.parametrize("name", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_with_an_endpoint_it_is_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SOMEWHERE)
    assert tracing_of("headway-api").provider is not None
    assert create_app(Settings())._native_telemetry.enabled()


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")])
def test_it_can_be_turned_off_where_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(ENDPOINT, SOMEWHERE)
    monkeypatch.setenv(name, value)
    assert tracing_of("headway-api").provider is None


@pytest.mark.parametrize(
    ("env", "service"),
    [
        ({}, "headway-worker"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=of-a-resource,deployment.environment.name=test"}, "of-a-resource"),
    ],
)
def test_the_service_has_a_name_of_ours_unless_it_is_given_one(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], service: str
) -> None:
    for name, value in (env | {ENDPOINT: SOMEWHERE}).items():
        monkeypatch.setenv(name, value)
    provider = tracing_of("headway-worker").provider
    assert provider is not None
    assert provider.resource.attributes["service.name"] == service


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ENDPOINT, "collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_variable_and_an_example(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(ENDPOINT, SOMEWHERE)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name}: .*Example: {name}="):
        tracing_of("headway-api")


@pytest.mark.parametrize("package", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_the_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setenv(ENDPOINT, SOMEWHERE)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: .*pip install 'headway\[tracing\]'"):
        tracing_of("headway-api")


def test_off_it_imports_nothing_and_makes_nothing() -> None:
    asked = """
import sys, headway.worker.main
from headway.shared.tracing import tracing_of
tracing = tracing_of("headway-worker")
with tracing.span("process", "consumer", parent="x", task_id="y") as span:
    span.set(outcome="completed"), span.rename("z"), span.link(None), span.fail("no"), span.event("phase", step=1)
    tracing.event("phase"), tracing.past("last event sent", "x", started_ns=1, ended_ns=2)
sys.exit(tracing.here() is not None or any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", asked], check=False, timeout=60).returncode == 0


def test_a_payload_carries_the_span_that_queued_it_and_one_of_before_there_were_any_carries_none() -> None:
    traced, plain = JobTicket.new(TASK, 1, TRACEPARENT), JobTicket.new(TASK, 1)
    assert traceparent_of(traced.payload) == TRACEPARENT
    assert traceparent_of(plain.payload) is None
    assert TRACEPARENT not in plain.payload.decode()


def test_a_worker_of_before_there_were_traces_understands_a_traced_payload() -> None:
    name, args, kwargs, *_ = deserialize_job_raw(JobTicket.new(TASK, 1, TRACEPARENT).payload, deserializer=deserialize)
    assert (name, list(args), kwargs) == (PROCESS_FILE, [TASK], {})


@pytest.mark.parametrize("value", ["", "no traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", TRACEPARENT + "\n"])
def test_a_parent_that_is_none_is_not_believed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(ENDPOINT, SOMEWHERE)
    tracing = tracing_of("headway-worker")
    with tracing.span("process", parent=value, link=value):
        here = tracing.here()
    assert here is not None
    assert TRACEPARENT[3:35] not in here


def test_a_span_goes_on_where_its_parent_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, SOMEWHERE)
    tracing = tracing_of("headway-worker")
    with tracing.span("process", parent=TRACEPARENT):
        here = tracing.here()
    assert here is not None
    assert (here[:36], here != TRACEPARENT) == (TRACEPARENT[:36], True)
    assert tracing.here() is None
    assert OFF.here() is None


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/tasks", "/tasks"),
        (f"/tasks/{TASK}/upload", f"/tasks/{TASK}/upload"),
        (f"/tasks/{TASK}/files/my wages.csv", f"/tasks/{TASK}/files/REDACTED"),
        ("/download/a/b", "/download/REDACTED"),
        ("/download-large-csv", "/download-large-csv"),
        ("/batches/the-wages-of-may/events", "/batches/REDACTED"),
        ("/tasks/eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "/tasks/REDACTED"),
        ("/", "/"),
    ],
)
def test_a_path_shows_what_is_ours(path: str, shown: str) -> None:
    assert plain_path(path) == shown
