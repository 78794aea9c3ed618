"""`headway`: the commands, their options, and nothing else. Each command's work is in the file of its name.

What a command needs is imported when it runs, so that `--help` and the client commands start fast.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cli.exits import exits, settings_errors

if TYPE_CHECKING:
    from cli.client import Client
    from shared.models import TaskId

app = typer.Typer(
    name="headway", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Task progress that is true whatever dies.",
)  # fmt: skip

Url = Annotated[str, typer.Option("--url", envvar="HEADWAY_URL", help="Where the platform is.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 finds a free one.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
StatusName = Literal["uploading", "queued", "processing", "completed", "failed", "cancelled"]

HERE = "http://127.0.0.1:8000"
LOOPBACK = "127.0.0.1"


@app.command()
def up(
    host: Host = LOOPBACK,
    port: Port = 8000,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept. [default: ./data]")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Submit a sample and show its progress.")] = False,
) -> None:
    """Run everything: Redis if there is none, the API and a worker."""
    with exits():
        from cli.up import up

        if demo:
            from cli.demo import demo as when_ready

            raise typer.Exit(up(host, port, data_dir, when_ready))
        raise typer.Exit(up(host, port, data_dir, None))


@app.command()
def api(
    host: Host = LOOPBACK,
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
) -> None:
    """Run the API alone. HEADWAY_REDIS_URL says where Redis is."""
    with exits(), settings_errors():
        from api.server import run
        from shared.settings import load_settings

        raise typer.Exit(run(load_settings(), host=host, port=port, workers=workers))


@app.command()
def worker() -> None:
    """Run a worker alone. HEADWAY_REDIS_URL says where Redis is."""
    with exits(), settings_errors():
        from shared.settings import load_settings
        from worker.main import run

        raise typer.Exit(run(load_settings()))


@app.command(hidden=True)
def together(host: Host = LOOPBACK, port: Port = 8000) -> None:
    """Run the API and a worker in one process, on a Redis in its memory: `headway up` does."""
    with exits(), settings_errors():
        from cli.together import run
        from shared.settings import load_settings

        raise typer.Exit(run(load_settings(), host=host, port=port))


@app.command()
def submit(
    processor: Annotated[str, typer.Option(help="What is to be done with it.")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The file, if the processor takes one.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A processor's option; repeatable.")] = None,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Submit a file and watch it to its end."""
    with exits():
        from cli.submit import Submission, parse_options, submit_at
        from cli.watch import Watched, run

        what, watched = Submission(processor, parse_options(option or []), file), Watched(url)
        run(submit_at(url, _key(), what, watched, as_json=as_json), watched, as_json=as_json)


@app.command()
def watch(id_: Id, url: Url = HERE, as_json: Json = False) -> None:
    """Watch a task to its end."""
    with exits():
        from cli.watch import Watched, run, watch

        task_id = cast("TaskId", id_)
        run(watch(url, _key(), task_id, as_json=as_json), Watched(url, task_id), as_json=as_json)


@app.command()
def tasks(
    status: Annotated[StatusName | None, typer.Option(help="Only those in this state.")] = None,
    processor: Annotated[str | None, typer.Option(help="Only this processor's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 20,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    from cli.tasks import list_tasks

    filters = {name: value for name, value in (("status", status), ("processor", processor)) if value}
    _ask(url, lambda client: list_tasks(client, filters, limit, as_json=as_json))


@app.command()
def cancel(id_: Id, url: Url = HERE, as_json: Json = False) -> None:
    """Cancel a task, whatever it is doing."""
    from cli.tasks import act

    _ask(url, lambda client: act(client, cast("TaskId", id_), "cancel", as_json=as_json))


@app.command()
def retry(id_: Id, url: Url = HERE, as_json: Json = False) -> None:
    """Start a failed or cancelled task again."""
    from cli.tasks import act

    _ask(url, lambda client: act(client, cast("TaskId", id_), "retry", as_json=as_json))


@app.command()
def fetch(
    id_: Id,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to put them in.")] = Path(),
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Download a completed task's files."""
    from cli.tasks import fetch

    _ask(url, lambda client: fetch(client, cast("TaskId", id_), output, as_json=as_json))


@app.command()
def version() -> None:
    """Say which version this is."""
    typer.echo(installed_version("headway"))


def _key() -> str | None:
    """Never an option: a command line is everybody's to read."""
    return os.environ.get("HEADWAY_API_KEY") or None


def _ask(url: str, question: Callable[[Client], Awaitable[None]]) -> None:
    from cli.client import Client

    async def asked() -> None:
        async with Client(url, _key()) as client:
            await question(client)

    with exits():
        asyncio.run(asked())


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
