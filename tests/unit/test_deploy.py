"""The stack and what watches it, without Docker: docker-compose.yml and its overlays, secrets, rules, the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from headway.shared.settings import Settings, load_settings

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
RULES: Final = DEPLOY / "observability" / "rules.yml"
BASES: Final = {"python:3.13-slim", "redis:8-alpine"}
OVERLAYS: Final = sorted(path.name for path in DEPLOY.glob("compose.*.yml"))
#: The stack's own, by a secret of each service: what .env says is for the machine around it.
BY_SECRET: Final = {"HEADWAY_REDIS_URL"}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Knows compose's `!override`."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), _Loader)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = read(ROOT / "docker-compose.yml")
    return loaded


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    text = (DEPLOY / "observability" / "grafana" / "dashboards" / "headway.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def images_of(compose: dict[str, Any], *, profile: str | None) -> set[str]:
    """What the services of a profile run on, those of their Dockerfiles included; None: what plain `up` starts."""
    images: set[str] = set()
    for service in compose["services"].values():
        if profile not in service.get("profiles", [None]):
            continue
        build = service.get("build")
        if build is None:
            images.add(service["image"])
            continue
        dockerfile = "Dockerfile" if isinstance(build, str) else build["dockerfile"]
        images |= set(re.findall(r"^FROM (\S+)", (ROOT / dockerfile).read_text(), re.MULTILINE))
    return images


def test_plain_up_needs_two_images_and_none_is_pinned_by_a_digest(compose: dict[str, Any]) -> None:
    assert images_of(compose, profile=None) == BASES
    for name in ("docker-compose.yml", *(f"deploy/{overlay}" for overlay in OVERLAYS)):
        for service in read(ROOT / name)["services"].values():
            assert "@sha256" not in service.get("image", "")
            assert not service.get("image", "").endswith(":latest")


def test_the_stack_passes_every_setting_on_to_the_api_and_the_worker(compose: dict[str, Any]) -> None:
    variables = {f"HEADWAY_{name.upper()}" for name in Settings.model_fields}
    for service in ("api", "worker"):
        passed = {name for name in compose["services"][service]["environment"] if name.startswith("HEADWAY_")}
        secrets = {secret["target"] for secret in compose["services"][service]["secrets"] if isinstance(secret, dict)}
        assert passed == variables - BY_SECRET
        assert secrets == BY_SECRET


def test_only_the_proxy_is_published_and_on_loopback_unless_asked_otherwise(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published.keys() == {"proxy", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_every_container_is_without_rights_and_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name
        assert service["healthcheck"]["test"], name
    assert compose["services"]["api"]["volumes"] == compose["services"]["worker"]["volumes"]


def test_redis_is_waited_for_and_keeps_what_it_is_told(compose: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        assert compose["services"][name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    # Else it would be stopped before the API, and cut the streams that the API ends whole.
    assert "depends_on" not in compose["services"]["proxy"]
    start = (DEPLOY / "redis-start").read_text()
    for option in ("--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction", "--aclfile"):
        assert option in start


def test_every_file_that_the_stack_mounts_is_in_the_checkout(compose: dict[str, Any]) -> None:
    files = [compose, *(read(DEPLOY / overlay) for overlay in OVERLAYS)]
    mounted = [
        volume for file in files for service in file["services"].values() for volume in service.get("volumes", [])
    ]
    for path in {volume.split(":")[0] for volume in mounted if volume.startswith("./")}:
        assert (ROOT / path).exists(), path
    for file in files:
        for secret in file.get("secrets", {}).values():
            name = secret["file"].removeprefix("${HEADWAY_SECRETS_DIR:-./deploy/secrets}/")
            assert (DEPLOY / "secrets" / name).is_file(), name


def test_the_secrets_of_a_fresh_checkout_are_open_mode_and_a_new_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headway.shared.settings.SECRETS_DIR", DEPLOY / "secrets")
    assert load_settings().api_keys == {}
    subprocess.run(["sh", DEPLOY / "new-secrets", "made", "alice", "bob"], check=True, cwd=tmp_path)
    made = tmp_path / "made"
    assert {path.name for path in made.iterdir()} == {path.name for path in (DEPLOY / "secrets").iterdir()}
    assert made.stat().st_mode & 0o077 == 0
    shutil.copy(made / "worker-sentinel-url", made / "HEADWAY_REDIS_URL")
    monkeypatch.setattr("headway.shared.settings.SECRETS_DIR", made)
    settings = load_settings()
    assert settings.redis_url.startswith("redis+sentinel://worker:")
    assert settings.api_keys.keys() == {"alice", "bob"}
    metrics_key = (made / "metrics-key").read_text().strip()
    assert metrics_key in {key.get_secret_value() for key in settings.api_keys.values()}


def test_each_metric_that_a_rule_or_the_dashboard_asks_for_is_one_that_we_have() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `(headway_\w+)` \|", reference, re.MULTILINE))
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    for expression in [*panels, *(rule["expr"] for rule in alerts())]:
        for name in re.findall(r"\bheadway_\w+", expression):
            assert re.sub(r"_bucket$", "", name) in known, expression


def test_every_alert_has_a_severity_a_summary_and_a_heading_that_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
    operating = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (Headway\w+)$", operating, re.MULTILINE)
    assert set(headings) == {rule["alert"] for rule in alerts()}


def test_what_the_image_leaves_out_is_needed_by_nothing_that_runs_in_it() -> None:
    left_out = re.findall(r"--no-install-package=(\S+?)[ \"]", (ROOT / "Dockerfile").read_text().replace("\\\n", " "))
    modules = [{"pyyaml": "yaml", "markdown-it-py": "markdown_it"}.get(name, name) for name in left_out]
    assert len(modules) > 5
    running = "api.serving.server worker.main worker.child worker.forkserver worker.healthcheck cli.main cli.watch"
    imports = ", ".join(f"headway.{name}" for name in (*running.split(), "cli.tasks", "cli.submit", "cli.doctor"))
    program = f"import sys; sys.modules.update(dict.fromkeys({modules})); import {imports}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yml"], cwd=RULES.parent, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (RULES.parent / "rules_test.yml").read_text()
    assert [rule["alert"] for rule in alerts() if rule["alert"] not in tested] == []


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker here")
@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_compose_takes_the_files(overlay: str | None) -> None:
    files = ["-f", "docker-compose.yml", *(("-f", f"deploy/{overlay}") if overlay else ())]
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("this docker has no compose")
    done = subprocess.run(
        ["docker", "compose", *files, "--profile", "*", "config", "--quiet"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HEADWAY_SITE": "localhost"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
