"""The public keys of an OIDC issuer: fetched over https, remembered, fetched again when it has made new ones.

Anybody can send a token that names a key which nobody knows. So a look at the issuer is taken at most once in
`PAUSE_S`, one at a time, and few requests wait for it; what is known goes on being used meanwhile.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from service.clock import Clock
from service.errors import Unavailable
from service.settings import check_https

log = logging.getLogger(__name__)

PublicKey = RSAKey | ECKey | OKPKey
Keys = Mapping[str, PublicKey]
"""`kid` -> the key."""

PAUSE_S = 30.0
"""After a look at the issuer: its next new key is known so much later at the latest."""
PAUSE_AFTER_FAILURE_S = 5.0
"""After a look that brought nothing."""
FRESH_S = 600.0
"""So long keys are used without a look: a key that the issuer has withdrawn lives so long here."""
STALE_S = 3600.0
"""So long they are used while the issuer does not answer."""
_TIMEOUT_S = 5.0
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 100
_MIN_RSA_CHARACTERS = 342
"""Of a modulus of 2048 bits in base64url."""
WAITING = 8
"""Requests that may wait for a look at once: the others are told to come back, so that threads stay free."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class KeyCache:
    """Keys by `kid`. Used from many threads."""

    def __init__(self, fetch: Callable[[], Keys], clock: Clock) -> None:
        """`fetch`: looks at the issuer; raises OSError, ValueError or httpx's errors when that fails."""
        self._fetch = fetch
        self._clock = clock
        self._keys: Keys = {}
        self._fetched_at = float("-inf")
        self._look_at = float("-inf")
        self._looking = threading.Lock()
        self._counting = threading.Lock()
        self.places_left = WAITING
        """Requests that may still wait for a look."""

    def find(self, kid: str) -> PublicKey | None:
        """The key of that name, or None. Raises Unavailable (503) when nobody can tell now."""
        age = self._age()
        key = self._keys.get(kid)
        if key is None or age > STALE_S:
            self._look_and_wait()
            key = self._keys.get(kid)
        elif age > FRESH_S:
            if self._looking.acquire(blocking=False):  # somebody else looks already: what we have is good
                try:
                    self._look()
                finally:
                    self._looking.release()
            key = self._keys.get(kid)
        if self._age() > STALE_S:
            raise _unknown()
        return key

    def _age(self) -> float:
        return self._clock.monotonic() - self._fetched_at

    def _look_and_wait(self) -> None:
        with self._counting:
            if self.places_left == 0:
                raise _unknown()
            self.places_left -= 1
        try:
            with self._looking:
                self._look()
        finally:
            with self._counting:
                self.places_left += 1

    def _look(self) -> None:
        """Fetch, unless that was tried a moment ago. Held: `_looking`."""
        if self._clock.monotonic() < self._look_at:
            return
        try:
            keys = self._fetch()
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("the keys of the OIDC issuer cannot be read: %s", error)
            self._look_at = self._clock.monotonic() + PAUSE_AFTER_FAILURE_S
            return
        self._keys, self._fetched_at = keys, self._clock.monotonic()
        self._look_at = self._fetched_at + PAUSE_S


def fetch_keys(issuer: str, jwks_url: str | None, *, allow_loopback_http: bool = False) -> Keys:
    """Read the issuer's key set; where `jwks_url` is None, its discovery document says where that is.

    Raises OSError, ValueError (what came cannot be used) or httpx.HTTPError.
    """
    if jwks_url is None:
        found = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", allow_loopback_http)
        if found.get("issuer") != issuer:
            # Exactly so (OpenID Connect Discovery 1.0, 4.3): else one issuer could speak for another.
            raise ValueError(f"the discovery document is that of another issuer than {issuer}")
        jwks_url = found.get("jwks_uri")
        if not isinstance(jwks_url, str):
            raise ValueError("the discovery document names no jwks_uri")
    return usable_keys(_get(jwks_url, allow_loopback_http))


def usable_keys(key_set: Mapping[str, Any]) -> Keys:
    """The public signing keys that have a name. What is not understood is left out, not refused (RFC 7517, 5)."""
    listed = key_set.get("keys")
    if not isinstance(listed, list):
        raise ValueError("the key set has no list of keys")
    keys: dict[str, PublicKey] = {}
    for each in listed[:_MAX_KEYS]:
        key = _public_key(each)
        if key is not None:
            keys.setdefault(str(each["kid"]), key)
    return keys


def _unknown() -> Unavailable:
    return Unavailable(
        "The keys of the OIDC issuer are not known at this moment.",
        code="oidc_unavailable",
        headers={"retry-after": str(int(PAUSE_AFTER_FAILURE_S))},
    )


def _public_key(each: Any) -> PublicKey | None:
    if not isinstance(each, dict) or not isinstance(each.get("kid"), str) or not each["kid"]:
        return None
    # A published private key, or a shared secret, is nobody's proof of anything.
    if each.get("kty") not in ("RSA", "EC", "OKP") or "d" in each or each.get("use", "sig") != "sig":
        return None
    if each["kty"] == "RSA" and len(str(each.get("n"))) < _MIN_RSA_CHARACTERS:
        return None
    try:
        key = JWKRegistry.import_key(each)
        return key if isinstance(key, RSAKey | ECKey | OKPKey) else None
    except (JoseError, ValueError, TypeError):
        return None


def _get(url: str, allow_loopback_http: bool) -> dict[str, Any]:
    """A JSON object: no redirects, so much at most, and so long at most however slowly it drips."""
    host = urlsplit(url).hostname
    if not (allow_loopback_http and host in _LOOPBACK):
        check_https(url, "jwks_uri")
    deadline = time.monotonic() + _TIMEOUT_S
    received = b""
    with (
        httpx.Client(timeout=_TIMEOUT_S, trust_env=host not in _LOOPBACK) as client,
        client.stream("GET", url, headers={"accept": "application/json"}) as answer,
    ):
        if answer.status_code != 200:
            raise ValueError(f"{url} answers {answer.status_code}")
        for chunk in answer.iter_bytes():
            received += chunk
            if len(received) > _MAX_BYTES:
                raise ValueError(f"{url} sends more than {_MAX_BYTES // 1024} KiB")
            if time.monotonic() > deadline:
                raise ValueError(f"{url} is too slow")
    found = json.loads(received)
    if not isinstance(found, dict):
        raise ValueError(f"{url} sends no JSON object")
    return found
