"""A file that is not in memory is brought there by a thread: the event loop never waits for a disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from headway.api.downloads.sendfile import Connection, _bring_to_memory, _in_memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked what is in memory")
def test_what_a_disk_must_be_asked_for_is_known_and_brought(tmp_path: Path) -> None:
    path = tmp_path / "cold.bin"
    path.write_bytes(b"x" * 1_000_000)
    file = os.open(path, os.O_RDONLY)
    try:
        assert _in_memory(file, 999_999)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if _in_memory(file, 999_999):
            pytest.skip("this file system keeps its files in memory")
        _bring_to_memory(file, 0, 1_000_000)
        assert _in_memory(file, 999_999)
    finally:
        os.close(file)


@pytest.mark.parametrize("send", [None, print, object().__str__])
def test_of_another_server_no_connection_is_known(send: object) -> None:
    assert Connection.of({"type": "http", "headway.send": send}) is None
    assert Connection.of({"type": "http"}) is None
