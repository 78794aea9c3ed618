"""Tokens that somebody else signs: each pitfall of RFC 8725, the narrowing, and every kind of key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from headway.api.access.grant import NEEDS, WHOLE, Action, Grant, NotGranted, Owner, claim_of, grant_of
from headway.api.access.identity import Policy, policies_of
from headway.api.access.jwks import BadKeySet, keys_of
from headway.api.access.tokens import Claimed, Keys, OneKey, Tokens, VerifyingKey, key_of
from headway.api.app import create_app
from headway.shared.settings import Settings

SECRET: Final = "a-secret-of-two-and-thirty-bytes"
AUDIENCE: Final = "headway"
ISSUER: Final = "https://login.example.com/"
RSA: Final = rsa.generate_private_key(65537, 2048)
EC: Final = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
ED: Final = ed25519.Ed25519PrivateKey.generate()
TASK: Final = "0123456789abcdef" * 2


def pem(private: Any) -> str:
    public: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good ones; `None` leaves one out."""
    good = {"sub": "alice", "aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 60}
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(headers: Mapping[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), SECRET, "HS256", headers=dict(headers or {}))


def part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def by_hand(header: Any, body: Any, secret: str = SECRET) -> str:
    """As PyJWT would not make it."""
    text = f"{part(header)}.{part(body)}"
    return f"{text}.{part(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def reader(key: Keys | None = None, *, issuer: str = ISSUER, owner_claim: str = "sub") -> Tokens:
    return Tokens(key or OneKey(key_of(SECRET)), audience=AUDIENCE, issuer=issuer, owner_claim=owner_claim)


async def test_a_good_token_is_its_owner_until_its_end() -> None:
    end = int(time.time()) + 60
    assert await reader().read(signed(exp=end)) == Claimed("alice", WHOLE, float(end))  # type: ignore[arg-type]
    for good in (
        signed(aud=["another", AUDIENCE]),
        signed(nbf=int(time.time()) - 1, iat=int(time.time()) + 2),  # a clock that is ahead by a little
        signed({"typ": "at+jwt"}),
        signed({"kid": "whatever"}),
        signed(exp=time.time() + 30.5, more={"of": ["anything"]}),
        signed({"jku": "https://evil.test/keys", "x5u": "https://evil.test/", "jwk": {"kty": "oct", "k": "AA"}}),
    ):
        assert await reader().read(good) is not None
    assert await reader(issuer="").read(signed(iss=None)) is not None


BAD: Final[dict[str, Any]] = {
    # 2.1 and 3.1, 3.2: what is signed with is the key's to say.
    "no algorithm": lambda: by_hand({"typ": "JWT"}, claims()),
    "alg none": lambda: f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}.",
    "alg none with a signature": lambda: by_hand({"alg": "none"}, claims()),
    "alg None": lambda: f"{part({'alg': 'None'})}.{part(claims())}.AA",
    "alg nOnE": lambda: by_hand({"alg": "nOnE"}, claims()),
    "another length": lambda: jwt.encode(claims(), SECRET * 2, "HS512"),
    "alg is a list": lambda: by_hand({"alg": ["HS256"]}, claims()),
    "alg is null": lambda: by_hand({"alg": None}, claims()),
    # 2.2: keys that can be found.
    "another secret": lambda: jwt.encode(claims(), "x" * 32, "HS256"),
    "an empty secret": lambda: by_hand({"alg": "HS256"}, claims(), ""),
    # 2.3 to 2.5, 3.10: what the header says of keys is not followed.
    "its own key": lambda: by_hand({"alg": "HS256", "jwk": {"kty": "oct", "k": part(b"x" * 32)}}, claims(), "x" * 32),
    "encrypted": lambda: f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..AA.AA.AA",
    # 3.3: nothing is taken that is not understood.
    "crit": lambda: signed({"crit": ["exp"]}),
    "crit, empty": lambda: by_hand({"alg": "HS256", "crit": []}, claims()),
    "b64": lambda: by_hand({"alg": "HS256", "b64": True}, claims()),
    "b64 false": lambda: f"{part({'alg': 'HS256', 'b64': False, 'crit': ['b64']})}..AA",
    # 3.8: issuer and subject.
    "another issuer": lambda: signed(iss="https://evil.test/"),
    "no issuer": lambda: signed(iss=None),
    "the beginning of the issuer": lambda: signed(iss=ISSUER[:-1]),
    "the issuer in a list": lambda: by_hand({"alg": "HS256"}, claims(iss=[ISSUER])),
    "no owner": lambda: signed(sub=None),
    "an owner that is a number": lambda: by_hand({"alg": "HS256"}, claims(sub=7)),
    "an owner that is a list": lambda: by_hand({"alg": "HS256"}, claims(sub=["alice"])),
    "an owner that is null": lambda: by_hand({"alg": "HS256"}, claims() | {"sub": None}),
    "an empty owner": lambda: signed(sub=""),
    "the owner of open mode": lambda: signed(sub="anyone"),
    "an owner with a colon": lambda: signed(sub="alice:tasks"),
    "an owner with a line end": lambda: signed(sub="alice\n"),
    "an owner with a space": lambda: signed(sub="al ice"),
    "an owner of another script": lambda: signed(sub="аlice"),
    "a long owner": lambda: signed(sub="a" * 65),
    # 3.9: audience.
    "another audience": lambda: signed(aud="another"),
    "no audience": lambda: signed(aud=None),
    "an empty audience": lambda: signed(aud=[]),
    "a part of the audience": lambda: signed(aud=AUDIENCE + "s"),
    "an audience that is a number": lambda: by_hand({"alg": "HS256"}, claims(aud=7)),
    # 3.11, 3.12: a token that is for something else.
    "an identity's event": lambda: signed({"typ": "secevent+jwt"}),
    "a log-out": lambda: signed({"typ": "logout+jwt"}),
    "a proof": lambda: signed({"typ": "dpop+jwt"}),
    # Time.
    "no end": lambda: signed(exp=None),
    "past": lambda: signed(exp=int(time.time()) - 1),
    "ends now": lambda: by_hand({"alg": "HS256"}, claims(exp=time.time())),
    "an end that is text": lambda: by_hand({"alg": "HS256"}, claims(exp=str(int(time.time()) + 60))),
    "an end that is true": lambda: by_hand({"alg": "HS256"}, claims(exp=True)),
    "an end that is null": lambda: by_hand({"alg": "HS256"}, claims() | {"exp": None}),
    "an end that is a list": lambda: by_hand({"alg": "HS256"}, claims(exp=[2**33])),
    "no end ever": lambda: by_hand({"alg": "HS256"}, claims(exp=float("inf"))),
    "an end that is no number": lambda: by_hand({"alg": "HS256"}, claims(exp=float("nan"))),
    "an end that no calendar has": lambda: by_hand({"alg": "HS256"}, claims(exp=1e300)),
    "not yet": lambda: signed(nbf=int(time.time()) + 60),
    "made tomorrow": lambda: signed(iat=int(time.time()) + 86_400),
    # 2.7, 3.7: other texts of the same, and what is no token.
    "no object": lambda: by_hand({"alg": "HS256"}, ["alice"]),
    "no JSON": lambda: by_hand({"alg": "HS256"}, b"{"),
    "not UTF-8": lambda: by_hand({"alg": "HS256"}, b'{"sub": "\xff"}'),
    "a header that is a list": lambda: by_hand(["HS256"], claims()),
    "a deep header": lambda: by_hand(b"[" * 5000, claims()),
    "a kid that is a number": lambda: by_hand({"alg": "HS256", "kid": 7}, claims()),
    "padding": lambda: signed() + "=",
    "a line end": lambda: signed() + "\n",
    "one part too many": lambda: signed() + ".AA",
    "no signature": lambda: signed().rpartition(".")[0] + ".",
    "two parts": lambda: signed().rpartition(".")[0],
    "nothing": lambda: "",
    "dots": lambda: "..",
    "too long": lambda: signed(more="x" * 8192),
    "another alphabet": lambda: signed().replace("e", "é", 1),
    # The narrowing: what is not understood gives nothing.
    **{
        f"headway: {json.dumps(wrong)}": lambda wrong=wrong: by_hand({"alg": "HS256"}, claims() | {"headway": wrong})
        for wrong in (
            *(None, True, 1, "read", [], ["read"], {"tasks": "read"}, {"tasks": ["reed"]}, {"tasks": ["READ"]}),
            *({"tasks": None}, {"tasks": [["read"]]}, {"tasks": {"read": True}}, {"tasks": ["read", "admin"]}),
            *({"task": ["read"]}, {"Tasks": ["read"]}, {"tasks": ["read"], "more": 1}, {"task_id": "x"}),
            *({"task_id": TASK.upper()}, {"task_id": None}, {"task_id": [TASK]}, {"task_id": TASK + "\n"}),
            *({"processors": "checksum"}, {"processors": [7]}, {"processors": [""]}, {"processors": None}),
            *({"processors": [str(number) for number in range(101)]}, {"max_upload_bytes": "1"}),
            *({"max_upload_bytes": -1}, {"max_upload_bytes": 1.5}, {"max_upload_bytes": True}),
            *({"max_upload_bytes": None}, {"max_upload_bytes": 2**60}),
        )
    },
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_token_that_is_not_good_is_nobodys(kind: str) -> None:
    assert await reader().read(BAD[kind]()) is None


@pytest.mark.parametrize("seed", range(8))
async def test_a_token_that_was_changed_anywhere_is_nobodys(seed: int) -> None:
    """One character, also where base64 would read the same; or left out, doubled, put elsewhere."""
    rng = random.Random(seed)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \x00é"
    keys: list[tuple[Any, str, str]] = [(SECRET, SECRET, "HS256"), (EC["ES256"], pem(EC["ES256"]), "ES256")]
    for private, public, algorithm in keys:
        token = jwt.encode(claims(sub=f"owner-{seed}"), private, algorithm)
        tokens = reader(OneKey(key_of(public)))
        assert await tokens.read(token) is not None
        for _ in range(150):
            place = rng.randrange(len(token))
            other = rng.randrange(len(token))
            character = rng.choice(alphabet)
            changed = rng.choice(
                [
                    token[:place] + character + token[place + 1 :],
                    token[:place] + character + token[place:],
                    token[:place] + token[place + 1 :],
                    token[:place] + token[min(place, other) : max(place, other)] + token[place:],
                    token[: len(token) - 1] + character,
                ]
            )
            assert changed == token or await tokens.read(changed) is None, changed


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        *((RSA, name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        *((key, name) for name, key in EC.items()),
        (ED, "EdDSA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_kind_of_public_key_reads_its_own_algorithms_and_no_other(private: Any, algorithm: str) -> None:
    tokens = reader(OneKey(key_of(pem(private))))
    assert await tokens.read(jwt.encode(claims(), private, algorithm)) is not None
    for other, name in ((RSA, "RS256"), (EC["ES256"], "ES256"), (EC["ES384"], "ES384"), (ED, "EdDSA")):
        if other is not private:
            assert await tokens.read(jwt.encode(claims(), other, name)) is None
            assert await reader(OneKey(key_of(pem(other)))).read(jwt.encode(claims(), private, algorithm)) is None


@pytest.mark.parametrize("private", [RSA, EC["ES256"], ED])
async def test_a_public_key_is_never_a_secret(private: Any) -> None:
    """RFC 8725, section 2.1: everybody has it."""
    public = pem(private)
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, public.strip(), public.replace("\n", ""), der.decode("latin-1")):
        assert await reader(OneKey(key_of(public))).read(by_hand({"alg": "HS256"}, claims(), secret)) is None


async def test_the_owner_may_be_in_another_claim() -> None:
    tokens = reader(owner_claim="https://example.com/user")
    named = await tokens.read(signed(None, **{"https://example.com/user": "auth0|alice+1@example.com"}))
    assert named is not None
    assert named.owner == "auth0|alice+1@example.com"
    assert await tokens.read(signed(sub="alice")) is None
    numbered = by_hand({"alg": "HS256"}, claims() | {"sub": 7, "https://example.com/user": "bob"})
    assert await tokens.read(numbered) is not None


async def test_a_narrowing_is_what_it_says() -> None:
    narrowing = {"tasks": ["read", "cancel"], "task_id": TASK, "processors": ["checksum"], "max_upload_bytes": 0}
    claimed = await reader().read(signed(headway=narrowing))
    assert claimed is not None
    assert claimed.grant == Grant(frozenset({Action.READ, Action.CANCEL}), TASK, frozenset({"checksum"}), 0)  # type: ignore[arg-type]
    assert grant_of(claim_of(claimed.grant)) == claimed.grant
    assert grant_of({}) == WHOLE
    assert grant_of({"tasks": []}).actions == frozenset()  # nothing, not everything


async def test_why_a_token_is_refused_is_in_the_log_and_the_token_is_not() -> None:
    with capture_logs() as logs:
        token = signed(aud="another")
        assert await reader().read(token) is None
    told = [line for line in logs if line["event"] == "token refused"]
    assert len(told) <= 1  # at most one a minute
    assert token not in str(logs)


def jwk(private: Any, **more: Any) -> dict[str, Any]:
    algorithm = {"RSAPrivateKey": "RS256", "ECPrivateKey": "ES256", "Ed25519PrivateKey": "EdDSA"}
    kind = next(name for part, name in algorithm.items() if part in type(private).__name__)
    made: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(kind).to_jwk(private.public_key()))
    made.pop("key_ops", None)
    return made | more


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_a_set_of_keys_has_the_public_keys_for_signatures_and_no_other() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA))
    found = keys_of(
        key_set(
            jwk(RSA, kid="rsa"),
            jwk(RSA, kid="rs512", alg="RS512", use="sig", key_ops=["verify"]),
            jwk(EC["ES256"], kid="ec"),
            jwk(ED, kid="ed", x5t="ignored"),
            jwk(RSA, kid="for-encryption", use="enc"),
            jwk(RSA, kid="for-wrapping", key_ops=["wrapKey"]),
            jwk(RSA, kid="of-another-kind", alg="HS256"),
            jwk(EC["ES256"], kid="of-another-curve", alg="ES384"),
            jwk(RSA, kid="none", alg="none"),
            jwk(weak, kid="weak"),
            private | {"kid": "private"},
            {"kty": "oct", "kid": "secret", "k": part(b"x" * 32)},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": ["RSA"], "kid": "strange"},
            jwk(ED, kid=7),
            jwk(ED, kid="twice"),
            jwk(RSA, kid="twice"),
            "no key",
            None,
        )
    )
    assert {kid: key.algorithms[0] for kid, key in found.items()} == {
        "rsa": "RS256",
        "rs512": "RS512",
        "ec": "ES256",
        "ed": "EdDSA",
    }
    assert len(found["rsa"].algorithms) == 6
    assert found["rs512"].algorithms == ("RS512",)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [null]}', b"<html>", b"[" * 100_000, b"\xff"],
)
def test_what_is_no_set_of_keys_is_refused_whole(body: bytes) -> None:
    with pytest.raises(BadKeySet):
        keys_of(body)


class Few:
    """Keys of a set, which a test may take away."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = keys_of(key_set(*keys))
        self.asked = 0

    async def of(self, kid: str | None) -> VerifyingKey | None:
        self.asked += 1
        return self.known(kid)

    def known(self, kid: str | None) -> VerifyingKey | None:
        return self.keys.get(kid)


async def test_a_good_token_is_verified_once_and_is_good_until_its_end_or_its_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Few(jwk(RSA, kid="k"), jwk(ED, kid="other"))
    tokens = reader(few)
    long, short = (jwt.encode(claims(exp=time.time() + s), RSA, "RS256", headers={"kid": "k"}) for s in (600, 60))
    for token in (long, short):
        assert await tokens.read(token) is not None
        assert await tokens.read(token) is not None
    assert few.asked == 2
    then = time.time() + 61
    with monkeypatch.context() as later:
        later.setattr("headway.api.access.tokens.time", SimpleNamespace(time=lambda: then))
        assert await tokens.read(short) is None
    assert await tokens.read(long) is not None
    del few.keys["k"]
    assert await tokens.read(long) is None
    held = repr(vars(tokens))
    assert long not in held


async def test_no_more_good_tokens_are_remembered_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.api.access.tokens.REMEMBERED", 3)
    tokens = reader()
    for number in range(10):
        assert await tokens.read(signed(sub=f"owner-{number}")) is not None
        assert await tokens.read(signed(sub=f"owner-{number}", aud="another")) is None
    assert len(vars(tokens)["_verified"]) == 3


async def test_a_key_with_one_algorithm_reads_that_alone() -> None:
    one = Few(jwk(RSA, kid="k", alg="RS512"))
    assert await reader(one).read(jwt.encode(claims(), RSA, "RS512", headers={"kid": "k"})) is not None
    assert await reader(one).read(jwt.encode(claims(), RSA, "RS256", headers={"kid": "k"})) is None
    assert await reader(one).read(jwt.encode(claims(), RSA, "RS512", headers={"kid": "another"})) is None


def test_every_route_says_what_a_narrowed_token_needs_for_it() -> None:
    """A row in NEEDS, or here, where it tells of everybody."""
    asked = {
        (method, stated.path)
        for stated in policies_of(create_app(Settings()))
        if stated.policy is not Policy.PUBLIC
        for method in stated.methods or ()
    }
    by_header = {("POST", "/uploads/{task_id}")}  # what its X-HTTP-Method-Override needs
    everybodys = {("GET", "/metrics"), *(("POST", f"/processors/{{name}}/{act}") for act in ("pause", "resume"))}
    assert asked - NEEDS.keys() == by_header | everybodys
    assert NEEDS.keys() - asked == set()
    assert {action for action in NEEDS.values() if isinstance(action, Action)} == set(Action)


def test_an_owner_is_a_name_and_what_narrows_it() -> None:
    assert Owner("alice").grant == WHOLE
    assert Owner("alice", {"tasks": ("read",)}).grant.actions == frozenset({Action.READ})
    for name in ("", "a b", "a:b", "x" * 65, None, 7):
        with pytest.raises(ValueError, match="name of an owner"):
            Owner(name)  # type: ignore[arg-type]
    with pytest.raises(NotGranted):
        Owner("alice", {"tasks": ["reed"]})
    with pytest.raises(ValueError, match="expires_at"):
        Owner("alice", expires_at=float("nan"))
