"""`headway`: the commands, their options, and nothing else. Each command's work is in the file of its name.

What a command needs is imported when it runs, so that `--help` and the client commands start fast.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headway.cli import complete
from headway.cli.exits import exits, settings_errors
from headway.shared.version import VERSION

if TYPE_CHECKING:
    from headway import AsyncClient

app = typer.Typer(
    name="headway", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Task progress that is true whatever dies.",
)  # fmt: skip

Url = Annotated[str, typer.Option("--url", envvar="HEADWAY_URL", help="Where the platform is.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 finds a free one.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="The tasks' ids.", autocompletion=complete.tasks)]
AppDir = Annotated[
    Path | None,
    typer.Option(help="Where the modules of HEADWAY_PROCESSORS are looked up first. [default: the current folder]"),
]
StatusName = Literal["uploading", "queued", "processing", "completed", "failed", "cancelled"]

HERE = "http://127.0.0.1:8000"
LOOPBACK = "127.0.0.1"


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def headway(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    host: Host = LOOPBACK,
    port: Port = 8000,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept. [default: ./data]")] = None,
    app_dir: AppDir = None,
    demo: Annotated[bool, typer.Option("--demo", help="Submit a sample and show its progress.")] = False,
) -> None:
    """Run everything: Redis if there is none, the API and a worker."""
    _use(app_dir)
    with exits():
        from headway.cli.up import up

        if demo:
            from headway.cli.demo import demo as when_ready

            raise typer.Exit(up(host, port, data_dir, when_ready))
        raise typer.Exit(up(host, port, data_dir, None))


@app.command()
def api(
    host: Host = LOOPBACK,
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    app_dir: AppDir = None,
) -> None:
    """Run the API alone. HEADWAY_REDIS_URL says where Redis is."""
    _use(app_dir)
    with exits(), settings_errors():
        from headway.api.serving.server import run
        from headway.shared.settings import load_settings

        raise typer.Exit(run(load_settings(), host=host, port=port, workers=workers))


@app.command()
def worker(app_dir: AppDir = None) -> None:
    """Run a worker alone. HEADWAY_REDIS_URL says where Redis is."""
    _use(app_dir)
    with exits(), settings_errors():
        from headway.shared.settings import load_settings
        from headway.worker.main import run

        raise typer.Exit(run(load_settings()))


@app.command(hidden=True)
def together(host: Host = LOOPBACK, port: Port = 8000) -> None:
    """Run the API and a worker in one process, on a Redis in its memory: `headway up` does."""
    with exits(), settings_errors():
        from headway.cli.together import run
        from headway.shared.settings import load_settings

        raise typer.Exit(run(load_settings(), host=host, port=port))


@app.command()
def submit(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="The files; none if the processor takes none.")
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(
            help="What is to be done with it. [default: the only one that takes these files]",
            autocompletion=complete.processors,
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Of a folder, all files below it.")] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A processor's option; repeatable.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Put them into this batch.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Send, print the ids, and do not watch.")] = False,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Submit files and watch them to their end."""
    with exits():
        from headway.cli.submit import Submission, batch_of, choose, files_of, parse_options, send_only, submit
        from headway.cli.watch import finish, run
        from headway.cli.watched import Watched

        paths, options = files_of(files or [], recursive=recursive), parse_options(option or [])
        processor = processor or asyncio.run(choose(url, _key(), paths))
        what = [Submission(processor, options, path) for path in paths] or [Submission(processor, options)]
        watched = Watched(url, batch_id=batch_of(paths, batch))
        if detach:
            _ask(url, lambda client: send_only(client, what, watched, as_json=as_json))
            raise typer.Exit(1 if watched.refused else 0)
        ended = run(
            *(_key(), lambda client, display: submit(client, display, what, watched), watched),
            as_json=as_json,
            several=len(paths) > 1,
        )
        finish(ended, url=url, as_json=as_json, refused=watched.refused)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What is to be run.")],
    title: Annotated[str | None, typer.Option(help="What the task is called.")] = None,
    total: Annotated[int | None, typer.Option(min=1, help="How much there is to do; lines, if nothing else.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="What in a line is the percentage, or done and total."),
    ] = None,
    grace_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="From SIGTERM to SIGKILL, when the task is cancelled.")
    ] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write nothing but what the command writes.")] = False,
    url: Url = HERE,
) -> None:
    """Run any command as a task: its output is the log and the progress, its exit code the end."""
    with exits():
        from headway.cli.run import run as run_command

        asked: dict[str, Any] = {"title": title, "total": total, "pattern": pattern, "quiet": quiet}
        code = run_command(command, url=url, key=_key(), grace_seconds=grace_seconds, **asked)
        raise typer.Exit(code)


@app.command()
def watch(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="The tasks.", autocompletion=complete.tasks)
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="All tasks of this batch, as one.")] = None,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Watch tasks, or a batch, to their end."""
    with exits():
        from headway.cli.watch import finish, finish_batch, run, watch, watch_batch
        from headway.cli.watched import Watched
        from headway.client.errors import WrongUse

        if bool(ids) == bool(batch):
            raise WrongUse("Name the tasks to watch, or a batch: headway watch ID… or headway watch --batch ID")
        if batch:
            rollup = run(
                *(_key(), lambda client, display: watch_batch(client, display, batch), Watched(url, batch_id=batch)),
                as_json=as_json,
            )
            finish_batch(rollup, as_json=as_json)
        watched = Watched(url, dict.fromkeys(ids or (), ""))
        ended = run(
            *(_key(), lambda client, display: watch(client, display, watched), watched),
            as_json=as_json,
            several=len(watched.tasks) > 1,
        )
        finish(ended, url=url, as_json=as_json)


@app.command()
def tasks(
    status: Annotated[StatusName | None, typer.Option(help="Only those in this state.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="Only this processor's.", autocompletion=complete.processors)
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 20,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    with exits():
        from headway.cli.tasks import list_tasks

        _ask(
            url,
            lambda client: list_tasks(
                client, status=status, processor=processor, batch_id=batch, limit=limit, as_json=as_json
            ),
        )


@app.command()
def processors(url: Url = HERE, as_json: Json = False) -> None:
    """List what can be done with a file, with the names of the options."""
    with exits():
        from headway.cli.tasks import list_processors

        _ask(url, lambda client: list_processors(client, as_json=as_json))


@app.command()
def cancel(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="The tasks.", autocompletion=complete.tasks)
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="All tasks of this batch.")] = None,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Cancel tasks, or a batch, whatever they are doing."""
    with exits():
        from headway.cli.tasks import cancel, cancel_batch
        from headway.client.errors import WrongUse

        if bool(ids) == bool(batch):
            raise WrongUse("Name the tasks to cancel, or a batch: headway cancel ID… or headway cancel --batch ID")
        if batch:
            _ask(url, lambda client: cancel_batch(client, batch, as_json=as_json))
        else:
            _ask(url, lambda client: cancel(client, ids or (), as_json=as_json))


@app.command()
def retry(ids: Ids, url: Url = HERE, as_json: Json = False) -> None:
    """Start failed or cancelled tasks again."""
    with exits():
        from headway.cli.tasks import retry

        _ask(url, lambda client: retry(client, ids, as_json=as_json))


@app.command()
def delete(ids: Ids, url: Url = HERE, as_json: Json = False) -> None:
    """Delete ended tasks, their files and their history."""
    with exits():
        from headway.cli.tasks import delete

        _ask(url, lambda client: delete(client, ids, as_json=as_json))


@app.command()
def note(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The task's id.", autocompletion=complete.tasks)],
    text: Annotated[str, typer.Argument(help="What to say.")],
    author: Annotated[str, typer.Option(envvar="USER", help="Who says it.")] = "headway",
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Say something to everybody who watches a task."""
    with exits():
        from headway.cli.tasks import note

        _ask(url, lambda client: note(client, id_, author, text, as_json=as_json))


@app.command()
def fetch(
    ids: Ids,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to put them in.")] = Path(),
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Download the files of completed tasks."""
    with exits():
        from headway.cli.tasks import fetch

        _ask(url, lambda client: fetch(client, ids, output, as_json=as_json))


@app.command()
def doctor(
    idle_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="How long to hold a stream that says nothing.")
    ] = 20.0,
    url: Url = HERE,
    as_json: Json = False,
) -> None:
    """Say whether streaming is healthy through this URL, and what to change."""
    with exits():
        from headway.cli.doctor import doctor

        raise typer.Exit(asyncio.run(doctor(url, _key(), idle_seconds, as_json=as_json)))


@app.command()
def version() -> None:
    """Say which version this is."""
    typer.echo(VERSION)


def _use(app_dir: Path | None) -> None:
    """For this process, and for those that it starts."""
    if app_dir is not None:
        os.environ["HEADWAY_APP_DIR"] = str(app_dir.absolute())


def _key() -> str | None:
    """Never an option: a command line is everybody's to read."""
    return os.environ.get("HEADWAY_API_KEY") or None


def _ask(url: str, question: Callable[[AsyncClient], Awaitable[None]]) -> None:
    from headway import AsyncClient

    async def asked() -> None:
        async with AsyncClient(url, _key()) as client:
            await question(client)

    asyncio.run(asked())


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
