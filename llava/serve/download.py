"""One file over HTTP, within limits of size and time, without being led into a private network.

The address that was asked for may be anywhere: whoever typed it meant it. A redirect was not
typed: it may lead to public addresses only, and never from https to http. What is checked is the
address of the open connection, so a name that changes its address in between gains nothing.
Proxies of the environment are not used, because behind one that address cannot be seen.
"""

from __future__ import annotations

import http.client
import ipaddress
from time import monotonic
from urllib.parse import urljoin, urlsplit

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_CHUNK = 2**16


def fetch(url: str, most_bytes: int, timeout: float = 10.0, deadline: float = 60.0) -> bytes:
    """What is at an http or https URL.

    Args:
        most_bytes: of the body.
        timeout: seconds that the server may be silent.
        deadline: seconds that everything together may take.

    Raises:
        ValueError: another scheme, a redirect that is not followed, a status that is not 200, too
            many bytes or too slow a server; says which.
        OSError: the server cannot be reached, or its certificate is not good.
    """
    until = monotonic() + deadline
    first, current = url, url
    for hop in range(_MOST_REDIRECTS + 1):
        connection = _connect(current, timeout)
        try:
            if hop:
                _demand_public(connection, first, current)
            response = _ask(connection, current)
            if response.status in _REDIRECTS and (target := response.getheader("Location")):
                current = _redirected(current, target)
                continue
            if response.status != 200:
                raise ValueError(f"{url}: the server says {response.status} {response.reason}")
            return _read(response, url, most_bytes, until)
        finally:
            connection.close()
    raise ValueError(f"{url} is redirected more than {_MOST_REDIRECTS} times")


def _connect(url: str, timeout: float) -> http.client.HTTPConnection:
    """An open connection to the URL's host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"expected an http:// or https:// URL, got {url}")
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    try:
        connection = kinds[parts.scheme](host, port, timeout=timeout)
        connection.connect()
    except (http.client.HTTPException, UnicodeError) as error:
        raise ValueError(f"{url} is no URL: {error}") from None
    except OSError as error:
        raise OSError(f"{url} cannot be reached: {error}") from error
    return connection


def _demand_public(connection: http.client.HTTPConnection, first: str, current: str) -> None:
    """Refuse a redirect whose connection ended at an address that is not public."""
    address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global:
        raise ValueError(
            f"{first} redirects to {current}, which is at the private address {address}; give that "
            "URL yourself if it is meant"
        )


def _ask(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "llava"})
        return connection.getresponse()
    except (TimeoutError, http.client.HTTPException, ValueError) as error:
        reason = "it is silent" if isinstance(error, TimeoutError) else repr(error)
        raise ValueError(f"{url}: no answer of the server: {reason}") from None


def _redirected(current: str, target: str) -> str:
    try:
        after = urljoin(current, target)
    except ValueError as error:
        raise ValueError(f"{current} redirects to {target}, which is no URL: {error}") from None
    if urlsplit(current).scheme == "https" and urlsplit(after).scheme != "https":
        raise ValueError(f"{current} redirects to {after}, which is not encrypted; not followed")
    return after


def _read(response: http.client.HTTPResponse, url: str, most: int, until: float) -> bytes:
    """The body; stops at one byte too many, whatever length the server states."""
    parts: list[bytes] = []
    length = 0
    try:
        while part := response.read1(_CHUNK):
            parts.append(part)
            length += len(part)
            if length > most:
                raise ValueError(f"{url} has more than {most / 2**20:.1f} MiB; not downloaded")
            if monotonic() > until:
                raise ValueError(f"{url} comes too slowly; given up")
    except TimeoutError:
        raise ValueError(f"{url}: the server stopped sending; given up") from None
    if response.length:
        raise ValueError(f"{url}: the connection broke after {length} bytes")
    return b"".join(parts)
