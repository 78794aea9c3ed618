"""The rules of the house that a reader relies on, read off the source: who may import whom, who spells a key."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
#: The folders that headway/ links to.
LINKED: Final = ("api", "cli", "shared", "worker")
PACKAGES: Final = ("headway", *LINKED)
MODULES: Final = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TREES: Final = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES}

#: Imports point down only: cli, then api and worker side by side, then shared. The Python client stands alone.
MAY_IMPORT: Final = {
    "headway/client": {"client", "tqdm_hook"},
    "headway/integrations": {"integrations", "client"},
    "headway": {"client", "needs", "api", "shared"},
    "shared": {"shared", "needs"},
    "api": {"api", "shared"},
    "worker": {"worker", "shared", "tqdm_hook"},
    "cli": {"cli", "api", "worker", "shared", "client", "needs", "__init__"},
}


def room_of(path: Path) -> str:
    room = "/".join(path.parts[:2])
    return room if room in MAY_IMPORT else path.parts[0]


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)


def docstrings(tree: ast.Module) -> set[ast.expr]:
    """Every string that stands alone: docstrings."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def strings_of(tree: ast.Module) -> Iterator[str]:
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value


def those(found: dict[Path, set[str]]) -> dict[str, set[str]]:
    return {str(path): what for path, what in found.items() if what}


def test_imports_point_down_only() -> None:
    wrong = {
        path: {
            name
            for name in imports_of(tree)
            if name.startswith("headway.")
            and name.split(".")[1] not in MAY_IMPORT[room_of(path)]
            and not (name.split(".")[1][0].isupper() and "client" in MAY_IMPORT[room_of(path)])
        }
        for path, tree in TREES.items()
    }
    assert those(wrong) == {}


def test_no_route_imports_another() -> None:
    """What two of them need is a module of its own beside the folder."""
    routes = {path: tree for path, tree in TREES.items() if path.parts[:2] == ("api", "routes")}
    wrong = {
        path: {name for name in imports_of(tree) if name.startswith("headway.api.routes.")}
        for path, tree in routes.items()
    }
    assert len(routes) > 10
    assert those(wrong) == {}


def test_every_module_is_imported_as_headway() -> None:
    wrong = {path: {name for name in imports_of(tree) if name.split(".")[0] in LINKED} for path, tree in TREES.items()}
    assert those(wrong) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports, and those for the type checker alone, count too."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
    names = {name if name.startswith("headway") else f"headway.{name}" for name in names}
    imported: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        own = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        own = own if own.startswith("headway") else f"headway.{own}"
        imported[own] = {module for name in imports_of(tree) if (module := module_of(name, names)) not in (None, own)}
    while leaves := {name for name, others in imported.items() if not others & imported.keys()}:
        imported = {name: others for name, others in imported.items() if name not in leaves}
    assert imported == {}


def module_of(name: str, modules: set[str]) -> str | None:
    """The module that an imported name is of, or is."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def test_nothing_relative_and_nothing_of_the_tests_is_imported() -> None:
    wrong = {
        path: {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
        | {name for name in imports_of(tree) if name.split(".")[0] == "tests"}
        for path, tree in TREES.items()
    }
    assert those(wrong) == {}


def keys_spelled_in(path: Path) -> set[str]:
    return {text for text in strings_of(TREES[path]) if text.startswith(("headway:", "arq:"))}


def test_the_keys_module_spells_keys() -> None:
    assert len(keys_spelled_in(Path("shared/keys.py"))) > 5


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path != Path("shared/keys.py")],
    ids=str,
)
def test_only_the_keys_module_spells_a_redis_key(path: Path) -> None:
    assert keys_spelled_in(path) == set()


def test_the_script_spells_no_key_of_its_own() -> None:
    for script in (ROOT / "shared").glob("*.lua"):
        code = "\n".join(line.partition("--")[0] for line in script.read_text(encoding="utf-8").splitlines())
        assert "headway:" not in code
        assert "arq:" not in code


def test_only_the_redis_module_builds_a_client() -> None:
    builders = {"Redis", "ArqRedis", "from_url", "create_pool", "ConnectionPool", "BlockingConnectionPool"}
    called = {
        path: {
            ast.unparse(node.func)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in builders
        }
        for path, tree in TREES.items()
    }
    assert called.pop(Path("shared/redis/client.py"))
    assert those(called) == {}


def test_only_the_problems_module_answers_with_an_error_of_the_framework() -> None:
    raised = {path: {name for name in imports_of(tree) if "HTTPException" in name} for path, tree in TREES.items()}
    assert raised.pop(Path("api/problems.py"))
    assert those(raised) == {}


def test_settings_are_read_where_a_process_starts_and_nowhere_else() -> None:
    reads = {path: {name for name in imports_of(tree) if "load_settings" in name} for path, tree in TREES.items()}
    starts = {str(path) for path, names in reads.items() if names}
    assert "api/main.py" in starts
    assert {path for path in starts if not path.startswith("cli/")} == {
        "api/main.py",
        "headway/app.py",
        "worker/healthcheck.py",
    }


def test_no_task_of_the_event_loop_runs_without_an_owner() -> None:
    """A `create_task` whose result nobody keeps can vanish in the middle, and its error with it."""
    dropped = {
        path: {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) in ("asyncio.create_task", "asyncio.ensure_future", "loop.create_task")
        }
        for path, tree in TREES.items()
    }
    assert those(dropped) == {}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_says_what_it_is_for_and_is_named_for_that(path: Path) -> None:
    assert ast.get_docstring(TREES[path])
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not set(path.parent.parts) & {"utils", "helpers", "common"}
