"""`redis+sentinel://` and `rediss+sentinel://` as HEADWAY_REDIS_URL."""

from __future__ import annotations

import pytest

from headway.shared.errors import SettingsError
from headway.shared.redis.sentinel import Answer, SentinelUrl, named
from headway.shared.settings import load_settings

SECRET = "s3cret-p@ss"


def test_every_part_of_the_url_is_read() -> None:
    url = SentinelUrl.parse(
        "redis+sentinel://me:p%40ss@10.0.0.1:26379,[::1]:26380,sentinel-3.example/my-service/2"
        "?sentinel_username=watch&sentinel_password=tell%2Fme&socket_timeout=5"
    )
    assert url.hosts == (("10.0.0.1", 26379), ("::1", 26380), ("sentinel-3.example", 26379))
    assert (url.service, url.tls) == ("my-service", False)
    assert url.node == {"username": "me", "password": "p@ss", "db": 2, "socket_timeout": 5.0}
    assert url.sentinel == {"username": "watch", "password": "tell/me"}


@pytest.mark.parametrize(
    "listed", ["[::1]", "[::1]:26379", "[::1],one", "one,[::1]", "one,[::1]:26379,two", "[::1],[::2]"]
)
def test_an_address_in_brackets_stands_anywhere_in_the_list(listed: str) -> None:
    hosts = [host for host, _ in SentinelUrl.parse(f"redis+sentinel://{listed}/main").hosts]
    assert hosts == [host.removesuffix(":26379").strip("[]") for host in listed.split(",")]


def test_what_is_left_out_has_a_default() -> None:
    url = SentinelUrl.parse("redis+sentinel://one/main")
    assert (url.hosts, url.node, url.sentinel) == ((("one", 26379),), {"db": 0}, {})


def test_tls_is_for_servers_and_sentinels() -> None:
    url = SentinelUrl.parse("rediss+sentinel://one,two/main/0?ssl_ca_certs=/etc/ca.pem")
    assert url.tls
    assert url.node == {"db": 0, "ssl_ca_certs": "/etc/ca.pem"}
    assert url.sentinel == {"ssl_ca_certs": "/etc/ca.pem"}


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        ("one,two", "names no service"),
        ("one,two/", "names no service"),
        ("one,two/main/zero", "a database that is no number"),
        ("one,two/main/0/1", "names no service"),
        ("one,two/main/0#there", "names no service"),
        ("one,,two/main/0", "no HOST:PORT"),
        ("one:port/main/0", "no HOST:PORT"),
        ("one:99999/main/0", "no HOST:PORT"),
        ("/main/0", "no HOST:PORT"),
        ("[::1/main/0", "no HOST:PORT"),
        ("one,[::1,two/main/0", "no HOST:PORT"),
        ("one,::1/main/0", "no HOST:PORT"),
        ("one,tw\no/main/0", "no HOST:PORT"),
        ("one/main/0?nothing=1", "redis-py"),
        ("one/main/0?socket_timeout=x", "redis-py"),
    ],
)
def test_a_url_that_is_wrong_is_told_with_an_example_and_without_its_password(
    rest: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_REDIS_URL", f"redis+sentinel://:{SECRET}@{rest}")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    told = str(caught.value)
    assert told.startswith("HEADWAY_REDIS_URL: ")
    assert what in told
    assert "redis+sentinel://USER:PASSWORD@HOST1:26379,HOST2:26379,HOST3:26379/SERVICE/0" in told
    assert SECRET not in told


OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


@pytest.mark.parametrize(
    ("answers", "primary"),
    [
        ([], None),
        ([Answer(3, True, False, OLD), Answer(3, True, False, OLD)], OLD),
        ([Answer(3, True, False, OLD), Answer(4, True, False, NEW)], NEW),
        # The newer word counts, also where it is a bad one.
        ([Answer(3, True, False, OLD), Answer(4, False, False, NEW)], None),
        # One that cannot reach a primary which the others do reach is not believed.
        ([Answer(3, False, False, OLD), Answer(3, True, False, OLD)], OLD),
        ([Answer(3, False, False, OLD), Answer(3, False, False, OLD)], None),
        ([Answer(3, True, True, OLD), Answer(3, True, False, OLD)], None),
    ],
    ids=["nobody", "one mind", "news", "bad news", "cut off", "down", "in the midst of it"],
)
def test_of_what_the_sentinels_say_the_newest_counts(answers: list[Answer], primary: tuple[str, int] | None) -> None:
    assert named(answers) == primary
