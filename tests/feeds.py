"""An owner's feed in tests: all that is told to who has seen a number of it, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import ANYONE, FeedEvent, OwnerId
from headway.shared.tasks.owner_feed import OwnerFeed, Scope

ALL = Scope()


@dataclass
class Told:
    """`states` stand for what cannot be replayed, `missed_from` being the first of it; `history` is what can."""

    number: int = 0
    states: list[FeedEvent] = field(default_factory=list)
    history: list[FeedEvent] = field(default_factory=list)
    missed_from: int | None = None
    pages: int = 0


async def feed_truth(
    redis: RedisClient, scope: Scope = ALL, *, after: int | None = None, owner: OwnerId = ANYONE
) -> Told:
    feed, found = OwnerFeed(redis), Told()
    if after is None:
        look = await feed.first_look(owner, scope)
        for page_of_look in range(len(look.pages)):
            found.states += await feed.states(owner, look, page_of_look)
            found.pages += 1
        after = look.number
    while True:
        page = await feed.page(owner, after, scope.task_ids)
        if page.number < after:
            return await feed_truth(redis, scope, owner=owner)
        found.number = page.number
        found.pages += bool(page.events)
        if page.missed:
            found.missed_from = found.missed_from or after + 1
        (found.states if page.missed else found.history).extend(filter(scope.holds, page.events))
        after = page.upto
        if page.is_last:
            return found
