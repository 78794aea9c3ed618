"""The processor `checksum`: a file's SHA-256 and BLAKE3 in the time of SHA-256 alone.

The file is read once, into two buffers that take turns, so memory does not grow with the file. Reading and both hashes
let go of the GIL: a thread of its own reads a buffer and has BLAKE3 take it, while this one has SHA-256, the slower
hash, take the buffer before. On one core the time is the sum of all three.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from headway.shared.tasks.processors import Job, processor

#: Large enough that handing a buffer over costs nothing beside hashing it (about a millisecond), small enough that
#: both stay in a CPU's cache while both threads read them.
BUFFER_BYTES: Final = 2 * 1024 * 1024


@processor("checksum", description="SHA-256 and BLAKE3 of the file", phases={"Hashing": 1})
def checksum(job: Job) -> dict[str, Any]:
    """Hashes the whole file, an empty one too.

    Summary: `sha256` and `blake3`, 64 lower-case hex digits each, and `size_bytes`, which is what was read.
    """
    sha256, other, size_bytes = hashlib.sha256(), blake3(), 0
    with (
        job.phase("Hashing", total=job.size_bytes, unit="bytes"),
        # Unbuffered and by its path: the buffers are ours, and `readinto` is not part of what `open_input` promises.
        Path(job.input_path).open("rb", buffering=0) as file,
        ThreadPoolExecutor(1, thread_name_prefix="blake3") as ahead,
    ):

        def read(buffer: memoryview) -> memoryview:
            """The next of the file, already taken by BLAKE3; empty at its end."""
            chunk = buffer[: file.readinto(buffer)]
            other.update(chunk)
            return chunk

        free, next_free = (memoryview(bytearray(BUFFER_BYTES)) for _ in range(2))
        coming = ahead.submit(read, free)
        while chunk := coming.result():
            free, next_free = next_free, free
            coming = ahead.submit(read, free)
            sha256.update(chunk)
            size_bytes += len(chunk)
            job.advance(len(chunk))
    return {"sha256": sha256.hexdigest(), "blake3": other.hexdigest(), "size_bytes": size_bytes}
