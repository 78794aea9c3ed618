"""What a box costs: from asking for a child to its last word, and until nothing of it is left, at each level of walls.

    python -m benchmarks.boxes [--rounds 40]

The processor does nothing to speak of (`checksum` of five bytes). The levels take turns, so that what else the machine
does falls on all of them alike; `off` is a child without any wall. CPU time is that of the keeper and the child.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from headway.worker.box.walls import NAMESPACES, Box
from headway.worker.sandbox import Sandbox

LEVELS = {"off": Box("off"), "Landlock and seccomp": Box(without=NAMESPACES), "all walls": Box()}


async def one(sandbox: Sandbox, folder: Path, number: int) -> tuple[float, float]:
    output = folder / f"output-{number}"
    output.mkdir()
    spec: dict[str, Any] = {
        "processor": "checksum", "options": {}, "input_path": str(folder / "input"), "output_folder": str(output),
        "filename": "input", "content_type": None, "size_bytes": 5, "memory_bytes": 1024**3, "attempt": 1,
        "restored": None,
    }  # fmt: skip
    began = time.perf_counter()
    said = 0.0
    async with sandbox.attempt(spec) as child:
        async for message in child.messages():
            if not said:
                said = time.perf_counter() - began
            if message["kind"] == "done":
                break
    return said, time.perf_counter() - began


async def main(rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LEVELS}
    cpu: dict[str, list[float]] = {name: [] for name in LEVELS}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        (folder / "input").write_bytes(b"hello")
        sandboxes = {}
        for name, box in LEVELS.items():

            def used(_: str, seconds: float, __: int, into: list[float] = cpu[name]) -> None:
                into.append(seconds)

            sandboxes[name] = await stack.enter_async_context(Sandbox([], used, box=box))
        for number in range(rounds):
            for name, sandbox in sandboxes.items():
                found[name].append(await one(sandbox, folder, number * len(LEVELS) + list(LEVELS).index(name)))
    print(f"{'':24}first word               nothing left             CPU")
    for name, times in found.items():
        first, whole = ([one[index] * 1000 for one in times] for index in (0, 1))
        print(
            f"{name:24}{statistics.median(first):5.1f} ms (least {min(first):4.1f})"
            f"  {statistics.median(whole):5.1f} ms (least {min(whole):4.1f})"
            f"  {statistics.median(cpu[name]) * 1000:5.1f} ms"
        )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=40)
    asyncio.run(main(arguments.parse_args().rounds))
