"""Packages of npm for tests: as locked, installed into a folder of the cache, once, by whoever comes first."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0")


def installed(source: Path, *scripts: str) -> Path:
    """A folder with the packages of `source`'s lock file and its scripts; it is named for what is in it. Skips the test
    where npm is missing, or does not get them."""
    names = ("package.json", "package-lock.json", *scripts)
    content = hashlib.sha256(b"".join((source / name).read_bytes() for name in names)).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headway-tests"
    folder = cache / f"{source.name.replace('_', '-')}-{content[:16]}"
    if folder.exists():
        return folder
    if (npm := shutil.which("npm")) is None:
        pytest.skip("there is no npm here")
    making = folder.with_suffix(f".{os.getpid()}")
    making.mkdir(parents=True)
    for name in names:
        shutil.copy(source / name, making)
    try:
        done = subprocess.run([npm, *INSTALL], cwd=making, capture_output=True, text=True, timeout=40)
        if done.returncode != 0:
            pytest.skip(f"npm ci cannot install the clients: {done.stderr.strip().splitlines()[-1:]}")
        making.rename(folder)
    except (subprocess.TimeoutExpired, OSError):
        if not folder.exists():
            pytest.skip("npm ci does not answer: no package registry?")
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder
