"""Which processors there are: found by entry points of installed packages, and by HEADWAY_PROCESSORS."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Final

from headway.needs import how_to_install, missing_extra
from headway.shared.errors import InvalidRequest, SettingsError
from headway.shared.logging import get_logger
from headway.shared.tasks.models import FieldError
from headway.shared.tasks.processors import Processor

log = get_logger(__name__)

ENTRY_POINT_GROUP: Final = "headway.processors"


@dataclass(frozen=True, slots=True)
class Registry:
    """The processors of this installation by name; the modules of installed packages that could not be loaded, module
    to reason; and what HEADWAY_PROCESSORS replaced, name to the module that had it."""

    processors: Mapping[str, Processor]
    broken: Mapping[str, str]
    replaced: Mapping[str, str]

    def get(self, name: str) -> Processor:
        """Raises InvalidRequest naming those there are."""
        if (found := self.processors.get(name)) is None:
            known = ", ".join(self.processors)
            message = f"Choose one of: {known}."
            raise InvalidRequest(
                f"There is no processor {name[:80]!r}. {message}", [FieldError(field="processor", message=message)]
            )
        return found


def load_registry(modules: Iterable[str] = (), app_dir: Path | None = None) -> Registry:
    """Imports every entry point and every module of HEADWAY_PROCESSORS, which are looked up in `app_dir` first (the
    current folder, unless it is given).

    Somebody asked for what the setting names: where one of them cannot be loaded, or two of them declare one name, a
    SettingsError says where and why. Of a name that an installed package has too, the setting's wins, so that a
    built-in can be replaced. An entry point that is broken is reported, never raised, and stops no other.
    """
    found: dict[str, Processor] = {}
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        try:
            declared = _declared_in(importlib.import_module(entry.module))
        except (Exception, SystemExit) as error:
            broken[entry.module] = _why(error, entry.module)
            continue
        for name, one in declared.items():
            if found.setdefault(name, one) != one:
                broken[entry.module] = (
                    f"its processor {name!r} is left out: {found[name].origin} declares that name too"
                )
    named: dict[str, Processor] = {}
    modules = list(dict.fromkeys(modules))
    if modules:
        _look_first_in((app_dir or Path()).absolute())
    for module_name in modules:
        try:
            declared = _declared_in(importlib.import_module(module_name))
        except (Exception, SystemExit) as error:
            raise SettingsError(_not_loaded(error, module_name, app_dir or Path())) from error
        for name in declared.keys() & named.keys():
            if declared[name] != named[name]:
                raise SettingsError(
                    f"HEADWAY_PROCESSORS: {named[name].origin} and {module_name} both declare a processor {name!r}. "
                    "Give one of them another name."
                )
        named |= declared
    replaced = {name: found[name].origin for name in named.keys() & found.keys() if named[name] != found[name]}
    return Registry(dict(sorted((found | named).items())), broken, replaced)


def say_what_was_found(registry: Registry) -> None:
    """A log line for each module of an installed package that is broken, and for each name that was replaced."""
    for module, reason in registry.broken.items():
        log.error("processor module not loaded", module=module, reason=reason)
    for name, origin in registry.replaced.items():
        log.info("processor replaced", processor=name, by=registry.processors[name].origin, instead_of=origin)


def _look_first_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _declared_in(module: ModuleType) -> dict[str, Processor]:
    """By name. Raises ValueError where there is none, or two have one name."""
    found: dict[str, Processor] = {}
    for declared in _each(module):
        for one in (declared, *_aliases(declared)):
            if found.setdefault(one.name, one) != one:
                raise ValueError(f"two functions in it are declared as the processor {one.name!r}")
    if not found:
        raise ValueError("no function in it is decorated with @processor")
    return found


def _aliases(one: Processor) -> tuple[Processor, ...]:
    """The same under its former names."""
    return tuple(replace(one, name=name, aliases=(), alias_of=one.name) for name in one.aliases)


def _each(module: ModuleType) -> Iterator[Processor]:
    for value in vars(module).values():
        declared = getattr(value, "__headway_processor__", None)
        if isinstance(declared, Processor):
            yield declared


def _why(error: BaseException, module_name: str) -> str:
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError) and (extra := missing_extra(error)) is not None:
        return f"{why}. {how_to_install(module_name, extra)}"
    return why


def _not_loaded(error: BaseException, module_name: str, folder: Path) -> str:
    """Of a module that the setting names: which, in which file and line, what is wrong, the nearest name."""
    asked = f"HEADWAY_PROCESSORS names {module_name!r}"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        near = difflib.get_close_matches(module_name, _modules_in(folder), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{asked}, and there is no module {error.name!r} in {folder.absolute()} or in what is installed.{hint}"
    return f"{asked}, which cannot be imported: {_place_of(error, module_name)}{_why(error, module_name)}"


def _place_of(error: BaseException, module_name: str) -> str:
    """File and line, of the module's own lines the last one that ran; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    spec = importlib.util.find_spec(module_name)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if folder is not None and Path(frame.filename).is_relative_to(folder)]
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}: " if theirs else ""


def _modules_in(folder: Path) -> list[str]:
    files = [path.stem for path in folder.glob("*.py")]
    return files + [f"{path.parent.name}.{path.stem}" for path in folder.glob("*/*.py") if path.stem != "__init__"]
