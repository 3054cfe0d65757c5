"""Addresses of webhooks: read once, strictly, and kept as read. Nothing here connects or resolves (`webhook_reach`)."""

import ipaddress
import re

import httpx

from service.errors import Invalid, invalid
from sweeps.judges_reach import is_public

PORTS = (443, 8443)
"""Where a webhook may listen: no way into a database or a mail server behind somebody's firewall."""
MAX_URL = 2000
URL_FORM = r"^https?://[A-Za-z0-9.:\[\]-]+([/?][!-~]*)?$"
"""What the OpenAPI document says of it: wider than what is allowed, which is no matter of form alone."""

# RFC 3986 without user, fragment and what parsers read differently: backslash, space, control, whatever is not ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)",
    re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_LOCAL_ENDS = frozenset({"localhost", "local", "internal", "intranet", "lan", "home", "corp", "arpa", "svc", "test"})


def checked_url(text: str, *, loopback: bool) -> str:
    """The address, in the one form that is kept. `loopback`: this machine is allowed too, by http, on any port.

    Raises Invalid (422) for anything but https to a name or address of the public internet, on a port of PORTS.
    """
    found = _URL.fullmatch(text) if len(text) <= MAX_URL else None
    if found is None:
        raise _wrong("must look like https://host/path, in ASCII, without user, password or #fragment")
    scheme, host = found["scheme"], found["host"].lower().removesuffix(".")
    local = loopback and is_loopback(host)
    if scheme != "https" and not local:
        raise _wrong("must begin with https://: what is told must not be read or changed on its way")
    port = int(found["port"] or (443 if scheme == "https" else 80))
    if not local:
        if port not in PORTS:
            raise _wrong(f"must use port {' or '.join(map(str, PORTS))}, not {port}")
        _check_host(host)
    elif not 0 < port < 65536:
        raise _wrong(f"must use a port number, not {port}")
    rest = found["rest"] if found["rest"].startswith("/") else "/" + found["rest"]
    default = port == (443 if scheme == "https" else 80)
    url = f"{scheme}://{host}{'' if default else f':{port}'}{rest}"
    # The client that will connect must read the same out of it as was checked.
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL:
        raise _wrong("is no valid URL") from None
    ours = (scheme, host.strip("[]"), port, b"")
    if (read.scheme, read.raw_host.decode("ascii"), read.port or port, read.userinfo) != ours:
        raise _wrong("can be read in two ways: write it plainly")
    return url


def is_loopback(host: str) -> bool:
    """Whether this host, as written, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_host(host: str) -> None:
    if host.startswith("["):
        _check_address(host.strip("[]"))
        return
    labels = host.split(".")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):  # 127.1, 2130706433, 0x7f.1: addresses to some, names to others
        _check_address(host)
        return
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _wrong("must name a host: letters, digits, - and dots (other scripts as xn--...)")
    if len(labels) < 2 or labels[-1] in _LOCAL_ENDS:
        raise _wrong(f"must name a host of the public internet: {host!r} is a name of some inner network")


def _check_address(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _wrong("must name a host, or an address as 93.184.216.34 or [2606:2800:220:1::1]") from None
    if not is_public(str(address)):
        raise _wrong(f"must be of the public internet: {address} is not")


def _wrong(text: str) -> Invalid:
    return invalid([("/url", text)])
