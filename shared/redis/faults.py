"""What redis-py raises, as errors of ours: the one place that knows which of them mean that Redis is away.

`TranslatingClient` goes around a client's commands, scripts and pipelines, `redis_faults` around whatever else speaks
to Redis. What leaves them is RedisAway, with a line for an operator and with redis-py's own error as its cause; or what
Redis says of one command (`redis.exceptions.ResponseError`): a mistake, or a permission that is missing. So an OSError
anywhere else is none of Redis.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from headway.shared.descriptors import none_is_left, out_of_descriptors
from headway.shared.errors import NoDescriptorsForRedis, RedisAway
from headway.shared.redis.sentinel import NoPrimary

#: A command that takes longer than this finds a stopped or half-open server: local Redis answers in under 1 ms, and
#: the answer to a user ("503, try again") should not take longer than this.
COMMAND_TIMEOUT_SECONDS: Final = 2.0


class ForNowError(ResponseError):
    """Redis answers no command, or none of this kind, for a time: somebody's script runs, a primary is missing, slots
    move. Also an error that has a name and that nobody here has heard of."""


#: What Redis says of one command, and would say again: a mistake in it, or in what it is about.
_OF_THE_COMMAND: Final = frozenset(
    {
        *("ERR", "WRONGTYPE", "NOSCRIPT", "EXECABORT", "BUSYGROUP", "BUSYKEY", "CROSSSLOT", "NOGROUP", "UNKILLABLE"),
        *("NOTBUSY", "INVALIDOBJ", "NOPERM"),
    }
)
_FOR_NOW: Final = {
    "BUSY": "Redis runs somebody's slow script (BUSY), and goes on when that ends or is stopped by SCRIPT KILL",
    "MASTERDOWN": "Redis is a replica without its primary (MASTERDOWN); point HEADWAY_REDIS_URL at the primary",
    "CLUSTERDOWN": "The cluster of Redis is down (CLUSTERDOWN)",
    "TRYAGAIN": "Redis is moving keys between nodes (TRYAGAIN)",
    "MOVED": "HEADWAY_REDIS_URL names one node of a cluster (MOVED)",
    "NOAUTH": "Redis refused the user or password of HEADWAY_REDIS_URL (NOAUTH)",
    "WRONGPASS": "Redis refused the user or password of HEADWAY_REDIS_URL (WRONGPASS)",
}


def is_for_now(told: str) -> bool:
    """Of an error as Redis says it."""
    code = told.partition(" ")[0]
    return re.fullmatch(r"[A-Z]{3,}", code) is not None and code not in _OF_THE_COMMAND


class WritesStoppedError(ResponseError):
    """Redis takes no writes until somebody sees to it: it has too few replicas, or cannot write its own file."""


#: Redis cannot be reached, does not answer, is loading, or takes no writes: worth trying again later.
AWAY: Final = (RedisAway,)

#: The same as redis-py has it. An OSError from within it is its connection's.
_FAULTS: Final = (
    *(RedisConnectionError, RedisTimeoutError, OSError),
    *(OutOfMemoryError, ReadOnlyError, WritesStoppedError, ForNowError),
)


def why_away(error: BaseException) -> str:
    """One line for an operator, without the arguments of the command (redis-py puts them in some messages)."""
    match error:
        case RedisAway():
            return str(error)
        case OutOfMemoryError():
            return "Redis is full (maxmemory reached); raise maxmemory or let finished tasks expire sooner"
        case BusyLoadingError():
            return "Redis is loading its data"
        case ReadOnlyError():
            return "Redis is a read-only replica; point HEADWAY_REDIS_URL at the primary"
        case WritesStoppedError():
            return "Redis takes no writes: it has too few replicas (min-replicas-to-write) or cannot write its own file"
        case ForNowError():
            code = str(error).partition(" ")[0]
            return _FOR_NOW.get(code, f"Redis refuses commands for now ({code})")
        case NoPermissionError():
            return f"Redis' user may not {_not_permitted(error)} (NOPERM): give it the rules of deploy/redis-users.acl"
        case RedisTimeoutError() | TimeoutError():
            return f"Redis did not answer within {COMMAND_TIMEOUT_SECONDS:g} s"
        case ResponseError():
            return f"Redis refused a command: {refusal_code(error)}"
        case RedisConnectionError() if isinstance(error.__cause__, NoPrimary):
            return "The sentinels of HEADWAY_REDIS_URL name no primary: start them, correct it, or wait for a promotion"
        case AuthenticationError():
            return "Redis refused the user or password of HEADWAY_REDIS_URL"
        case RedisConnectionError() if "max number of clients reached" in str(error):
            return "Redis takes no more connections (maxclients reached)"
        case _:
            return str(RedisAway())


def refusal_code(error: ResponseError) -> str:
    """Redis' own word for it, and nothing of the command, which redis-py may have put around it."""
    if isinstance(error, NoPermissionError):
        return "NOPERM"
    found = re.findall(r"(?:^|\([\"'])([A-Z]{3,})\b", str(error))
    return found[-1] if found else type(error).__name__


def _not_permitted(error: NoPermissionError) -> str:
    words = str(error)
    if (found := re.search(r"to run the '([a-z|_-]{1,40})'", words)) is not None:
        return f"run {found[1].upper()}"
    return "use a channel" if "channel" in words else "use a key"


def as_ours(error: Exception) -> RedisAway:
    # A look-up of a name, and the sentinels, fail in their own ways where there is no descriptor.
    lost = isinstance(error, RedisConnectionError | OSError)
    out = lost and (out_of_descriptors(error) or none_is_left())
    ours = NoDescriptorsForRedis() if out else RedisAway(why_away(error))
    ours.__cause__ = error
    return ours


@contextmanager
def redis_faults() -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise as_ours(error) from error


#: Who may not ask these is told less, and works.
_CAN_DO_WITHOUT: Final = frozenset({"INFO", "CONFIG GET", "CONFIG"})
#: A right that is missing is said for this long after it was missed last.
LATELY_SECONDS: Final = 30.0


def _remember(pool: Any, error: NoPermissionError) -> None:
    pool.refused = why_away(error), time.monotonic()


def refused_lately(redis: Any) -> str | None:
    """What Redis' user was not permitted, of this client's commands; None: nothing."""
    why, when = getattr(redis.connection_pool, "refused", (None, float("-inf")))
    return why if time.monotonic() - when < LATELY_SECONDS else None


if TYPE_CHECKING:
    from redis.asyncio import Redis as _Base
else:
    _Base = object


class TranslatingClient(_Base):
    """To be put before a client of redis-py's among the bases of a class."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except _FAULTS as error:
            raise as_ours(error) from error
        except NoPermissionError as error:
            if args[0] not in _CAN_DO_WITHOUT:
                _remember(self.connection_pool, error)
            raise

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _TranslatingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _TranslatingPipeline(Pipeline):
    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except _FAULTS as error:
            raise as_ours(error) from error

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            answers = await super().execute(raise_on_error)
        except _FAULTS as error:
            raise as_ours(error) from error
        except NoPermissionError as error:
            _remember(self.connection_pool, error)
            raise
        if raise_on_error:
            return answers
        for answer in answers:
            if isinstance(answer, NoPermissionError):
                _remember(self.connection_pool, answer)
        return [as_ours(answer) if isinstance(answer, _FAULTS) else answer for answer in answers]
