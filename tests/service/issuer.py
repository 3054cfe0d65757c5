"""A tiny OIDC issuer on loopback: a discovery document, a key set, and tokens signed with keys made once."""

import json
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

AUDIENCE = "simpo"
Key = RSAKey | ECKey | OKPKey


@cache
def rsa(kid: str = "rsa-1") -> RSAKey:
    """A private key; made once, for that takes up to 200 ms."""
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


@cache
def ec(kid: str = "ec-1") -> ECKey:
    """Likewise, on P-256."""
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig"})


class Issuer:
    """`with Issuer() as issuer`: `issuer.url` is its name. `keys` may change; `asked` are the paths that were read."""

    def __init__(self) -> None:
        self.keys: list[Key] = [rsa(), ec()]
        self.asked: list[str] = []
        self.status = 200
        self.document: dict[str, Any] = {}
        """What stands in the discovery document instead."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = json.dumps(issuer._body(self.path)).encode()
                self.send_response(issuer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Issuer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, now: float, *, key: Key | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good in every way but what is given here; None leaves a claim or a header out."""
        key = key or self.keys[0]
        usual = {"alg": "ES256" if isinstance(key, ECKey) else "RS256", "kid": key.kid, **(header or {})}
        said = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "user-1",
            "email": "ann@example.com",
            "iat": int(now),
            "exp": int(now) + 300,
            "simpo_project": "default",
            "simpo_role": "member",
            **claims,
        }
        return signed(key, usual, {name: value for name, value in said.items() if value is not None})

    def _body(self, path: str) -> Any:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.document}
        return {"keys": [key.as_dict(private=False) for key in self.keys]}


def signed(key: Key, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """As the issuer's library does it."""
    given = {name: value for name, value in header.items() if value is not None}
    registry = JWSRegistry(algorithms=[given["alg"]], strict_check_header=False)
    return jwt.encode(given, claims, key, registry=registry)
