"""Every setting of the contract's section 2: its default, a good value, a bad one, and what is said about the bad one.

A field that has no case here fails `test_every_setting_has_a_case_here`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

from headway.shared.errors import SettingsError
from headway.shared.settings import Settings, load_settings
from headway.shared.units import DAY_SECONDS, GIB

SECRET: Final = "a-secret-that-nobody-may-read"
WHSEC: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def public(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def body(pem: str) -> str:
    return "".join(pem.splitlines()[1:-1])


_ED: Final = ed25519.Ed25519PrivateKey.generate()
_RSA: Final = rsa.generate_private_key(65537, 2048)
PRIVATE: Final = _ED.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
CERTIFICATE: Final = public(_ED).replace("PUBLIC KEY", "CERTIFICATE")
WEAK: Final = public(rsa.generate_private_key(65537, 1024))
STRANGE: Final = public(ec.generate_private_key(ec.SECP256K1()))
#: Either would be a secret that everybody knows, or that nobody should.
WITHOUT_LINES: Final = body(public(_RSA))
PRIVATE_WITHOUT_LINES: Final = body(PRIVATE)


class Case(NamedTuple):
    default: Any
    good: str
    parsed: Any
    bad: tuple[str, ...]


CASES: Final[dict[str, Case]] = {
    "redis_url": Case(
        "redis://127.0.0.1:6379/0",
        "rediss://cache.example.com:6380/2",
        "rediss://cache.example.com:6380/2",
        ("localhost:6379", f"http://:{SECRET}@host"),
    ),
    "data_dir": Case(Path("data"), "/var/lib/headway", Path("/var/lib/headway"), ()),
    "storage_url": Case(
        "",
        "s3://my-bucket/a/b/",
        "s3://my-bucket/a/b",
        (
            *(
                "/mnt/share",
                "https://my-bucket.s3.amazonaws.com",
                "s3://",
                "s3:///x",
                "s3://UPPER",
                "s3://bucket:9000/x",
            ),
            f"s3://key:[{SECRET}]@bucket/x",
            *("s3://bucket/a//b", "s3://bucket/../b", f"s3://key:{SECRET}@bucket/x", f"s3://bucket?secret={SECRET}"),
        ),
    ),
    "app_dir": Case(Path(), "/srv/our-app", Path("/srv/our-app"), ()),
    "files_dir": Case(Path("files"), "/srv/files", Path("/srv/files"), ()),
    "api_keys": Case(
        {},
        '{"alice": "' + SECRET + '"}',
        {"alice": SecretStr(SECRET)},
        (
            SECRET,
            f'["{SECRET}"]',
            '{"alice": "short"}',
            '{"a b": "' + SECRET + '"}',
            '{"alice": ["' + SECRET + '"]}',
            '{"alice": "' + SECRET + ' with spaces"}',
        ),
    ),
    "jwt_key": Case(
        None,
        SECRET + "-and-some-more",
        SecretStr(SECRET + "-and-some-more"),
        (
            *(
                "short",
                "x" * 31,
                "http://login.example.com/keys",
                "https://",
                f"https://me:{SECRET}@login.example.com/",
            ),
            *("http://127.0.0.1.example.com/keys", "http://[::2]/keys", "https://login.example.com/keys#1"),
            *('{"keys": []}', "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ", "-----BEGIN PUBLIC KEY-----"),
            *(PRIVATE, PRIVATE.replace("\n", "\\n"), CERTIFICATE, WEAK, WITHOUT_LINES, PRIVATE_WITHOUT_LINES, STRANGE),
        ),
    ),
    "jwt_issuer": Case("", "https://login.example.com/", "https://login.example.com/", ("x" * 1001,)),
    "jwt_audience": Case("", "headway", "headway", ("x" * 1001,)),
    "jwt_owner_claim": Case("sub", "https://example.com/user", "https://example.com/user", ("a b", "ö")),
    "insecure": Case(False, "1", True, ("maybe",)),
    "root_path": Case(
        "",
        "a/b/",
        "/a/b",
        ("//evil", "/a//b", "/../a", "/.", "https://a.example.com/x", "/a b", "/a;b", "/%2e%2e", "/é", "/" + "a" * 64),
    ),
    "cors_origins": Case(
        [],
        "https://a.example.com, http://b.example.com:8080",
        ["https://a.example.com", "http://b.example.com:8080"],
        ("*", "https://*.example.com", "https://a.example.com/", "a.example.com", "[1"),
    ),
    "max_upload_bytes": Case(5 * GIB, "10GiB", 10 * GIB, ("0", "-1", "many", "10 parsecs", "9" * 400)),
    "owner_quota_bytes": Case(0, "20GiB", 20 * GIB, ("-1", "some")),
    "disk_reserve_bytes": Case(None, "1GiB", GIB, ("-1", "some")),
    "namespace": Case("headway", "blue-2", "blue-2", ("Blue", "a:b", "a b", "2", "x" * 41)),
    "task_ttl_seconds": Case(7 * DAY_SECONDS, "60", 60, ("0", "-1", "1.5", "week", "9" * 5000)),
    "history_length": Case(1000, "20", 20, ("0", "1000000", "all")),
    "lease_seconds": Case(3.0, "0.5", 0.5, ("0", "nan", "inf", "soon")),
    "max_attempts": Case(3, "1", 1, ("0", "1000", "1.5")),
    "task_timeout_seconds": Case(3600.0, "2.5", 2.5, ("0", "nan", "1h")),
    "task_memory_bytes": Case(GIB, "512MiB", 512 * 1024**2, ("1MiB", "lots")),
    "task_disk_bytes": Case(10 * GIB, "512MiB", 512 * 1024**2, ("1KiB", "lots")),
    "owner_concurrency": Case(0, "3", 3, ("-1", "1.5", "all")),
    "worker_concurrency": Case(os.cpu_count() or 1, "2", 2, ("0", "1.5", "all")),
    "heartbeat_seconds": Case(15.0, "0.2", 0.2, ("0", "nan", "often")),
    "send_timeout_seconds": Case(20.0, "5", 5.0, ("0", "-5", "late")),
    "keep_alive_seconds": Case(130.0, "90", 90.0, ("0", "-5", "late", "100000")),
    "receive_timeout_seconds": Case(30.0, "5", 5.0, ("0", "-5", "late", "4000")),
    "token_seconds": Case(3600, "60", 60, ("0", "never")),
    "max_notes_per_second": Case(20, "5", 5, ("-1", "many")),
    "owner_words_bytes": Case(None, "1MiB", 1024**2, ("-1", "much")),
    "max_streams": Case(None, "5", 5, ("-1", "many")),
    "max_uploads": Case(None, "5", 5, ("-1", "many")),
    "max_unfinished_tasks": Case(100_000, "5", 5, ("-1", "many")),
    "max_requests_per_second": Case(None, "50", 50, ("-1", "many")),
    "metrics_host": Case("127.0.0.1", "0.0.0.0", "0.0.0.0", ("http://localhost", "a b", "*")),
    "metrics_port": Case(0, "9100", 9100, ("-1", "65536", "http")),
    "processor_paths": Case([], "/srv/models, /opt/data", [Path("/srv/models"), Path("/opt/data")], ("models",)),
    "confinement": Case("best", "required", "required", ("strict",)),
    "processors": Case([], "mine.one,mine.two", ["mine.one", "mine.two"], ("my-module", "mine.", "a/b.py")),
    "webhook_secret": Case(
        [],
        f"{WHSEC}, {WHSEC[:-1]}A",
        [SecretStr(WHSEC), SecretStr(WHSEC[:-1] + "A")],
        ("secret", "whsec_", "whsec_AAAA", "whsec_#", WHSEC.removeprefix("whsec_"), f"{WHSEC},{WHSEC},{WHSEC}"),
    ),
    "webhook_url": Case(
        "",
        "https://hooks.example.com/a?b=c#d",
        "https://hooks.example.com/a?b=c",
        ("hooks.example.com", "ftp://a.example.com/", "https://a:b@example.com/", "https://", "https://a b/"),
    ),
    "webhook_allow": Case(
        [],
        "10.0.0.0/8, [fd00::1]:8443,hooks.internal",
        ["10.0.0.0/8", "[fd00::1]:8443", "hooks.internal"],
        ("*", "10.0.0.0/99", "http://a.internal/", "a.internal:99999", "[1"),
    ),
    "log_format": Case(None, "json", "json", ("xml", "JSON!")),
}

BAD: Final = [(name, value) for name, case in CASES.items() for value in case.bad]


@pytest.fixture(autouse=True)
def _without_a_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def variable(name: str) -> str:
    return f"HEADWAY_{name.upper()}"


def complaint_about(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return str(refused.value)


def test_every_setting_has_a_case_here() -> None:
    assert CASES.keys() == Settings.model_fields.keys()
    assert {name for name, case in CASES.items() if not case.bad} == {
        "app_dir",
        "data_dir",
        "files_dir",
    }  # any text is a path


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_default_is_the_contracts(name: str) -> None:
    assert getattr(load_settings(), name) == CASES[name].default


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_good_value_is_taken_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_JWT_AUDIENCE", "headway")  # without which no key of tokens is taken
    monkeypatch.setenv("HEADWAY_WEBHOOK_SECRET", WHSEC)  # without which nobody is told
    monkeypatch.setenv(variable(name), CASES[name].good)
    assert getattr(load_settings(), name) == CASES[name].parsed


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_means_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(name), "")
    assert getattr(load_settings(), name) == CASES[name].default


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_example_in_a_complaint_is_itself_a_good_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [example, *_] = Settings.model_fields[name].examples or [""]
    assert example
    monkeypatch.setenv("HEADWAY_JWT_AUDIENCE", "headway")
    monkeypatch.setenv("HEADWAY_WEBHOOK_SECRET", WHSEC)
    monkeypatch.setenv(variable(name), example)
    load_settings()


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value[:20]}" for name, value in BAD])
def test_a_bad_value_is_told_on_one_line_with_its_variable_and_an_example(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = complaint_about(name, value, monkeypatch)
    assert told.startswith(f"{variable(name)}: ")
    assert f"Example: {variable(name)}={(Settings.model_fields[name].examples or ['?'])[0]}" in told
    assert "\n" not in told
    assert "validation error" not in told
    assert SECRET not in told


def test_every_bad_variable_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_MAX_ATTEMPTS", "0")
    told = complaint_about("lease_seconds", "soon", monkeypatch).splitlines()
    assert [line.partition(":")[0] for line in told] == ["HEADWAY_LEASE_SECONDS", "HEADWAY_MAX_ATTEMPTS"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("5GiB", 5 * GIB), ("5 GiB", 5 * GIB), ("1.5KiB", 1536), ("10MB", 10_000_000), ("123", 123), ("1TiB", 1024 * GIB)],
)
def test_a_size_has_a_unit_or_is_bytes(text: str, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_MAX_UPLOAD_BYTES", text)
    assert load_settings().max_upload_bytes == size_bytes


@pytest.mark.parametrize("text", ["a.b,c", " a.b , c ,", '["a.b", "c"]'])
def test_a_list_is_comma_separated_or_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_PROCESSORS", text)
    assert load_settings().processors == ["a.b", "c"]


def test_a_dotenv_file_is_read_and_the_environment_wins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("HEADWAY_HISTORY_LENGTH=7\nHEADWAY_MAX_ATTEMPTS=8\nOTHER=ignored\n")
    monkeypatch.setenv("HEADWAY_MAX_ATTEMPTS", "9")
    settings = load_settings()
    assert (settings.history_length, settings.max_attempts) == (7, 9)


def test_a_bad_value_in_a_dotenv_file_is_told_as_one_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HEADWAY_HISTORY_LENGTH=none\n")
    with pytest.raises(SettingsError, match=r"^HEADWAY_HISTORY_LENGTH: .*Example: HEADWAY_HISTORY_LENGTH=1000$"):
        load_settings()


def test_an_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_HISTORY_LENGTH", "7")
    assert load_settings(history_length=9).history_length == 9


@pytest.mark.parametrize(
    "key",
    [
        *("s" * 32, "ö" * 16, "https://login.example.com/keys?tenant=1", "HTTPS://login.example.com/keys"),
        *("http://127.0.0.1:9000/keys", "http://localhost/keys", "http://[::1]:9000/keys"),
        *(public(_ED), public(_RSA), public(ec.generate_private_key(ec.SECP384R1()))),
        public(_ED).replace("\n", "\\n"),
    ],
)
def test_a_key_of_tokens_is_a_secret_a_public_key_or_an_address_and_needs_an_audience(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = complaint_about("jwt_key", key, monkeypatch)
    assert told.startswith("HEADWAY_JWT_AUDIENCE: must be set with HEADWAY_JWT_KEY")
    assert "\n" not in told
    settings = load_settings(jwt_audience="headway")
    assert settings.jwt_key is not None
    assert not settings.is_open
    assert settings.jwt_key.get_secret_value() not in repr(settings)


def test_settings_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().max_attempts = 4  # type: ignore[misc]


def test_a_key_is_not_shown_where_settings_are_printed() -> None:
    settings = load_settings(api_keys={"alice": SECRET})
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1:99999999/0",
        "redis://[::1",
        "redis://127.0.0.1?socket_timeout=x",
        "redis://127.0.0.1?nothing=1",
    ],
)
def test_a_redis_url_that_no_client_can_use_is_told_at_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint_about("redis_url", url, monkeypatch).startswith("HEADWAY_REDIS_URL: ")


@pytest.mark.parametrize("name", ["api_keys", "cors_origins", "processors"])
def test_json_that_is_too_deep_is_told_as_any_bad_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complaint_about(name, "[" * 100_000, monkeypatch).startswith(variable(name))


def test_a_dotenv_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"HEADWAY_HISTORY_LENGTH=\xff\xfe\n")
    with pytest.raises(SettingsError, match=r"\.env|settings"):
        load_settings()


COMMANDS: Final = {
    "uvicorn": ["-m", "uvicorn", "api.main:app", "--port", "0"],
    "headway api": ["-m", "headway.cli.main", "api", "--port", "0"],
    "headway worker": ["-m", "headway.cli.main", "worker"],
}


def start(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *COMMANDS[command]], env=os.environ | env, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_start_with_a_bad_value_ends_with_that_line_and_no_traceback(command: str) -> None:
    ended = start(command, HEADWAY_LEASE_SECONDS="soon", HEADWAY_API_KEYS=SECRET)
    assert ended.returncode not in (0, None)
    first, second = ended.stderr.splitlines()
    assert first.startswith("HEADWAY_API_KEYS: ")
    assert second.startswith("HEADWAY_LEASE_SECONDS: ")
    assert second.endswith("Example: HEADWAY_LEASE_SECONDS=3")
    assert SECRET not in ended.stderr + ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_data_directory_that_cannot_be_written_is_told_without_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no directory")
    ended = start(command, HEADWAY_DATA_DIR=str(tmp_path / "file"))
    assert ended.returncode not in (0, None)
    assert "HEADWAY_DATA_DIR: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_secret_file_is_read_and_the_environment_wins_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.shared.settings.SECRETS_DIR", tmp_path)
    (tmp_path / "HEADWAY_API_KEYS").write_text('{"alice": "' + SECRET + '"}\n')
    (tmp_path / "HEADWAY_MAX_ATTEMPTS").write_text("7\n")
    monkeypatch.setenv("HEADWAY_MAX_ATTEMPTS", "5")
    settings = load_settings()
    assert settings.api_keys == {"alice": SecretStr(SECRET)}
    assert settings.max_attempts == 5


def test_a_bad_value_in_a_secret_file_is_told_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.shared.settings.SECRETS_DIR", tmp_path)
    (tmp_path / "HEADWAY_API_KEYS").write_text(SECRET)
    with pytest.raises(SettingsError, match="HEADWAY_API_KEYS: ") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_a_receiver_of_all_ends_needs_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HEADWAY_WEBHOOK_SECRET" in complaint_about("webhook_url", "https://hooks.example.com/", monkeypatch)
