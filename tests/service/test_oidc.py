"""OIDC tokens: each fault of a token, one at a time, against an issuer on loopback; and what reaches the issuer."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from service import oidc_keys
from service.errors import Unauthorized, Unavailable
from service.oidc import MAX_TOKEN, SKEW_S, Oidc
from service.oidc_keys import FRESH_S, PAUSE_S, STALE_S, WAITING, KeyCache, fetch_keys, usable_keys
from service.settings import Settings
from simpo.errors import ConfigError
from tests.fakes import FakeClock
from tests.service.issuer import AUDIENCE, Issuer, ec, rsa, signed

SETTINGS = Settings(oidc_issuer="https://login.example", oidc_audience=AUDIENCE)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setattr(oidc_keys, "_TIMEOUT_S", 300.0)  # this machine may stand still for as long as a look may take
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def oidc(issuer: Issuer, clock: FakeClock) -> Oidc:
    return Oidc(SETTINGS, clock, http_issuer=issuer.url)


def test_a_good_token_says_who_is_asking(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    now = clock.now().timestamp()
    who = oidc.identity(issuer.token(now))
    assert (who.subject, who.name, who.projects, who.roles) == ("user-1", "ann@example.com", ("default",), ("member",))
    assert who.id.startswith("oidc_") and len(who.id) <= 40
    assert oidc.identity(issuer.token(now, key=ec(), email=None)).name == "user-1"
    assert oidc.identity(issuer.token(now, aud=["other", AUDIENCE], header={"typ": "at+JWT"})).id == who.id
    assert oidc.identity(issuer.token(now, sub="user-2")).id != who.id
    assert oidc.identity(issuer.token(now, nbf=int(now) + SKEW_S, iat=int(now) + SKEW_S)).id == who.id
    assert oidc.identity(issuer.token(now, exp=int(now) - SKEW_S + 1)).id == who.id
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"], "once for all of them"


def test_claims_may_be_lists_and_lie_in_objects(issuer: Issuer, clock: FakeClock) -> None:
    settings = replace(SETTINGS, oidc_project_claim="https://simpo/project", oidc_role_claim="realm_access.roles")
    oidc = Oidc(settings, clock, http_issuer=issuer.url)
    said: Any = {"https://simpo/project": "team-a", "realm_access": {"roles": ["offline", 3, "viewer"]}}
    who = oidc.identity(issuer.token(clock.now().timestamp(), **said))
    assert (who.projects, who.roles) == (("team-a",), ("offline", "viewer"))
    who = oidc.identity(issuer.token(clock.now().timestamp(), realm_access="viewer"))
    assert (who.projects, who.roles) == ((), ())


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://elsewhere.example"}, "another issuer"),
        ({"iss": None}, "lacks iss"),
        ({"iss": ["a"]}, "another issuer"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other"]}, "another audience"),
        ({"aud": []}, "another audience"),
        ({"aud": None}, "lacks aud"),
        ({"sub": None}, "lacks sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"exp": None}, "lacks exp"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": -SKEW_S}, "expired"),
        ({"iat": None}, "lacks iat"),
        ({"iat": SKEW_S + 1}, "future"),
        ({"nbf": SKEW_S + 1}, "not valid yet"),
        ({"nbf": "soon"}, "not valid yet"),
    ],
)
def test_a_wrong_claim_is_refused(
    issuer: Issuer, clock: FakeClock, oidc: Oidc, claims: dict[str, Any], why: str
) -> None:
    now = int(clock.now().timestamp())
    moved: Any = {
        name: now + value if type(value) is int and name in ("exp", "iat", "nbf") else value
        for name, value in claims.items()
    }
    with pytest.raises(Unauthorized, match=why) as caught:
        oidc.identity(issuer.token(now, **moved))
    assert caught.value.headers["www-authenticate"].startswith('Bearer error="invalid_token"')


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"kid": None}, "names no key"),
        ({"kid": ""}, "names no key"),
        ({"kid": "unknown"}, "does not publish"),
        ({"kid": "../../etc/passwd"}, "does not publish"),
        ({"kid": "ec-1"}, "signature"),  # the right name of a wrong key
        ({"alg": "RS512"}, "signature"),  # the key is published for RS256 alone
        ({"typ": "logout+jwt"}, "something else"),
    ],
)
def test_a_wrong_header_is_refused(
    issuer: Issuer, clock: FakeClock, oidc: Oidc, header: dict[str, Any], why: str
) -> None:
    bare = RSAKey.import_key({name: value for name, value in rsa().as_dict(private=True).items() if name != "alg"})
    token = issuer.token(clock.now().timestamp(), key=bare, header={"kid": "rsa-1", **header})
    with pytest.raises(Unauthorized, match=why):
        oidc.identity(token)


def test_a_token_without_a_real_signature_is_refused(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    head, body, signature = issuer.token(clock.now().timestamp()).split(".")
    public = rsa().as_pem(private=False)
    none = _part({"alg": "none", "kid": "rsa-1"})
    confused = f"{_part({'alg': 'HS256', 'kid': 'rsa-1'})}.{body}"
    by_public_key = _b64(hmac.new(public, confused.encode(), hashlib.sha256).digest())
    stolen = json.loads(base64.urlsafe_b64decode(body + "=="))
    tokens = {
        "alg none": f"{none}.{body}.",
        "alg None": f"{_part({'alg': 'None', 'kid': 'rsa-1'})}.{body}.",
        "HS256 with the public key": f"{confused}.{by_public_key}",
        "other claims": f"{head}.{_part({**stolen, 'sub': 'root'})}.{signature}",
        "no signature": f"{head}.{body}.",
        "cut": f"{head}.{body}.{signature[:-8]}",
        "two parts": f"{head}.{body}",
        "five parts (JWE)": f"{head}.{body}.a.b.c",
        "no JSON": f"e30x.{body}.{signature}",
        "a list": f"{_b64(b'[]')}.{body}.{signature}",
        "no base64": f"$$$.{body}.{signature}",
        "deep": f"{_b64(b'[' * 3000)}.{body}.{signature}",
        "huge": issuer.token(clock.now().timestamp(), pad="x" * MAX_TOKEN),
        "unicode": "\N{GREEK SMALL LETTER ALPHA}.b.c",
        "empty": "",
    }
    for name, token in tokens.items():
        with pytest.raises(Unauthorized):
            oidc.identity(token)
            pytest.fail(name)
    assert len(issuer.asked) <= 2


def test_a_token_brings_no_keys_of_its_own(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    """jku, x5u, jwk and x5c are not read: nobody is asked, and the signature must be the issuer's."""
    with Issuer() as evil:
        evil.keys = [rsa("evil")]
        own = rsa("evil").as_dict(private=False)
        pointers = {"jku": f"{evil.url}/keys", "x5u": f"{evil.url}/cert", "jwk": own, "x5c": ["MIIB"]}
        for kid in ("evil", "rsa-1"):
            token = evil.token(clock.now().timestamp(), iss=issuer.url, header={"kid": kid, **pointers})
            with pytest.raises(Unauthorized):
                oidc.identity(token)
        assert evil.asked == []
    good = issuer.token(clock.now().timestamp(), header={"x5t": "abc", "nonstandard": 1})
    assert oidc.identity(good).subject == "user-1"


@pytest.mark.parametrize("header", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"crit": []}])
def test_critical_extensions_are_refused(
    issuer: Issuer, clock: FakeClock, oidc: Oidc, header: dict[str, Any]
) -> None:
    head, body, signature = issuer.token(clock.now().timestamp()).split(".")
    head = _part({"alg": "RS256", "kid": "rsa-1", **header})
    with pytest.raises(Unauthorized, match="extension"):
        oidc.identity(f"{head}.{body}.{signature}")


# -- the issuer's keys


def test_unknown_keys_do_not_hammer_the_issuer(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    now = clock.now().timestamp()
    for number in range(50):
        with pytest.raises(Unauthorized):
            oidc.identity(issuer.token(now, header={"kid": f"made-up-{number}"}))
    assert issuer.asked.count("/keys") == 1
    issuer.keys = [rsa("rsa-2")]
    with pytest.raises(Unauthorized, match="does not publish"):
        oidc.identity(issuer.token(now))
    clock.advance(PAUSE_S)
    assert oidc.identity(issuer.token(now)).subject == "user-1", "rotated"
    assert issuer.asked.count("/keys") == 2
    with pytest.raises(Unauthorized):
        oidc.identity(issuer.token(now, key=rsa()))


def test_a_withdrawn_key_is_forgotten(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    oidc.identity(issuer.token(clock.now().timestamp()))
    issuer.keys = [ec()]
    clock.advance(FRESH_S + 1)
    with pytest.raises(Unauthorized, match="does not publish"):
        oidc.identity(issuer.token(clock.now().timestamp(), key=rsa()))


def test_while_the_issuer_is_silent_known_keys_are_used_for_a_time(
    issuer: Issuer, clock: FakeClock, oidc: Oidc
) -> None:
    issuer.status = 500
    with pytest.raises(Unavailable) as caught:
        oidc.identity(issuer.token(clock.now().timestamp()))
    assert caught.value.headers["retry-after"] == "5"
    with pytest.raises(Unavailable):
        oidc.identity(issuer.token(clock.now().timestamp()))
    assert len(issuer.asked) == 1
    clock.advance(6)
    issuer.status = 200
    assert oidc.identity(issuer.token(clock.now().timestamp())).subject == "user-1"
    issuer.status = 302
    clock.advance(STALE_S - 1)
    assert oidc.identity(issuer.token(clock.now().timestamp())).subject == "user-1"
    clock.advance(10)
    with pytest.raises(Unavailable):
        oidc.identity(issuer.token(clock.now().timestamp()))


def test_an_issuer_that_hangs_holds_few_requests_and_nobody_whose_key_is_known(clock: FakeClock) -> None:
    asked, answer = threading.Event(), threading.Event()
    keys = {"rsa-1": rsa()}

    def hanging() -> dict[str, Any]:
        if len(calls) > 0:
            asked.set()
            assert answer.wait(300)
        calls.append(1)
        return keys

    calls: list[int] = []
    cache = KeyCache(hanging, clock)
    assert cache.find("rsa-1") is rsa()
    clock.advance(PAUSE_S)
    with ThreadPoolExecutor(WAITING) as pool:
        waiting = [pool.submit(cache.find, f"made-up-{number}") for number in range(WAITING)]
        assert asked.wait(300)
        while cache.places_left:
            time.sleep(0.001)
        with pytest.raises(Unavailable):
            cache.find("one-too-many")
        assert cache.find("rsa-1") is rsa()
        clock.advance(FRESH_S)
        assert cache.find("rsa-1") is rsa(), "stale, and somebody looks already"
        answer.set()
        assert [each.result() for each in waiting] == [None] * WAITING
    assert len(calls) == 2


def test_the_discovery_document_must_be_the_issuers_own(issuer: Issuer) -> None:
    for document, why in (
        ({"issuer": "https://elsewhere.example"}, "another issuer"),
        ({"jwks_uri": None}, "names no jwks_uri"),
        ({"jwks_uri": "http://elsewhere.example/keys"}, "https"),
        ({"jwks_uri": "file:///etc/passwd"}, "https"),
        ({"pad": "x" * 300_000}, "more than"),
    ):
        issuer.document = document
        with pytest.raises(ValueError, match=why):
            fetch_keys(issuer.url, None, allow_loopback_http=True)
    assert set(fetch_keys(issuer.url, f"{issuer.url}/keys", allow_loopback_http=True)) == {"rsa-1", "ec-1"}
    with pytest.raises(ConfigError, match="https"):
        fetch_keys(issuer.url, None)


def test_only_public_signing_keys_with_a_name_are_taken() -> None:
    good = rsa().as_dict(private=False)
    keys = [
        good,
        {**good, "kid": None},
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "broken", "e": "!"},
        {**good, "kid": "short", "n": good["n"][:171]},
        rsa().as_dict(private=True) | {"kid": "private"},
        {"kty": "oct", "kid": "shared", "k": "AAAA"},
        {"kty": "AKP", "kid": "new"},
        ECKey.generate_key("P-256", {"kid": "e"}).as_dict(private=False),
        "text",
    ]
    assert set(usable_keys({"keys": keys})) == {"rsa-1", "e"}
    with pytest.raises(ValueError, match="no list"):
        usable_keys({"keys": {}})


def test_no_setting_allows_an_issuer_without_https() -> None:
    with pytest.raises(ConfigError, match="SIMPO_OIDC_ISSUER"):
        Settings.from_env({"SIMPO_OIDC_ISSUER": "http://127.0.0.1:8000", "SIMPO_OIDC_AUDIENCE": "simpo"})


def test_a_token_that_never_ends_is_taken_as_one_that_ends_late(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    assert oidc.identity(issuer.token(clock.now().timestamp(), exp=10**400)).ends_at == 2.0**53


def test_a_signature_of_another_curve_is_refused(issuer: Issuer, clock: FakeClock, oidc: Oidc) -> None:
    wide = ECKey.generate_key("P-384", {"kid": "ec-1"})
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "a", "iat": 0, "exp": 2e9}
    with pytest.raises(Unauthorized, match="signature"):
        oidc.identity(signed(wide, {"alg": "ES384", "kid": "ec-1"}, claims))


def _part(value: Any) -> str:
    return _b64(json.dumps(value).encode())


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
