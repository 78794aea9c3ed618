"""The same attackers and the same honest work, run by a user without any right, where this test itself is root.

The user must reach Python and the checkout. Where they lie in a folder that is root's alone, a mount namespace of the
test's own shows that folder with nothing in it but them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534
WORLD_MAY_PASS = 0o001


def hidden_by(path: Path) -> Path | None:
    """The first folder on the way that only its owner may pass."""
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & WORLD_MAY_PASS), None)


def uncovering(needed: list[Path]) -> str:
    """Shell commands that show what is needed of folders that are root's alone."""
    lines = []
    for number, path in enumerate(dict.fromkeys(needed)):
        if (folder := hidden_by(path)) is not None:
            aside = f"/mnt/needed-{number}"
            lines.append((folder, path, aside))
    commands = ["mount -t tmpfs tmpfs /mnt"]
    commands += [f"mkdir {aside} && mount --bind {shlex.quote(str(path))} {aside}" for _, path, aside in lines]
    commands += [f"mount -t tmpfs -o mode=755 tmpfs {folder}" for folder in dict.fromkeys(one[0] for one in lines)]
    commands += [f"mkdir -p {path} && mount --bind {aside} {path}" for _, path, aside in lines]
    return " && ".join(commands)


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="it takes root to become another user")
def test_the_box_holds_for_a_user_without_rights(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("setpriv and unshare (util-linux) are not here")
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True, timeout=20).returncode:
        pytest.skip("this root may not make a mount namespace")
    base = Path(f"/tmp/headway-nobody-{os.getpid()}")
    base.mkdir(mode=0o700)
    os.chown(base, NOBODY, NOBODY)
    drop = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all --bounding-set=-all"
    run = f"{sys.executable} -m pytest -q -p no:cacheprovider -p no:randomly --basetemp {base}/t -rs -k everything"
    what = "tests/security/test_attackers.py tests/security/test_honest_work.py"
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    script = f"{uncovering(needed)} && cd {ROOT} && exec {drop} {run} {what}"
    path = f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"  # ours may lie where something is mounted over it
    try:
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            env={"PATH": path, "HOME": str(base), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=580, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(base, ignore_errors=True)
    last = ended.stdout[-6000:]
    assert ended.returncode == 0, f"{last}\n{ended.stderr[-2000:]}"
    if "this machine lacks" in last:
        pytest.skip(f"users may make no namespaces here: {last}")
