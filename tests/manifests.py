"""The manifests of deploy/kubernetes as tests read them: every document, and the pods by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

ROOT: Final = Path(__file__).parents[1]
BASE: Final = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS: Final = sorted(BASE.rglob("kustomization.yaml"))
MANIFESTS: Final = sorted(set(BASE.rglob("*.yaml")) - set(KUSTOMIZATIONS))
#: The template of the secret is filled in by hand, and never applied as it is.
TEMPLATE: Final = BASE / "secret.example.yaml"
PODS: Final = ("headway-api", "headway-worker", "headway-redis")
OURS: Final = PODS[:2]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def read(path: Path) -> dict[str, Any]:
    (document,) = documents(path)
    return document


ALL: Final = [document for path in MANIFESTS for document in documents(path)]
NAMED: Final = {(document["kind"], document["metadata"]["name"]): document for document in ALL}


def workload(name: str) -> dict[str, Any]:
    """The spec of a Deployment or StatefulSet."""
    spec: dict[str, Any] = NAMED["StatefulSet" if name == "headway-redis" else "Deployment", name]["spec"]
    return spec


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = workload(name)["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    assert isinstance(only, dict)
    return only
