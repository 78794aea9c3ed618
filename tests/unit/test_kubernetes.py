"""deploy/kubernetes is what Kubernetes takes, and what kustomize builds.

Kubernetes' own kinds are checked against the schemas that `kubernetes-validate` brings, unknown fields refused; those
that are not (the Gateway API's, the Prometheus operator's) by the fields listed here.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from kubernetes_validate.utils import all_versions  # type: ignore[import-untyped]

from tests.manifests import ALL, BASE, KUSTOMIZATIONS, MANIFESTS, NAMED, ROOT, TEMPLATE, read

#: A version stands there twice, with unknown fields allowed and refused.
NEWEST: Final = list(dict.fromkeys(all_versions()))[-2:]
#: Of the kinds that are not Kubernetes' own, the fields used; gateway-api.sigs.k8s.io and prometheus-operator.dev.
FOREIGN: Final = {
    "HTTPRoute": {
        "spec": {"parentRefs", "hostnames", "rules"},
        "spec.rules": {"backendRefs", "timeouts"},
        "spec.rules.timeouts": {"request", "backendRequest"},
    },
    "PodMonitor": {
        "spec": {"jobLabel", "selector", "podMetricsEndpoints"},
        "spec.podMetricsEndpoints": {"port", "path", "authorization"},
        "spec.podMetricsEndpoints.authorization": {"credentials"},
    },
}


def name_of(entry: object) -> str:
    return f"{entry['kind']} {entry['metadata']['name']}" if isinstance(entry, dict) else str(entry)


def keys_at(document: Any, path: str) -> set[str]:
    found = [document]
    for part in path.split("."):
        found = [value[part] for value in found if part in value]
        found = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return {key for value in found for key in value}


def test_there_is_something_to_check() -> None:
    assert len(MANIFESTS) >= 9
    assert len(NEWEST) == 2


@pytest.mark.parametrize("version", NEWEST)
@pytest.mark.parametrize("document", [document for document in ALL if document["kind"] not in FOREIGN], ids=name_of)
def test_every_document_is_what_kubernetes_takes(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    wrong = copy.deepcopy(NAMED["Deployment", "headway-api"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST[-1], strict=True)


@pytest.mark.parametrize("document", [document for document in ALL if document["kind"] in FOREIGN], ids=name_of)
def test_the_kinds_of_others_have_known_fields_alone(document: dict[str, Any]) -> None:
    for path, fields in FOREIGN[document["kind"]].items():
        assert keys_at(document, path) <= fields


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_lists_every_manifest_beside_it(path: Path) -> None:
    assert read(path)["kind"] == ("Kustomization" if path.parent == BASE else "Component")
    beside = {file.name for file in path.parent.glob("*.yaml")} - {path.name, TEMPLATE.name}
    assert set(read(path).get("resources", [])) == beside


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here, which has kustomize in it")
def test_the_base_with_every_component_is_built_by_kustomize(tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes"
    shutil.copytree(BASE, copy)
    components = [f"../kubernetes/components/{path.parent.name}" for path in KUSTOMIZATIONS if path.parent != BASE]
    overlay = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "somewhere"}
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text(
        yaml.safe_dump({**overlay, "resources": ["../kubernetes"], "components": components})
    )
    built = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "overlay")], capture_output=True, text=True, check=False, timeout=50
    )
    assert built.returncode == 0, built.stderr
    made = list(yaml.safe_load_all(built.stdout))
    assert {document["metadata"]["namespace"] for document in made} == {"somewhere"}
    for document in made:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, NEWEST[-1], strict=True)
    kinds = {document["kind"] for document in made}
    assert {"HTTPRoute", "Ingress", "PodMonitor"} <= kinds
    assert "PersistentVolumeClaim" not in kinds  # the bucket has taken its place
    for document in made:
        if document["kind"] == "Deployment":
            data = document["spec"]["template"]["spec"]["volumes"][0]
            assert data["name"] == "data"
            assert "emptyDir" in data


def test_redis_has_the_users_that_compose_has() -> None:
    """A copy, because kustomize reads nothing above its folder."""
    same = (BASE / "redis-users.acl").read_text() == (ROOT / "deploy" / "redis-users.acl").read_text()
    assert same, "cp deploy/redis-users.acl deploy/kubernetes/"
