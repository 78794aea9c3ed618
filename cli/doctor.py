"""`headway doctor`: is streaming healthy through this URL? It sends paced events through it, holds a silent stream, and
says what it found and what to change. Exit code 0 when there is no problem, 1 when there is, 3 when nobody answers.

The measurements are cli/probes.py's, the judgements cli/findings.py's. Those that take time run side by side.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict

import httpx
import typer

from headway.cli import findings
from headway.cli.exits import ExitCode, complain, printable
from headway.cli.findings import Finding
from headway.cli.known_proxies import proxy_of
from headway.cli.probes import Answer, Probes
from headway.client.calls import is_loopback
from headway.client.errors import ClientError, Unreachable
from headway.shared.version import VERSION


async def doctor(url: str, key: str | None, idle_seconds: float, *, as_json: bool) -> ExitCode:
    """Prints each finding when it is made. Raises Unreachable where nobody answers, or who answers is not Headway."""
    levels: list[str] = []

    def tell(finding: Finding) -> None:
        levels.append(finding.level)
        _print(finding, as_json=as_json)

    async with aclosing(Probes(url, key)) as probes:
        await examine(probes, idle_seconds, tell, complain if sys.stderr.isatty() and not as_json else lambda _: None)
    problems, warnings = levels.count("problem"), levels.count("warning")
    if not as_json:
        typer.echo(f"{_some(problems, 'problem')}, {_some(warnings, 'warning')}.".capitalize())
    return ExitCode.FAILED if problems else ExitCode.DONE


def _some(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(finding), separators=(",", ":")))
        return
    typer.echo(printable(f"{finding.level:<8} {finding.check:<12} {finding.what}"))
    if finding.change:
        typer.echo(printable(f"{'':21} {finding.change}"))


async def examine(
    probes: Probes, idle_seconds: float, tell: Callable[[Finding], None], doing: Callable[[str], None] = lambda _: None
) -> None:
    """Tells each finding, and before what takes time what it is doing."""
    answer = await probes.ask("GET", "/readyz")
    ready = answer.json()
    if "checks" not in ready:
        raise Unreachable(f"{probes.url} answers {answer.status}, but not as Headway does. Is the URL right?")
    tell(Finding("reach", "ok", f"{probes.url} answers in {answer.seconds * 1000:.0f} ms."))
    proxy = proxy_of(answer.headers)
    tell(findings.version(VERSION, ready))
    for finding in findings.redis(ready):
        tell(finding)
    tell(findings.relay(ready))
    tell(findings.storage(ready))
    tell(findings.workers(ready))
    if answer.status != 200:
        return  # what it needs is not there: a stream would only wait
    tell(findings.origin(await probes.from_our_page(), probes.url, proxy))
    async with probes.waiting_task() as (task, ahead_seconds):
        tell(findings.clock(ahead_seconds))
        doing("Listening to a stream of paced events …")
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(probes.paced(workers=findings.workers(ready).level == "ok"))
            holding = group.create_task(probes.idle(task, idle_seconds))
            counting = group.create_task(probes.streams_at_once(task))
            choosing = group.create_task(probes.protocol())
            paced = await listening
            tell(findings.buffering(paced, proxy))
            tell(findings.headers(paced))
            tell(findings.compression(paced, proxy))
            doing("Opening streams until no more are answered …")
            loopback = is_loopback(httpx.URL(probes.url).host)
            tell(findings.connections(await counting, await choosing, proxy, loopback=loopback))
            doing(f"Holding a stream that says nothing, for {idle_seconds:g} s in all …")
            tell(findings.idle(await holding, ready.get("heartbeat_seconds"), proxy))
        doing("Sending a file …")
        tell(findings.uploads(await _or_cut(probes.upload(task)), proxy))
        doing("Sending a file slowly …")
        tell(findings.progress(await probes.slow_upload(), proxy))


async def _or_cut(asked: Awaitable[Answer]) -> Answer:
    """A proxy that refuses a body may do so by cutting the line."""
    try:
        return await asked
    except ClientError as error:
        return Answer(0, httpx.Headers(), json.dumps({"detail": str(error)}).encode(), 0.0)
