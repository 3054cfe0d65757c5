"""Bearer tokens of an OIDC issuer: a signed JWT -> who is asking, for which project, in which role.

What is trusted is written here: one issuer, one audience, algorithms of an allow-list, the issuer's published keys. A
token says which of these keys it is signed with and nothing else: its own `jku`, `jwk`, `x5u` and `x5c` are not read.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jws import JWSRegistry

from service.clock import Clock
from service.errors import Unauthorized
from service.oidc_keys import KeyCache, fetch_keys
from service.settings import Settings

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
"""Signatures with a private key alone: never `none`, never a shared secret."""
SKEW_S = 60
"""Clocks may differ so much."""
MAX_TOKEN = 8 * 1024
"""Characters: a longer one is not looked at."""
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""`typ` of tokens that say who somebody is (RFC 9068); others, of logouts say, are signed with the same keys."""
_WRONG = {
    "iss": "it comes from another issuer",
    "aud": "it is meant for another audience",
    "nbf": "it is not valid yet",
    "iat": "it was issued in the future",
}
_NAMES = ("email", "preferred_username", "name")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a good token says."""

    id: str
    """`oidc_` and a hash of issuer and subject: the principal of Idempotency-Keys, the actor of events."""
    subject: str
    """`sub`, unique within the issuer."""
    name: str
    """For people to read: an address or a name where the token has one, else the subject."""
    projects: tuple[str, ...]
    """What the project claim says: one, none, or several."""
    roles: tuple[str, ...]
    """What the role claim says."""
    ends_at: float
    """`exp`, seconds since 1970."""


class Oidc:
    """Looks at tokens. Used from many threads."""

    def __init__(self, settings: Settings, clock: Clock, *, http_issuer: str | None = None) -> None:
        """`http_issuer`: an issuer on loopback without https, for tests; no setting can name one."""
        issuer, audience = http_issuer or settings.oidc_issuer, settings.oidc_audience
        assert issuer is not None and audience is not None, "not set up"
        keys_at, loopback = settings.oidc_jwks_url, http_issuer is not None
        self._issuer = issuer
        self._claims = (settings.oidc_project_claim, settings.oidc_role_claim)
        self._keys = KeyCache(lambda: fetch_keys(issuer, keys_at, allow_loopback_http=loopback), clock)
        self._rules = jwt.JWTClaimsRegistry(
            now=lambda: int(clock.now().timestamp()),
            leeway=SKEW_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )

    def identity(self, token: str) -> Identity:
        """What the token says, once everything about it is checked.

        Raises Unauthorized (401) with what is wrong, Unavailable (503) while the issuer's keys are not known.
        """
        header = _header(token)
        key = self._keys.find(header["kid"])
        if key is None:
            raise _refused("it is signed with a key that the issuer does not publish")
        try:
            key.check_use("sig")
            key.check_alg(header["alg"])
            claims = jwt.decode(token, key, registry=_registry(header["alg"])).claims
            self._rules.validate(claims)
        except ExpiredTokenError as error:
            raise _refused("it has expired") from error
        except MissingClaimError as error:
            raise _refused(f"it lacks {error.claim}") from error
        except InvalidClaimError as error:
            raise _refused(_WRONG.get(error.claim, f"its {error.claim} cannot be used")) from error
        except (JoseError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _refused("its signature cannot be verified") from error
        return self._identity(claims)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims["sub"]
        said = (claims.get(name) for name in _NAMES)
        name = next((each for each in said if isinstance(each, str) and each.strip()), subject)
        mark = hashlib.sha256(f"{self._issuer}\0{subject}".encode()).hexdigest()[:32]
        projects, roles = (_words(claims, path) for path in self._claims)
        ends_at = float(min(claims["exp"], 2**53))
        return Identity(
            id=f"oidc_{mark}", subject=subject, name=name[:120], projects=projects, roles=roles, ends_at=ends_at
        )


def oidc_of(settings: Settings, clock: Clock) -> Oidc | None:
    """What the settings ask for: None where no issuer is set."""
    return None if settings.oidc_issuer is None else Oidc(settings, clock)


def _header(token: str) -> dict[str, Any]:
    """The header, refused for all that is wrong with it before a key is looked for."""
    if len(token) > MAX_TOKEN:
        raise _refused(f"it is longer than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise _refused("it is neither a key of this service nor a signed JWT")
    try:
        header = json.loads(base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _refused("it is neither a key of this service nor a signed JWT") from error
    if not isinstance(header, dict) or header.get("alg") not in ALGORITHMS:
        raise _refused(f"its algorithm is none of {', '.join(ALGORITHMS)}")
    if "crit" in header or "b64" in header:
        raise _refused("its header demands an extension that is not understood here")
    if not isinstance(header.get("kid"), str) or not header["kid"]:
        raise _refused("its header names no key (kid)")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise _refused("it is a token for something else (typ)")
    return header


def _registry(algorithm: str) -> JWSRegistry:
    registry = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = MAX_TOKEN  # some issuers put a certificate there
    return registry


def _words(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """A claim that is a word or a list of words. `path`: its name, or a way into objects: realm_access.roles."""
    value: Any = claims.get(path)
    if path not in claims:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    words = value if isinstance(value, list) else [value]
    return tuple(word for word in words if isinstance(word, str) and word)


def _refused(why: str) -> Unauthorized:
    said = f"The token is refused: {why}."
    return Unauthorized(said, headers={"www-authenticate": f'Bearer error="invalid_token", error_description="{said}"'})
