"""The life of a child as the worker knows it, on a fake fork server over a real socket: every order of what can happen.

A seeded scheduler plays many children at once: for each one a shuffled list of what its fork server answers and what
its attempt does, and now and then the death of the server, answers about nobody, answers twice. Whatever the order,
each attempt comes to its own end, nobody is killed who was not to be, and the link is as it was.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import permutations
from typing import Any

import pytest

from headway.shared.errors import ProcessorFailure
from headway.worker.child_process import ChildProcess, End, State
from headway.worker.fork_server_link import ForkServerLink
from headway.worker.sandbox import Child
from tests.waiting import wait_until

SPEC: dict[str, Any] = {"processor": "p", "memory_bytes": 1024**3, "output_folder": "/nowhere"}


class FakeServer:
    """The other end of the socket. `asked` are the requests, with the descriptors that came with them."""

    def __init__(self, theirs: socket.socket) -> None:
        theirs.setblocking(False)
        self._socket = theirs
        self._buffer = b""
        self._descriptors: list[int] = []
        self.asked: dict[int, tuple[dict[str, Any], list[int]]] = {}

    def read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(64))
                for _, _, payload in ancillary:
                    self._descriptors += array.array("i", payload)
                if not data:
                    return
                *lines, self._buffer = (self._buffer + data).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    self.asked[request["id"]] = (request, self._descriptors[:3])
                    del self._descriptors[:3]

    def answer(self, **message: Any) -> None:
        self.send(json.dumps(message).encode() + b"\n")

    def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):
            self._socket.sendall(data)

    def end(self, request_id: int, status: int = 0) -> None:
        self.answer(id=request_id, status=status, cpu_seconds=0.1, rss_bytes=1000, left=0)

    def let_go(self) -> None:
        """As a fork server does that has forked: the pipes are the child's."""
        for _, descriptors in self.asked.values():
            close(descriptors)

    def die(self) -> None:
        self._socket.close()
        self.let_go()


def close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[ForkServerLink, FakeServer]]:
    ours, theirs = socket.socketpair()
    link, server = ForkServerLink(ours), FakeServer(theirs)
    listening = asyncio.create_task(link.listen())
    try:
        yield link, server
    finally:
        server.die()
        done, _ = await asyncio.wait({listening}, timeout=10)
        assert done
        assert listening.exception() is None, "whatever was answered, the listener ends by the end of the socket"
        link.close()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids that were killed: none of them is real."""
    pids: list[int] = []
    monkeypatch.setattr("headway.worker.fork_server_link.ChildProcess", lambda: ChildProcess(pids.append))
    return pids


STEPS: dict[str, Callable[[ChildProcess], None]] = {
    "pid": lambda child: child.has_pid(77),
    "another pid": lambda child: child.has_pid(78),
    "end": lambda child: child.has_ended(End(0)),
    "another end": lambda child: child.has_ended(End(9)),
    "kill": lambda child: child.kill(),
    "server gone": lambda child: child.was_lost(),
}


@pytest.mark.parametrize("count", range(1, len(STEPS) + 1))
async def test_in_every_order_of_what_happens_a_child_is_killed_only_while_it_runs_and_ends_once(count: int) -> None:
    for order in permutations(STEPS, count):
        killed: list[int] = []
        child = ChildProcess(killed.append)
        first_end: End | None = None
        for step in order:
            was_running, was_over, kills = child.state is State.RUNNING, child.is_over, len(killed)
            STEPS[step](child)
            if was_over:
                assert len(killed) == kills, order
            assert child.is_over or not was_over, order
            first_end = first_end or child.end
            assert child.end is first_end, order
            if step == "kill" and was_running:
                assert killed[kills:] == [child.pid], order
        begun = order.index("pid") if "pid" in order else len(order)
        wanted_before = "kill" in order[:begun] and not {"end", "another end", "server gone"} & set(order[:begun])
        if wanted_before and "another pid" not in order[:begun] and "pid" in order:
            assert 77 in killed, order
        assert set(killed) <= {child.pid}, order
        assert await child.ended(0) is child.is_over


def test_a_kill_before_the_pid_is_known_is_done_when_it_is() -> None:
    killed: list[int] = []
    child = ChildProcess(killed.append)
    child.kill()
    assert killed == []
    child.has_pid(77)
    assert killed == [77]


async def test_whoever_waits_and_is_cancelled_or_times_out_changes_nothing() -> None:
    killed: list[int] = []
    child = ChildProcess(killed.append)
    waiting = [asyncio.create_task(wait) for wait in (child.started(), child.ended(60), child.ended(0.001))]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    child.has_pid(77)
    child.kill()
    assert killed == [77]
    child.has_ended(End(9))
    assert await child.ended(0)
    child.kill()
    assert killed == [77]


class Played:
    """One attempt, and the shuffled script of what happens to it."""

    def __init__(self, rng: random.Random, number: int, link: ForkServerLink, server: FakeServer) -> None:
        self._rng = rng
        self._server = server
        self._link = link
        self.number = number
        self.pid = 10_000 + number
        self.honest = rng.random() < 0.3
        self.read, self._write = os.pipe()
        self.request_id = 0
        self.said: list[str] = []
        self.work: asyncio.Task[str] | None = None

    def steps(self) -> Iterator[Callable[[], None]]:
        count = (
            b'{"kind":"count","progress":1,"step":0,"total_steps":0,"message":"m","done":%d,"total":null,"unit":null}\n'
        )
        done = b'{"kind":"done","summary":{"number":%d},"outputs":{}}\n' % self.number
        pid = lambda: self._server.answer(id=self.request_id, pid=self.pid)  # noqa: E731
        end = lambda: self._server.end(self.request_id)  # noqa: E731
        if self.honest:
            yield from (pid, lambda: self.write(count % 1), lambda: self.write(done), self.hang_up, end)
            return
        some: list[Callable[[], None]] = [
            pid,
            end,
            self.hang_up,
            lambda: self.write(count % 1),
            lambda: self.write(self._rng.choice([done, done[:20], b"garbage\n", b'{"kind":"lost"}\n'])),
        ]
        some += self._rng.sample(
            [
                lambda: self._server.answer(id=self.request_id, pid=self.pid),
                lambda: self._server.end(self.request_id),
                lambda: self._server.answer(id=999_999, pid=5),
                lambda: self._server.end(999_998),
                self.cancel,
            ],
            k=self._rng.randrange(4),
        )
        self._rng.shuffle(some)
        yield from some
        yield from (pid, end, self.hang_up)  # in the end it is over

    def is_asked_for(self) -> bool:
        return self.request_id > 0

    def write(self, data: bytes) -> None:
        if self._write >= 0:
            with suppress(BrokenPipeError):
                os.write(self._write, data)

    def hang_up(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def cancel(self) -> None:
        assert self.work is not None
        self.work.cancel()

    async def run(self) -> str:
        """As Sandbox.attempt does, over a pipe whose other end is ours."""
        reader = asyncio.StreamReader()
        file = os.fdopen(self.read, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        process = self._link.fork(SPEC, (self._write,))
        self.request_id = self._link._requests
        try:
            await process.started()
            self.said = [m["kind"] async for m in Child(process, reader, SPEC).messages()]
            return self.said[-1]
        except ProcessorFailure as failure:
            return str(failure)
        finally:
            process.kill()
            transport.close()


@pytest.mark.parametrize("seed", range(40))
async def test_no_order_of_answers_pipes_and_cancellations_of_one_child_touches_another(
    seed: int, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.worker.sandbox.EXIT_SECONDS", 0.01)
    monkeypatch.setattr("headway.worker.sandbox.TIDY_SECONDS", 0.01)
    monkeypatch.setattr("headway.worker.sandbox.GONE_SECONDS", 5.0)
    rng = random.Random(seed)
    async with linked() as (link, server):
        played = []
        for number in range(12):
            one = Played(rng, number, link, server)
            one.work = asyncio.create_task(one.run())
            await wait_until("it has been asked for", one.is_asked_for)
            played.append(one)
        scripts = [one.steps() for one in played]
        dies_at = rng.randrange(30, 200) if seed % 4 == 3 else None
        turns = 0
        while scripts:
            script = rng.choice(scripts)
            server.read()
            server.let_go()
            if (step := next(script, None)) is None:
                scripts.remove(script)
            else:
                step()
            turns += 1
            if turns == dies_at:
                server.die()
                for one in played:
                    one.hang_up()
                break
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        _, hanging = await asyncio.wait({one.work for one in played if one.work}, timeout=30)
        assert not hanging
        for one in played:
            assert one.work is not None
            if one.honest and dies_at is None:
                assert one.work.result() == "done", (seed, one.number)
                assert one.said == ["count", "done"]
        assert set(killed) <= {one.pid for one in played}
        assert link.dead is (dies_at is not None) or dies_at is not None
        if dies_at is None:
            assert link._children == {}


@pytest.mark.parametrize(
    "nonsense",
    [
        *(
            b"\xff\xfe\n",
            b"[]\n",
            b"5\n",
            b"{}\n",
            b'{"id": {}}\n',
            b'{"id": 1, "pid": "x"}\n',
            b'{"id": 1, "pid": 0}\n',
        ),
        *(b'{"id": 1, "pid": true}\n', b'{"id": 1, "status": 1}\n', b"[" * 70_000, b"x" * 200_000),
    ],
    ids=lambda data: repr(data[:20]),
)
async def test_answers_that_are_none_end_the_link_and_each_child_is_told(nonsense: bytes, killed: list[int]) -> None:
    async with linked() as (link, server):
        process = link.fork(SPEC, ())
        server.read()
        await asyncio.to_thread(server._socket.setblocking, True)
        sending = asyncio.create_task(asyncio.to_thread(server.send, nonsense))
        await wait_until("the link is dead", lambda: link.dead)
        link.close()
        await sending
        with pytest.raises(ProcessorFailure, match="fork server died"):
            await process.started()
        assert link.fork(SPEC, ()).state is State.LOST
        assert killed == []


async def test_a_fork_server_that_takes_nothing_for_a_while_gets_every_request_whole_and_in_order() -> None:
    async with linked() as (link, server):
        read, write = os.pipe()
        spec = SPEC | {"options": {"text": "x" * 10_000}}
        for _ in range(2000):
            link.fork(spec, (read, write))
        assert link._outbox, "the socket did not take all of it at once"

        def all_asked() -> bool:
            server.read()
            for _, descriptors in server.asked.values():
                if len(descriptors) == 3:
                    assert json.loads(os.pread(descriptors[2], 20_000, 0)) == spec
                close(descriptors)
            return len(server.asked) == 2000

        await wait_until("all have arrived", all_asked)
        assert list(server.asked) == list(range(1, 2001))
        assert {request["processor"] for request, _ in server.asked.values()} == {"p"}
        os.close(read)
        os.close(write)
