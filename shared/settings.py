"""The settings of CONTRACT section 2: one class, read from `HEADWAY_*` variables, `.env` and secret files, passed in,
never global.

A bad value raises SettingsError with the variable's name, what is wrong and an example, before anything has started.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError
from redis.asyncio.connection import Connection, parse_url

from headway.shared.errors import SettingsError
from headway.shared.redis.sentinel import SentinelUrl
from headway.shared.redis.urls import url_parts
from headway.shared.tasks.models import OwnerId, is_owner_name
from headway.shared.units import DAY_SECONDS, GIB
from headway.shared.webhooks.address import Place, clean_url
from headway.shared.webhooks.signature import secret_bytes

#: Where compose puts secrets: a file named as the variable holds its value. A variable, or `.env`, wins over it.
SECRETS_DIR = Path("/run/secrets")

#: What `headway up` uses when there is neither a server nor a binary: a fake Redis inside one process.
MEMORY_URL = "memory://"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def _split(value: Any) -> Any:
    """`a, b` or a JSON list, as an environment variable carries it."""
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        return _json(value)
    return [part for part in (part.strip() for part in value.split(",")) if part]


def _keys(value: Any) -> Any:
    if isinstance(value, str):
        value = _json(value) if value.strip() else {}
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object, owner to key")  # noqa: TRY004 - pydantic wants it
    return value


def _redis_url(value: str) -> str:
    if not re.match(r"(rediss?|unix|memory)://|rediss?\+sentinel://", value):
        raise ValueError("must start with redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://")
    if value.startswith(MEMORY_URL):
        return value
    if SentinelUrl.fits(value):
        SentinelUrl.parse(value)
        return value
    try:  # redis-py's own reading of it, without connecting; the URL is not repeated, it may hold a password
        options = dict(parse_url(value))
        connection = options.pop("connection_class", Connection)(**options)  # type: ignore[operator]
    except Exception:
        raise ValueError("is not a URL that redis-py can read") from None
    if not 0 < getattr(connection, "port", 1) < 65_536:
        raise ValueError("has a port that is none")
    return value


def _storage_url(value: str) -> str:
    if not value:
        return value
    if not value.startswith("s3://"):
        raise ValueError("must start with s3:// and name a bucket; empty, files are kept in HEADWAY_DATA_DIR")
    url = url_parts(value)
    if url.credentials:
        raise ValueError("holds a secret; credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if url.query or url.fragment:
        raise ValueError("takes no options; the endpoint and the region belong in AWS_ENDPOINT_URL and AWS_REGION")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", url.hosts):
        raise ValueError("names no bucket (3 to 63 lower-case letters, digits or . -)")
    if not re.fullmatch(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,8}/?", url.path):
        raise ValueError("has a path that is none; use letters, digits or . _ - between the slashes")
    return value.rstrip("/")


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", value):
        raise ValueError("is not an address or the name of a host")
    return value


def clean_root_path(value: str) -> str:
    """`/a/b` of `/a/b`, `a/b`, `a/b/`; empty for `/`. It becomes part of links, headers and a cookie's path, so it is
    made of what needs no escape in any of them; 64 characters, because an event with its results has room for so many.
    Raises ValueError."""
    path = value.removeprefix("/").removesuffix("/")
    parts = path.split("/") if path else []
    if any(not re.fullmatch(r"[A-Za-z0-9._~-]+", part) or part in (".", "..") for part in parts) or len(path) > 63:
        raise ValueError("is not a path prefix (names of letters, digits or . _ ~ - between slashes, 64 characters)")
    return f"/{path}" if path else ""


def _origin(values: list[str]) -> list[str]:
    for value in values:
        if not re.fullmatch(r"https?://[^/\s*]+", value):
            raise ValueError(f"{value!r} is not an origin (scheme and host, no path, no wildcard)")
    return values


def _modules(values: list[str]) -> list[str]:
    for value in values:
        if not all(part.isidentifier() for part in value.split(".")):
            raise ValueError(f"{value!r} is not the dotted name of a module")
    return values


def _absolute(values: list[Path]) -> list[Path]:
    for value in values:
        if not value.is_absolute():
            raise ValueError(f"{str(value)!r} is not an absolute path")
    return values


def _owners(value: dict[OwnerId, SecretStr]) -> dict[OwnerId, SecretStr]:
    for owner, key in value.items():
        if not is_owner_name(owner):
            raise ValueError(f"owner {owner!r} must be 1 to 64 letters, digits or _ . @ + | -")
        if not re.fullmatch(r"[\x21-\x7e]{16,512}", key.get_secret_value()):
            raise ValueError(f"the key of {owner!r} must be 16 to 512 printable characters without spaces")
    if len({key.get_secret_value() for key in value.values()}) < len(value):
        raise ValueError("two owners have the same key")
    return value


def _webhook_secrets(value: Any) -> Any:
    """One, or two while they are changed: `whsec_a, whsec_b`; a file may have them on lines of their own."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _whole_secrets(values: list[SecretStr]) -> list[SecretStr]:
    if len(values) > 2:
        raise ValueError("has more than two secrets; two are for the time in which one replaces the other")
    for value in values:
        try:
            secret_bytes(value.get_secret_value())
        except ValueError as error:
            raise ValueError(str(error)) from None
    return values


def _webhook_url(value: str) -> str:
    return clean_url(value) if value else value


def _allowed_places(values: list[str]) -> list[str]:
    for value in values:
        Place.parse(value)
    return values


#: What the hash of HS256 gives, and so the least that its key may have (RFC 7518, section 3.2).
SECRET_BYTES = 32
#: A modulus of RSA that is shorter can be factored (RFC 8725, section 3.5).
RSA_BITS = 2048
JWKS_URL = re.compile(r"https?://", re.IGNORECASE)


def _jwt_key(value: SecretStr) -> SecretStr:
    """What it is, is seen by how it looks, and never guessed: a public key that is taken for a secret lets in everybody
    who has it (RFC 8725, section 2.1). The value is not repeated, it may be a secret."""
    text = value.get_secret_value().strip()
    if JWKS_URL.match(text):
        return SecretStr(_jwks_url(text))
    if "-----BEGIN" in text:
        return SecretStr(_public_key(text))
    if text.startswith("{"):
        raise ValueError("is a JWK; give the https:// address of the JWKS, or the public key as PEM")
    if text.startswith(("ssh-", "ecdsa-")):
        raise ValueError("is a key of SSH; give the public key as PEM (-----BEGIN PUBLIC KEY-----)")
    if _is_der(text):
        raise ValueError("is a key without its PEM lines; write it between -----BEGIN PUBLIC KEY----- and -----END …")
    if len(text.encode()) < SECRET_BYTES:
        raise ValueError(f"is a secret of fewer than {SECRET_BYTES} bytes, which can be found by trying")
    return SecretStr(text)


def _jwks_url(text: str) -> str:
    url = url_parts(text)
    host = url.hosts.rpartition(":")[0] if re.search(r":\d+$", url.hosts) else url.hosts
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not host or url.credentials or url.fragment:
        raise ValueError("is no address of a JWKS: it needs a host, and takes no password and no #")
    if text.lower().startswith("http://") and not loopback:
        raise ValueError("is an http:// address, on whose way anybody could put a key of their own; use https://")
    return text


def _public_key(text: str) -> str:
    """A variable has no line ends in many a file; `\\n` stands for one."""
    text = text.replace("\\n", "\n")
    if "PRIVATE KEY-----" in text:
        raise ValueError("is a private key, which stays with whoever signs; give the public key")
    if "CERTIFICATE-----" in text:
        raise ValueError("is a certificate; give its public key (openssl x509 -pubkey -noout)")
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode())
    except Exception:
        raise ValueError("is not a public key in PEM") from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise ValueError(f"is an RSA key of {key.key_size} bits; {RSA_BITS} are the least")
        return text
    if isinstance(key, ed25519.Ed25519PublicKey):
        return text
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise ValueError("is a kind of key that is not taken; RSA, EC (P-256, P-384, P-521) and Ed25519 are")
    return text


def _is_der(text: str) -> bool:
    """Whether it is the middle of a PEM file: a key in base64."""
    try:
        der = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not der.startswith(b"\x30"):
        return False
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

    for load in (load_der_public_key, lambda data: load_der_private_key(data, None)):
        with suppress(Exception):
            load(der)
            return True
    return False


class Settings(BaseSettings):
    """Every setting, its default and its range. `Field(examples=…)` is what an error message shows."""

    model_config = SettingsConfigDict(
        env_prefix="HEADWAY_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field(
        default="redis://127.0.0.1:6379/0", examples=["redis://127.0.0.1:6379/0"]
    )
    namespace: str = Field(default="headway", pattern=r"^[a-z][a-z0-9_-]{0,39}$", examples=["headway"])
    data_dir: Path = Field(default=Path("data"), examples=["./data"])
    storage_url: Annotated[str, AfterValidator(_storage_url)] = Field(default="", examples=["s3://my-bucket/headway"])
    files_dir: Path = Field(default=Path("files"), examples=["./files"])
    api_keys: Annotated[dict[OwnerId, SecretStr], NoDecode, BeforeValidator(_keys), AfterValidator(_owners)] = Field(
        default_factory=dict, examples=['{"alice": "a-long-random-key"}']
    )
    jwt_key: Annotated[SecretStr, AfterValidator(_jwt_key)] | None = Field(
        default=None, examples=["https://login.example.com/.well-known/jwks.json"]
    )
    jwt_issuer: str = Field(default="", max_length=1000, examples=["https://login.example.com/"])
    jwt_audience: str = Field(default="", max_length=1000, validate_default=True, examples=["headway"])
    jwt_owner_claim: str = Field(default="sub", pattern=r"^[\x21-\x7e]{1,200}$", examples=["sub"])
    insecure: bool = Field(default=False, examples=["1"])
    root_path: Annotated[str, AfterValidator(clean_root_path)] = Field(default="", examples=["/headway"])
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_origin)] = Field(
        default_factory=list, examples=["https://app.example.com"]
    )
    max_upload_bytes: ByteSize = Field(default=ByteSize(5 * GIB), ge=1, le=1024 * GIB, examples=["5GiB"])
    owner_quota_bytes: ByteSize = Field(default=ByteSize(0), ge=0, le=2**53, examples=["20GiB"])
    disk_reserve_bytes: ByteSize | None = Field(default=None, ge=0, le=2**53, examples=["1GiB"])
    task_ttl_seconds: int = Field(default=7 * DAY_SECONDS, ge=1, le=3650 * DAY_SECONDS, examples=["604800"])
    history_length: int = Field(default=1000, ge=1, le=100_000, examples=["1000"])
    lease_seconds: float = Field(default=3, ge=0.5, le=3600, examples=["3"])
    max_attempts: int = Field(default=3, ge=1, le=100, examples=["3"])
    task_timeout_seconds: float = Field(default=3600, ge=0.1, le=30 * DAY_SECONDS, examples=["3600"])
    task_memory_bytes: ByteSize = Field(default=ByteSize(GIB), ge=64 * 1024**2, le=1024 * GIB, examples=["1GiB"])
    task_disk_bytes: ByteSize = Field(default=ByteSize(10 * GIB), ge=1024**2, le=2**53, examples=["10GiB"])
    owner_concurrency: int = Field(default=0, ge=0, le=1_000_000, examples=["4"])
    worker_concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, examples=["2"])
    heartbeat_seconds: float = Field(default=15, ge=0.1, le=3600, examples=["15"])
    send_timeout_seconds: float = Field(default=20, ge=0.1, le=3600, examples=["20"])
    receive_timeout_seconds: float = Field(default=30, ge=0.1, le=3600, examples=["30"])
    keep_alive_seconds: float = Field(default=130, ge=1, le=86_400, examples=["130"])
    token_seconds: int = Field(default=3600, ge=1, le=30 * DAY_SECONDS, examples=["3600"])
    max_streams: int | None = Field(default=None, ge=0, le=10_000_000, examples=["20000"])
    max_uploads: int | None = Field(default=None, ge=0, le=1_000_000, examples=["1000"])
    max_unfinished_tasks: int = Field(default=100_000, ge=0, le=100_000_000, examples=["100000"])
    max_notes_per_second: int = Field(default=20, ge=0, le=1_000_000, examples=["20"])
    owner_words_bytes: ByteSize | None = Field(default=None, ge=0, le=2**53, examples=["64MiB"])
    max_requests_per_second: int | None = Field(default=None, ge=0, le=1_000_000, examples=["100"])
    metrics_host: Annotated[str, AfterValidator(_host)] = Field(default="127.0.0.1", examples=["10.0.0.7"])
    metrics_port: int = Field(default=0, ge=0, le=65_535, examples=["9100"])
    webhook_secret: Annotated[
        list[SecretStr], NoDecode, BeforeValidator(_webhook_secrets), AfterValidator(_whole_secrets)
    ] = Field(default_factory=list, examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    webhook_url: Annotated[str, AfterValidator(_webhook_url)] = Field(
        default="", examples=["https://hooks.example.com/headway"]
    )
    webhook_allow: Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_allowed_places)] = Field(
        default_factory=list, examples=["10.1.0.0/16, hooks.internal:8443"]
    )
    processors: Annotated[list[str], NoDecode, BeforeValidator(_split), AfterValidator(_modules)] = Field(
        default_factory=list, examples=["mypackage.processors"]
    )
    app_dir: Path = Field(default=Path(), examples=["/srv/our-app"])
    processor_paths: Annotated[list[Path], NoDecode, BeforeValidator(_split), AfterValidator(_absolute)] = Field(
        default_factory=list, examples=["/srv/models"]
    )
    confinement: Literal["required", "best", "off"] = Field(default="best", examples=["required"])
    log_format: Literal["console", "json"] | None = Field(default=None, examples=["json"])

    @field_validator("jwt_audience")
    @classmethod
    def _audience_is_named(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("jwt_key") is not None:
            raise ValueError("must be set with HEADWAY_JWT_KEY, or a token for any other service would be good here")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _webhooks_are_signed(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("webhook_secret", True):
            raise ValueError("needs HEADWAY_WEBHOOK_SECRET: what is sent there is signed with it")
        return value

    @property
    def is_open(self) -> bool:
        """Nobody is asked who they are: no keys, and nobody's tokens."""
        return not self.api_keys and self.jwt_key is None


def load_settings(**overrides: Any) -> Settings:
    """Reads the environment; `overrides` win over it.

    Raises SettingsError: every bad variable on a line of its own, with what is wrong and an example. Values are not
    repeated, because one of them may be a key.
    """
    try:
        # A directory that is not there is a warning to pydantic-settings, and here the normal case.
        return Settings(_secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None, **overrides)
    except OSError as error:
        raise SettingsError(f"The settings cannot be read: {error.filename}: {error.strerror}.") from None
    except SourceError as error:
        raise SettingsError(f"The settings cannot be read: {error.__cause__ or error}") from None
    except UnicodeDecodeError:
        raise SettingsError("The settings cannot be read: .env, or a secret file, is not UTF-8.") from None
    except ValidationError as error:
        lines = {}
        for problem in error.errors(include_url=False, include_input=False):
            field = str(problem["loc"][0])
            example = (Settings.model_fields[field].examples or [""])[0]
            what = problem["msg"].removeprefix("Value error, ")
            lines[field] = f"HEADWAY_{field.upper()}: {what}. Example: HEADWAY_{field.upper()}={example}"
        raise SettingsError("\n".join(lines.values())) from None
