"""What a processor legitimately does, each kind by itself. An answer that is not there raised."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import duckdb
from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]

from headway.shared.tasks.processors import Job, Options, processor

HERE = Path(__file__).parent


class What(Options):
    name: str = ""
    path: str = ""


def square(number: int) -> int:
    return number * number


def with_pool(_: Job) -> Any:
    with multiprocessing.Pool(2) as pool:
        return pool.map(square, range(5))


def with_executor(_: Job) -> Any:
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        return list(pool.map(square, range(5)))


def with_spawn(_: Job) -> Any:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(square, 3).result()


def with_manager(_: Job) -> Any:
    with multiprocessing.Manager() as manager:
        shared = manager.dict(a=1)
        return dict(shared)


def with_shared_memory(_: Job) -> Any:
    made = shared_memory.SharedMemory(create=True, size=4096)
    assert made.buf is not None
    made.buf[:2] = b"ok"
    again = shared_memory.SharedMemory(made.name)
    assert again.buf is not None
    found = bytes(again.buf[:2]).decode()
    again.close()
    made.close()
    made.unlink()
    return found


def with_threads(_: Job) -> Any:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(1)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(found)


def with_a_program(_: Job) -> Any:
    script = "import json, ssl, sqlite3, hashlib; print(2 + 2)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def with_a_script(_: Job) -> Any:
    return subprocess.run(
        "echo $((2 + 2)) | cat", shell=True, capture_output=True, text=True, check=True
    ).stdout.strip()


def with_temporary_files(_: Job) -> Any:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 1_000_000)
        path = Path(folder) / "x"
        path.write_bytes(b"x")
        shutil.copy2(path, Path(folder) / "y")
        shutil.copytree(folder, Path(folder).with_suffix(".copy"))
        return sorted(entry.name for entry in Path(folder).iterdir())


def with_an_archive(_: Job) -> Any:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("deep/er/file", "x")
    with zipfile.ZipFile("a.zip") as archive:
        archive.extractall("out")
    Path("out/deep").chmod(0o700)
    os.utime("out/deep", (1, 1))
    return Path("out/deep/er/file").read_text()


def with_duckdb(job: Job) -> Any:
    """More than fits, so that it spills to its folder of temporary files."""
    database = duckdb.connect(config={"memory_limit": "60MB", "threads": 1})
    query = "select count(*) from (select i, hash(i) h from range(4000000) t(i) order by h) where h > 0"
    found = database.execute(query).fetchone()
    assert found is not None
    return found[0] > 0


def with_pillow(_: Job) -> Any:
    image = Image.effect_noise((64, 64), 10).convert("RGB")
    image.save("x.png")
    image.save("x.webp")
    with Image.open("x.png") as again:
        again.thumbnail((16, 16))
        return list(again.size)


def with_tqdm(job: Job) -> Any:
    with job.tqdm_hook():
        return sum(1 for _ in tqdm(range(100)))


def with_its_own_files(_: Job) -> Any:
    import tests.security.beside as beside

    return [beside.WORD, (HERE / "beside.txt").read_text().strip()]


def with_named_paths(job: Job) -> Any:
    return Path(job.options.path).read_text()


def with_its_input(job: Job) -> Any:
    with job.open_input() as file:
        return file.read().decode()


def with_a_name(_: Job) -> Any:
    import getpass
    import pwd
    import uuid

    return [bool(pwd.getpwuid(os.getuid())), bool(getpass.getuser()), len(str(uuid.uuid1())), bool(os.cpu_count())]


def with_home(_: Job) -> Any:
    path = Path.home() / ".cache" / "x"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path.read_text()


KINDS: dict[str, Callable[[Job], Any]] = {
    name: work for name, work in list(globals().items()) if name.startswith("with_")
}


@processor("honest", needs_file=False, options=What)
def honest(job: Job) -> dict[str, Any]:
    return {"found": KINDS[job.options.name](job)}


@processor("reads-models", needs_file=False, options=What, reads=("/var/lib/dpkg/status",))
def reads_models(job: Job) -> dict[str, Any]:
    return {"size": Path("/var/lib/dpkg/status").stat().st_size, "text": Path("/var/lib/dpkg/status").read_text()[:8]}
