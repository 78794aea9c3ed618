"""What `headway doctor` makes of its measurements: a finding each, ok, a warning or a problem, with a sentence of what
it is and one of what to change. Pure: no finding asks anybody anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from headway.cli.bar import duration
from headway.cli.known_proxies import lines
from headway.cli.probes import PACE_SECONDS, SLOW_BYTES, SLOW_SECONDS, STREAMS, UPLOAD_BYTES, Answer, Idle, Paced, Slow

Level = Literal["ok", "warning", "problem"]

#: Of events made over some five seconds, one may come this much later than another, beside when each was made: a loaded
#: machine trembles by tenths of a second, a buffer holds back by seconds.
BUNCHED_SECONDS: Final = 1.5
#: A clock this far off, or a heartbeat this late, makes no difference that a person sees.
SKEW_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    what: str
    #: What to change; empty where all is well.
    change: str = ""


def version(ours: str, answer: Mapping[str, Any]) -> Finding:
    theirs = answer.get("version")
    if theirs == ours:
        return Finding("version", "ok", f"The platform and this command are both {ours}.")
    if theirs is None:
        what = f"The platform does not say its version; this command is {ours}."
    else:
        what = f"The platform is {theirs}, this command {ours}."
    return Finding("version", "warning", what, "Install the same version at both ends.")


def redis(answer: Mapping[str, Any]) -> list[Finding]:
    """What the platform says of its Redis: whether it answers, keeps its keys, and survives its own end."""
    check = answer.get("checks", {}).get("redis", {})
    if not check.get("ok"):
        reason = check.get("reason", "it is not said why")
        return [Finding("redis", "problem", f"Redis is not well: {reason}.", "Start it, or correct HEADWAY_REDIS_URL.")]
    if check.get("degraded"):
        what, _, change = str(check.get("reason", "")).partition("; ")
        found = [Finding("redis", "problem", f"{what}.", f"{change[:1].upper()}{change[1:]}." if change else "")]
    else:
        found = [Finding("redis", "ok", "Redis answers, has room, and throws no key away.")]
    kept = check.get("durability")
    lasting = "In redis.conf: `appendonly yes` and `appendfsync everysec`."
    match kept:
        case None:
            found.append(Finding("durability", "warning", "Redis does not say what of it survives a restart.", lasting))
        case "nothing":
            found.append(
                Finding("durability", "problem", "Redis writes nothing to disk: a restart loses every task.", lasting)
            )
        case "snapshots":
            what = "Redis writes snapshots alone: a crash loses the tasks since the last one."
            found.append(Finding("durability", "warning", what, lasting))
        case "append-only, fsync no":
            what = "Redis leaves writing to the kernel: a power cut loses what was not written yet."
            found.append(Finding("durability", "warning", what, "In redis.conf: `appendfsync everysec`."))
        case _:
            found.append(Finding("durability", "ok", f"Redis writes what it is told to disk ({kept})."))
    return found


def relay(answer: Mapping[str, Any]) -> Finding:
    check = answer.get("checks", {}).get("relay", {})
    if check.get("ok"):
        return Finding("relay", "ok", "The API hears what the workers publish.")
    what = f"The API does not hear what the workers publish: {check.get('reason', 'it is not said why')}."
    return Finding("relay", "problem", what, "Look at Redis and at the API's log.")


def storage(answer: Mapping[str, Any]) -> Finding:
    check = answer.get("checks", {}).get("storage", {})
    if check.get("ok", True):  # an older platform does not say
        return Finding("storage", "ok", "Files can be stored.")
    change = "Look at the disk of HEADWAY_DATA_DIR, or at the bucket; the API's log says where and why."
    return Finding("storage", "problem", str(check.get("reason", "The files cannot be stored.")), change)


def workers(answer: Mapping[str, Any]) -> Finding:
    count = answer.get("checks", {}).get("workers", {}).get("count") or 0
    if count and (warning := answer["checks"]["workers"].get("warning")):
        return Finding(
            "workers", "warning", str(warning), "Look at `missing` in /readyz: it says how to get each wall."
        )
    if count:
        return Finding("workers", "ok", f"{count} worker{'s are' if count > 1 else ' is'} running.")
    return Finding("workers", "problem", "No worker is running, so tasks wait.", "Start one: headway worker")


def clock(ahead_seconds: float) -> Finding:
    off = abs(ahead_seconds)
    if off <= SKEW_SECONDS:
        return Finding("clock", "ok", "The platform's clock and this machine's agree.")
    side = "ahead of" if ahead_seconds > 0 else "behind"
    what = f"The platform's clock is {duration(off)} {side} this machine's, so times shown here are off by that."
    return Finding("clock", "warning", what, "Run a time service (chrony, systemd-timesyncd) on both.")


def buffering(paced: Paced, proxy: str | None = None) -> Finding:
    """Whether events that were made one by one came one by one."""
    events = paced.events[1:]  # without the snapshot, which was made before anybody listened
    if len(events) < 3:
        what = "The paced events did not come" + (", the line was cut." if paced.cut else ".")
        what += " A page asks every few seconds instead, and says so; other clients of a stream see nothing."
        return Finding("buffering", "problem", what, lines("buffering", proxy))
    delays = [event.came - event.made for event in events]
    spread = max(delays) - min(delays)
    if spread <= BUNCHED_SECONDS:
        return Finding("buffering", "ok", f"{len(events)} events came one by one, each when it was made.")
    bunches = 1 + sum(later.came - one.came > PACE_SECONDS / 5 for one, later in pairwise(events))
    what = (
        f"{len(events)} events that were made one by one came in {bunches} bunch{'es' if bunches > 1 else ''}, "
        f"up to {duration(spread)} late: something between here and the API collects them."
    )
    return Finding("buffering", "problem", what, lines("buffering", proxy))


def headers(paced: Paced) -> Finding:
    """What the API sends with a stream, as it arrives. X-Accel-Buffering is the proxy's to take: nginx does."""
    got = paced.headers
    if not got:
        return Finding("headers", "problem", "No stream was answered.", "See the other findings; then ask again.")
    wrong = []
    if got.get("content-type", "").partition(";")[0].strip() != "text/event-stream":
        wrong.append(f"Content-Type is {got.get('content-type', 'missing')}")
    cache = {part.strip() for part in got.get("cache-control", "").split(",")}
    wrong += [f"Cache-Control has no {word}" for word in ("no-store", "no-transform") if word not in cache]
    if "content-length" in got:
        wrong.append("there is a Content-Length, which a stream cannot have")
    if wrong:
        what = f"The stream's headers do not arrive as the API sends them: {'; '.join(wrong)}."
        return Finding(
            "headers", "problem", what, "Take away what rewrites them on the way (a CDN's or proxy's rules)."
        )
    return Finding("headers", "ok", "The stream's headers arrive as the API sends them.")


def compression(paced: Paced, proxy: str | None = None) -> Finding:
    encoding = paced.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return Finding("compression", "ok", "The stream is not compressed on the way.")
    what = f"The stream is compressed on the way ({encoding}), which holds events back."
    return Finding(
        "compression",
        "problem",
        what,
        f"{lines('compression', proxy)} Elsewhere: respect `Cache-Control: no-transform`.",
    )


def idle(found: Idle, heartbeat_seconds: float | None, proxy: str | None = None) -> Finding:
    beat = f"every {heartbeat_seconds:g} s" if heartbeat_seconds else "now and then"
    if found.cut_after_seconds is not None:
        seconds = found.cut_after_seconds
        sooner = max(1, int(seconds * 0.6))
        what = (
            f"A stream with nothing to say was cut after {seconds:.1f} s of silence; the API's heartbeat comes {beat}."
        )
        change = f"{lines('idle', proxy)} Or a heartbeat that comes sooner: HEADWAY_HEARTBEAT_SECONDS={sooner}"
        return Finding("idle", "problem", what, change)
    watched = f"{found.watched_seconds:.0f} s"
    if heartbeat_seconds and found.watched_seconds > heartbeat_seconds + SKEW_SECONDS and not found.comments:
        what = f"No heartbeat came within {watched}, though it is sent {beat}."
        return Finding("idle", "problem", what, lines("buffering", proxy))
    return Finding("idle", "ok", f"A stream with nothing to say stayed open for {watched} (heartbeat {beat}).")


def connections(spoke: int, protocol: str | None, proxy: str | None = None, *, loopback: bool) -> Finding:
    if not spoke:
        what = f"Of {STREAMS} streams at a time none spoke in time, so they cannot be counted."
        return Finding("connections", "warning", what, "Change what the other findings name; then ask again.")
    if spoke < STREAMS:
        what = f"Of {STREAMS} streams at a time only {spoke} spoke."
        change = f"Raise the limit on connections a client may have. {lines('connections', proxy)}"
        return Finding("connections", "problem", what, change)
    if protocol == "h2":
        return Finding("connections", "ok", f"{STREAMS} streams at a time, and browsers get HTTP/2: no limit of six.")
    if loopback:
        return Finding("connections", "ok", f"{STREAMS} streams at a time (a browser opens six over HTTP/1.1).")
    what = f"{STREAMS} streams at a time work, but over HTTP/1.1 a browser opens six connections to a site in all."
    change = f"Serve HTTP/2. {lines('multiplexing', proxy)} Or one GET /events a page."
    return Finding("connections", "warning", what, change)


def uploads(answer: Answer, proxy: str | None = None) -> Finding:
    size = f"{UPLOAD_BYTES // 1024**2} MiB"
    if answer.status == 200:
        return Finding("uploads", "ok", f"A file of {size} went through in {duration(answer.seconds)}.")
    if answer.status == 413:
        what = f"A file of {size} is refused as too large."
        change = f"{lines('size', proxy)} At the API: HEADWAY_MAX_UPLOAD_BYTES."
        return Finding("uploads", "problem", what, change)
    said = answer.json().get("detail", "no more is said")
    what = f"A file of {size} was answered with {answer.status}: {said}"
    return Finding("uploads", "problem", what, "Look at the proxy's log and the API's.")


def progress(slow: Slow, proxy: str | None = None) -> Finding:
    """Whether a file that is sent slowly is seen to come. Collected on its way, it goes from nothing to all."""
    size = f"{SLOW_BYTES // 1024**2} MiB"
    if slow.answer.status != 200:
        what = f"A file of {size} that was sent slowly was answered with {slow.answer.status or 'a cut'}."
        return Finding("progress", "problem", what, "Look at the proxy's time limits for a request's body.")
    if not slow.seen:
        return Finding("progress", "warning", "The stream said nothing while a file came slowly.", "See `buffering`.")
    if any(0 < done < SLOW_BYTES for done in slow.seen):
        return Finding("progress", "ok", f"A file of {size}, sent over {SLOW_SECONDS:g} s, was seen to come.")
    what = (
        f"A file of {size}, sent over {SLOW_SECONDS:g} s, came all at once: something between here and the API "
        "collects it first, so an upload's bar does not move. (The page shows what the browser has sent beside it.)"
    )
    return Finding("progress", "warning", what, lines("progress", proxy))


def origin(answer: Answer, url: str, proxy: str | None = None) -> Finding:
    """Whether a page that was loaded from this URL may change anything."""
    if answer.status != 403:
        return Finding("origin", "ok", f"A page of {url} may submit, cancel and sign in: its origin arrives as ours.")
    what = (
        f"A page of {url} is refused whatever it would change, as one of another site: the proxy puts another host or "
        f"scheme in its place. The API says: {answer.json().get('detail', 'nothing more')}"
    )
    return Finding("origin", "problem", what, lines("origin", proxy))
