"""deploy/kubernetes fits the program: commands, settings, secrets, probes, ports, rights and the time to go."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import typer

from headway.api.app import create_app
from headway.cli.main import app as cli
from headway.shared.settings import Settings
from headway.worker import healthcheck
from tests.manifests import ALL, BASE, KUSTOMIZATIONS, NAMED, OURS, PODS, ROOT, TEMPLATE, container, pod, read, workload
from tests.processes import free_port, redis_binary
from tests.waiting import wait_for

#: What is no setting of ours: uvicorn's, and those of every S3 client.
OTHERS_VARIABLES: Final = {"FORWARDED_ALLOW_IPS", "AWS_REGION"}


def test_the_image_is_of_this_version() -> None:
    (image,) = read(BASE / "kustomization.yaml")["images"]
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert image["newTag"] == version[1]
    assert {container(name)["image"] for name in OURS} == {image["name"]}


@pytest.mark.parametrize("name", OURS)
def test_a_pod_runs_a_command_that_there_is(name: str) -> None:
    program, command, *options = container(name)["args"]
    assert program == "headway"
    known = typer.main.get_command(cli).commands[command]  # type: ignore[attr-defined]
    known.make_context(command, list(options))  # raises for an option that is none


def literals() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in KUSTOMIZATIONS:
        for generator in read(path).get("configMapGenerator", []):
            found |= dict(literal.split("=", 1) for literal in generator.get("literals", []))
    return found


def variables() -> Iterator[str]:
    yield from literals()
    for name in OURS:
        yield from (variable["name"] for variable in container(name)["env"])


def test_every_variable_is_a_setting_and_every_value_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
    assert set(variables()) - OTHERS_VARIABLES <= settings
    given = literals() | {
        one["name"]: one["value"] for name in OURS for one in container(name)["env"] if "value" in one
    }
    secret = read(TEMPLATE)["stringData"]
    for name in OURS:
        for variable in container(name)["env"]:
            if "valueFrom" in variable:
                given[variable["name"]] = secret[variable["valueFrom"]["secretKeyRef"]["key"]]
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert Settings(_env_file=None).worker_concurrency == 2


def references(value: Any) -> Iterator[tuple[str, str]]:
    """Every (secret, key) that is asked for."""
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "credentials" in value:
            yield value["credentials"]["name"], value["credentials"]["key"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_the_template_of_the_secret_and_the_script_have_what_is_asked_for(tmp_path: Path) -> None:
    secret = read(TEMPLATE)
    template = {(secret["metadata"]["name"], key) for key in secret["stringData"]}
    assert set(references(ALL)) == template
    script = str(ROOT / "deploy" / "new-secrets")
    subprocess.run(["sh", script, str(tmp_path / "made"), "alice"], check=True, timeout=20)
    assert {file.name for file in (tmp_path / "made").iterdir()} >= set(secret["stringData"])
    url = (tmp_path / "made" / "api-redis-url").read_text()
    assert re.match(r"redis://api:\w+@redis:6379/0$", url)
    assert NAMED["Service", "redis"]["spec"]["ports"][0]["port"] == 6379


def test_probes_ask_routes_that_there_are_on_ports_that_there_are() -> None:
    routes = create_app(Settings()).openapi()["paths"]
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    asked = {probe: container("headway-api")[probe]["httpGet"] for probe in probes}
    assert {get["path"] for get in asked.values()} <= set(routes)
    assert asked["readinessProbe"]["path"] == "/readyz"
    # A Redis that is away must not end the process that holds the streams.
    assert asked["livenessProbe"]["path"] == "/healthz"
    for monitor in (document for document in ALL if document["kind"] == "PodMonitor"):
        of_pod = container(monitor["metadata"]["name"])
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in {port["name"] for port in of_pod["ports"]}
    for name in PODS:
        named = {port["name"] for port in container(name)["ports"]}
        for probe in probes:
            how = container(name).get(probe, {})
            assert how.get("httpGet", how.get("tcpSocket", {"port": next(iter(named))}))["port"] in named


def test_a_worker_is_ended_where_redis_misses_it_and_not_where_redis_is_away(tmp_path: Path) -> None:
    assert container("headway-worker")["readinessProbe"]["exec"]["command"] == ["python", "-m", healthcheck.__name__]
    command = container("headway-worker")["livenessProbe"]["exec"]["command"]
    python = tmp_path / "python"

    def code_where(said: str, code: int) -> int:
        python.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {code}\n")
        python.chmod(0o755)
        return subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False, timeout=20).returncode

    assert code_where("", 0) == 0
    assert code_where("Redis cannot be reached", 1) == 0
    silent = re.search(r'return "(no worker of this host[^"]*)"', Path(healthcheck.__file__).read_text())
    assert silent is not None
    assert code_where(silent[1], 1) == 1


def test_ports_agree_from_the_way_in_to_the_command() -> None:
    api, worker, redis = (container(name) for name in PODS)
    (http,), (metrics,), (port,) = api["ports"], worker["ports"], redis["ports"]
    assert api["args"][-2:] == ["--port", str(http["containerPort"])]
    given = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert given["HEADWAY_METRICS_PORT"] == str(metrics["containerPort"])
    assert given["HEADWAY_METRICS_HOST"] == "0.0.0.0"
    assert port["containerPort"] == 6379
    (service,) = NAMED["Service", "headway-api"]["spec"]["ports"]
    assert service["targetPort"] == http["name"]
    (rule,) = NAMED["HTTPRoute", "headway"]["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "headway-api", "port": service["port"]}]
    (host,) = NAMED["Ingress", "headway"]["spec"]["rules"]
    backend = host["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "headway-api", "port": {"name": service["name"]}}
    for name, policed in (("headway-api", http), ("headway-worker", metrics), ("headway-redis", port)):
        assert NAMED["NetworkPolicy", name]["spec"]["ingress"][0]["ports"] == [{"port": policed["name"]}]


def test_selectors_find_their_pods() -> None:
    for name in PODS:
        spec = workload(name)
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels == {"app.kubernetes.io/name": name}
        assert NAMED["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"] == labels
    for (kind, name), document in NAMED.items():
        if kind in ("PodDisruptionBudget", "PodMonitor"):
            assert document["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
    claims = {volume["persistentVolumeClaim"]["claimName"] for name in OURS for volume in pod(name)["volumes"][:1]}
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= set(NAMED)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_rights_it_does_not_need(name: str) -> None:
    spec, only = pod(name), container(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if name in OURS:
        user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert user is not None
        assert spec["securityContext"]["runAsUser"] == int(user[1])
        assert spec["securityContext"]["fsGroup"] == int(user[2])


def test_a_pod_that_goes_has_the_time_it_needs() -> None:
    api, worker = pod("headway-api"), pod("headway-worker")
    before = container("headway-api")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert api["terminationGracePeriodSeconds"] >= before + 2 + 3  # the contract's drain, and slack
    assert worker["terminationGracePeriodSeconds"] >= 5 + 3
    for name in OURS:
        assert workload(name)["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_worker_has_room_for_the_tasks_it_runs_at_once() -> None:
    limit = container("headway-worker")["resources"]["limits"]["memory"]
    given = literals()
    tasks = (
        int(given["HEADWAY_WORKER_CONCURRENCY"]) * int(given["HEADWAY_TASK_MEMORY_BYTES"].removesuffix("GiB")) * 1024
    )
    assert int(limit.removesuffix("Mi")) >= tasks + 512


def test_redis_starts_with_the_users_and_the_passwords_of_the_secret(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "redis-server").symlink_to(redis_binary())
    shutil.copy(BASE / "redis-users.acl", tmp_path)
    *shell, script = container("headway-redis")["command"]
    for there, here in (("/etc/redis", tmp_path), ("/data", tmp_path), ("/tmp/users.acl", tmp_path / "users.acl")):
        script = script.replace(f" {there}", f" {here}")
    script = f"{script.rstrip()} --port {port} --bind 127.0.0.1"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "API_URL": "redis://api:first@redis:6379/0"}
    server = subprocess.Popen([*shell, script], env=env | {"WORKER_URL": "rediss://worker:second@redis:6379/0"})
    try:
        *_, probe = container("headway-redis")["readinessProbe"]["exec"]["command"]
        probe = probe.replace("redis-cli", f"redis-cli -p {port}")
        if shutil.which("redis-cli") is not None:
            wait_for("Redis is ready", lambda: subprocess.run(["sh", "-c", probe], check=False).returncode == 0)
        with redis.Redis(port=port, username="health", password="health") as prober:
            wait_for("Redis answers", lambda: answers(prober))
        for user, password in (("api", "first"), ("worker", "second")):
            with redis.Redis(port=port, username=user, password=password, decode_responses=True) as client:
                policy: Any = client.config_get("maxmemory*")
                assert policy["maxmemory-policy"] == "noeviction"
                assert int(policy["maxmemory"]) < mebibytes(container("headway-redis")["resources"]["limits"]["memory"])
                kept: Any = client.config_get("append*")
                assert kept["appendonly"] == "yes"
    finally:
        server.kill()
        server.wait()


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def mebibytes(text: str) -> int:
    return int(text.removesuffix("Mi")) * 1024**2
