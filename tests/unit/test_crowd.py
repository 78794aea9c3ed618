"""Who gives way to whom among connections on which nobody is known."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn import Config

from headway.api.access import crowd as crowds
from headway.api.access.crowd import Crowd
from headway.api.serving.descriptors import OPERATORS

MOST = 40


class Line:
    def __init__(self) -> None:
        self.open = True

    def give_way(self) -> None:
        self.open = False


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    monkeypatch.setattr(crowds, "most_connections", lambda: MOST)
    monkeypatch.setattr(crowds, "most_strangers", lambda: MOST // 4)
    monkeypatch.setattr(crowds, "CHANCE_SECONDS", 0.0)
    return Crowd(Config("x", forwarded_allow_ips="127.0.0.1"))


def arrived(crowd: Crowd, count: int, host: str = "127.0.0.1") -> list[Line]:
    lines = [Line() for _ in range(count)]
    for line in lines:
        crowd.arrive(line, host)
    return lines


async def test_over_a_quarter_the_oldest_gives_way_to_the_new_one(crowd: Crowd) -> None:
    lines = arrived(crowd, 10)
    assert all(line.open for line in lines)
    await asyncio.sleep(0.001)
    more = arrived(crowd, 3)
    assert [line.open for line in lines] == [False] * 3 + [True] * 7
    assert all(line.open for line in more)


async def test_who_is_known_has_a_place_and_no_stranger_takes_it(crowd: Crowd) -> None:
    known = arrived(crowd, 8)
    for line in known:
        crowd.known(line)
    arrived(crowd, 500, "10.0.0.1")
    assert all(line.open for line in known)


async def test_an_address_gives_way_to_itself_and_ipv6_counts_by_its_first_half(crowd: Crowd) -> None:
    others = arrived(crowd, 2, "10.0.0.2")
    for host in ("10.0.0.1", "2001:db8::1"):
        many = arrived(crowd, 5, host)
        more = arrived(crowd, 1, host if ":" not in host else "2001:db8::ffff")
        assert [line.open for line in many] == [False, *[True] * 4]
        assert more[0].open
        for line in (*many, *more):
            crowd.leave(line)
    assert all(line.open for line in others)


async def test_a_proxy_has_no_limit_of_its_own(crowd: Crowd) -> None:
    assert all(line.open for line in arrived(crowd, 10, "127.0.0.1"))


async def test_all_have_a_moment_to_say_who_they_are(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "CHANCE_SECONDS", 60.0)
    assert all(line.open for line in arrived(crowd, MOST)), "a deploy brings everybody at once"
    lines = arrived(crowd, 100)
    assert sum(line.open for line in lines) == MOST, "but never more than there is room for"


async def test_above_the_most_are_the_places_of_operators_and_then_none(crowd: Crowd) -> None:
    for line in arrived(crowd, MOST):
        crowd.known(line)
    known = [Line() for _ in range(MOST)]
    for line in known:
        crowd.arrive(line, "127.0.0.1")
        crowd.known(line)
    spare = Line()
    before = crowd._count
    assert before >= MOST
    place = crowd.arrive(spare, "127.0.0.1")
    assert place == ("spare" if before < MOST + OPERATORS else "full")
    crowd.leave(spare)
    assert crowd._count == before


async def test_what_has_left_leaves_nothing(crowd: Crowd) -> None:
    lines = [*arrived(crowd, 30, "10.0.0.1"), *arrived(crowd, 30, "10.0.0.2")]
    for number, line in enumerate(lines):
        if number % 2:
            crowd.known(line)
        crowd.leave(line)
    assert (crowd._count, crowd._strangers, crowd._addresses, crowd._turned_out) == (0, {}, {}, set())
