"""A client that is generated from `/openapi.json` compiles, and works: TypeScript by openapi-typescript, Python by
openapi-python-client. Each submits a file, reads the result, and is told of a mistake by the types of the document."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.npm import installed
from tests.processes import Platform

HERE: Final = Path(__file__).parent
CONTENT: Final = b"one two three"
EXPECTED: Final = {
    "status": "completed",
    "attempt": 1,
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "problem": "urn:headway:problem:invalid-request",
    "field": "processor",
}
SECONDS: Final = 200

#: As use.ts.
USE_PYTHON: Final = """
import json, sys, time
from io import BytesIO
from generated import Client
from generated.api.resumable_uploads import get_upload_capabilities, send_piece
from generated.api.tasks import get_task, submit_task
from generated.models import Announcement, Problem, Status, SubmittedTask, Submission, Task
from generated.types import File

client = Client(base_url=sys.argv[1], timeout=60)
form = Submission(processor="checksum", file=File(BytesIO(b"one two three"), "a.txt"))
task = submit_task.sync(client=client, body=form)
assert isinstance(task, SubmittedTask), task
while True:
    found = get_task.sync(task.task_id, client=client)
    assert isinstance(found, Task), found
    if found.finished_at is not None:
        break
    time.sleep(0.1)
assert found.finished_at >= found.created_at
refused = submit_task.sync(client=client, body=Announcement(processor="nothing"))
assert isinstance(refused, Problem), refused
spoken = get_upload_capabilities.sync_detailed(client=client)
assert spoken.headers["tus-version"] == "1.0.0"
print(json.dumps({
    "status": found.status, "attempt": found.attempt, "sha256": found.result.summary["sha256"],
    "problem": refused.type_, "field": refused.errors[0].field,
}))
"""
#: The generator knows no `application/offset+octet-stream`; without this it leaves out what sends pieces.
GENERATOR: Final = (
    "post_hooks: []\ncontent_type_overrides:\n  application/offset+octet-stream: application/octet-stream\n"
)


def run(*command: str | Path, cwd: Path, **more: Any) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def document_of(platform: Platform, folder: Path) -> Path:
    path = folder / "openapi.json"
    path.write_text(httpx.get(f"{platform.url}/openapi.json").text)
    return path


def test_a_typescript_client_compiles_and_works(platform: Platform, tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no node here")
    packages = installed(HERE)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(HERE / "use.ts", tmp_path)
    document_of(platform, tmp_path)
    binaries = packages / "node_modules" / ".bin"
    run(binaries / "openapi-typescript", "openapi.json", "-o", "api.d.ts", cwd=tmp_path)
    strict = ("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes")
    target = ("--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext")
    run(binaries / "tsc", *strict, *target, "use.ts", cwd=tmp_path)
    assert json.loads(run(node, "use.js", platform.url, cwd=tmp_path)) == EXPECTED


def test_a_python_client_compiles_and_works(platform: Platform, tmp_path: Path) -> None:
    document = document_of(platform, tmp_path)
    (tmp_path / "generator.yml").write_text(GENERATOR)
    said = run(
        *(sys.executable, "-m", "openapi_python_client", "generate", "--path", document),
        *("--output-path", "generated", "--meta", "none", "--config", "generator.yml", "--fail-on-warning"),
        cwd=tmp_path,
    )
    assert "WARNING" not in said
    run(sys.executable, "-W", "error", "-m", "compileall", "-q", "generated", cwd=tmp_path)
    assert json.loads(run(sys.executable, "-c", USE_PYTHON, platform.url, cwd=tmp_path)) == EXPECTED
