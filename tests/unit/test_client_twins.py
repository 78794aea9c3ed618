"""The two Python clients are one: headway/client/sync.py is what scripts/sync_client.py makes of
headway/client/aio.py."""

from __future__ import annotations

import ast

from scripts.sync_client import ROOM, twin


def test_the_client_without_an_event_loop_is_the_one_with_it() -> None:
    made = twin((ROOM / "aio.py").read_text(encoding="utf-8"))
    there = (ROOM / "sync.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(there)) == ast.dump(ast.parse(made))
