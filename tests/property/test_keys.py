"""No name that somebody gives ends where the key of something else begins."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from headway.api.uploads.multipart_upload import BATCH_ID
from headway.shared import keys
from headway.shared.tasks.models import OwnerId, TaskId

#: What keys are made of, so that names are likely to meet.
PARTS = st.sampled_from(["run", "tasks", "live", "owner", "batch", "task", "events", "1", "anyone", "."])
BATCHES = st.lists(PARTS | st.just(""), min_size=1, max_size=5).map(":".join).filter(lambda name: 0 < len(name) <= 64)
OWNERS = st.lists(PARTS, min_size=1, max_size=3).map("@".join)
TASKS = st.sampled_from([TaskId("0" * 32), TaskId("1" * 32)])
DIGESTS = st.sampled_from(["a" * 64, "b" * 64])

OWNED = (
    *(keys.OWNER_VERSION, keys.OWNER_EVENTS, keys.OWNER_CHANGED, keys.OWNER_ACTIVE),
    *(keys.OWNER_TASKS, keys.OWNER_STORED),
)
OF_TASK: tuple[Callable[[TaskId], str], ...] = (keys.state, keys.events, keys.upload_writer, keys.upload_asked)
LINE = (keys.LINE_WAITING, keys.LINE_LATER, keys.LINE_RUNNING, keys.LINE_TURNS, keys.LINE_FULL, keys.LINE_PAUSED)
SHARED = (*LINE, keys.QUEUE, keys.WORKERS, keys.WALLS, keys.SWEEPER, keys.SINCE, keys.COUNTS, keys.EPOCH, keys.DELETED)

#: What a key is for, and the key.
NAMED = st.one_of(
    st.tuples(st.sampled_from(OWNED), OWNERS).map(lambda of: (of, of[0] % of[1])),
    st.tuples(st.just(keys.LINE_OWNERS), OWNERS).map(lambda of: (of, of[0] % of[1])),
    st.tuples(st.just(keys.LINE_GROUPS), OWNERS, OWNERS).map(lambda of: (of, of[0] % of[1:])),
    st.tuples(st.just(keys.LINE_GROUP), OWNERS, OWNERS, st.sampled_from("059"), BATCHES).map(
        lambda of: (of, of[0] % of[1:])
    ),
    st.tuples(st.sampled_from((keys.LINE_HELD_OWNER, keys.LINE_HELD_PROCESSOR)), OWNERS).map(
        lambda of: (of, of[0] % of[1])
    ),
    st.tuples(st.sampled_from((keys.BATCH_STATE, keys.BATCH_TASKS)), OWNERS, BATCHES).map(
        lambda of: (of, of[0] % keys.of_batch(OwnerId(of[1]), of[2]))
    ),
    st.tuples(st.sampled_from(OF_TASK), TASKS).map(lambda of: (of, of[0](of[1]))),
    st.tuples(st.just("idempotency"), OWNERS, DIGESTS).map(lambda of: (of, keys.idempotency(OwnerId(of[1]), of[2]))),
    st.tuples(st.just("session"), DIGESTS).map(lambda of: (of, keys.session(of[1]))),
    st.sampled_from(SHARED).map(lambda key: (key, key)),
)


@given(NAMED, NAMED)
def test_what_is_not_the_same_has_not_the_same_key(one: tuple[object, str], other: tuple[object, str]) -> None:
    assert (one[0] == other[0]) == (one[1] == other[1])


@given(OWNERS, BATCHES)
def test_no_batch_has_the_key_of_the_index_of_another(owner: str, batch: str) -> None:
    index = keys.BATCH_TASKS % keys.of_batch(OwnerId(owner), batch)
    named_so = index.removeprefix(keys.BATCH_STATE % (owner, ""))
    assert keys.BATCH_STATE % keys.of_batch(OwnerId(owner), named_so) != index


@given(st.from_regex(BATCH_ID, fullmatch=True))
def test_a_batch_keeps_the_key_that_it_always_had_unless_that_was_anothers(batch: str) -> None:
    always = keys.BATCH_STATE % ("anyone", batch)
    assert (keys.BATCH_STATE % keys.of_batch(OwnerId("anyone"), batch) == always) != batch.endswith(":tasks")
