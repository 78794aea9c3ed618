"""What a child may read: a list of places, made once by the fork server when every processor has been imported.

On it are the interpreter and its libraries, the system's, the modules of this platform and of the processors, what lies
beside those, and what HEADWAY_PROCESSOR_PATHS names. Not on it is the folder that modules happen to be imported from:
it is often the one with `.env`, keys and the data directory.
"""

# Paths here are names in other roots, in /proc and in /dev, as the calls of the system want them.
# ruff: noqa: PTH112, PTH100, PTH110, PTH113, PTH120, PTH123

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

#: Libraries and programs of the system, wherever a distribution has them.
_SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/nix/store", "/gnu/store")
#: What libraries look up: how to load each other, users' names, time zones, types, fonts, certificates. Nothing secret.
_ETC: Final = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld-musl-x86_64.path", "ld-musl-aarch64.path", "alternatives"),
    *("passwd", "group", "nsswitch.conf", "host.conf", "hosts", "resolv.conf", "gai.conf", "services", "protocols"),
    *("localtime", "timezone", "locale.alias", "locale.conf", "os-release", "debian_version", "mime.types", "magic"),
    *("ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust", "ca-certificates", "fonts", "OpenCL"),
    *("ImageMagick-6", "ImageMagick-7", "papersize", "mailcap", "python3", "inputrc", "bash.bashrc"),
)
#: How many processors and how much memory there is, and what the container may have of them: who is shown that these
#: files are there (which Landlock does not hide) and may not open them takes it badly; duckdb aborts.
_MACHINE: Final = (
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/fs/cgroup",
)
#: Beside a module that is a file, so that data lies there too.
_SECRET_SUFFIXES: Final = frozenset({".env", ".pem", ".key", ".p12", ".pfx", ".jks", ".kdbx", ".acl"})


@dataclass(frozen=True, slots=True)
class Readable:
    """`places` are absolute and real, and none lies in another. `links` are other names of them that are in use."""

    places: list[str]
    links: dict[str, str]
    #: Folders that modules are imported from: a new interpreter looks for names there, and only for names.
    listed: list[str]


def readable_by_children(modules: Iterable[str], paths: Iterable[str], hidden: Iterable[str]) -> Readable:
    """`modules` have processors, `paths` may be read besides; no place of `hidden`, or in it, is among the answer."""
    secrets = [os.path.realpath(path) for path in hidden]
    named = [path for path in (*_candidates(set(modules)), *paths) if os.path.exists(path)]
    real = {os.path.realpath(path) for path in named} - {"/"}
    found = {part for place in real for part in _without(place, secrets)}
    places = sorted(place for place in found if not any(place != other and _within(place, other) for other in found))
    links = {
        path: os.path.realpath(path) for path in sorted(map(os.path.abspath, named)) if path != os.path.realpath(path)
    }
    sources = {os.path.realpath(path) for path in sys.path if os.path.isdir(path)}
    listed = [path for path in sorted(sources) if not any(_within(secret, path) for secret in secrets)]
    return Readable(places, links, listed)


def _without(place: str, secrets: list[str]) -> Iterator[str]:
    """The place, or, where a secret one lies in it, what is beside that."""
    if any(_within(place, secret) for secret in secrets):
        return
    if not any(_within(secret, place) for secret in secrets):
        yield place
        return
    with suppress(OSError):
        for entry in os.scandir(place):
            if not entry.is_symlink():
                yield from _without(entry.path, secrets)


def _candidates(modules: set[str]) -> Iterator[str]:
    yield from _SYSTEM
    yield from (f"/etc/{name}" for name in _ETC)
    yield from _MACHINE
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix} - {"/", "/usr"}
    whole = {
        *prefixes,
        *site.getsitepackages(),
        *(path for name, path in sysconfig.get_paths().items() if "lib" in name),
    }
    yield from whole
    for program in (sys.executable, sys._base_executable):  # type: ignore[attr-defined]
        yield from (program, os.path.realpath(program))
    for entry in filter(None, sys.path):
        if os.path.isfile(entry):  # a zip of modules
            yield entry
        elif not any(_within(os.path.realpath(entry), os.path.realpath(path)) for path in whole):
            yield from _modules_in(entry)
    for name, module in list(sys.modules.items()):
        yield from _of_module(module, beside=name in modules)
    yield from _mapped()


def _modules_in(folder: str) -> Iterator[str]:
    """What can be imported from a folder of sys.path."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if (
            path.suffix in (".py", ".so", ".pyc", ".pth")
            or path.name.endswith((".dist-info", ".egg-info"))
            or (entry.name.isidentifier() and entry.is_dir() and os.path.exists(path / "__init__.py"))
        ):
            yield entry.path


def _of_module(module: ModuleType, *, beside: bool) -> Iterator[str]:
    """The folder of a package; the file of a module; and, of one with processors, the files beside it."""
    for folder in getattr(module, "__path__", None) or ():
        yield str(folder)
    if (file := getattr(module, "__file__", None)) is None:
        return
    yield file
    package = (getattr(module, "__package__", None) or "").partition(".")[0]
    if beside and not package:
        for entry in os.scandir(os.path.dirname(os.path.abspath(file))):
            name = Path(entry.name)
            if not entry.name.startswith(".") and name.suffix.lower() not in _SECRET_SUFFIXES and entry.is_file():
                yield entry.path


def _mapped() -> Iterator[str]:
    """Libraries that are loaded, wherever the loader found them: another child loads them again by name."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            if (path := line.partition("/")[2].rstrip("\n")) and not path.endswith("(deleted)") and " r-xp " in line:
                yield f"/{path}"


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
