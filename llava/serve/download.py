"""One file over HTTP, within limits of size and time, without being led into a private network.

The address that was asked for may be anywhere: whoever typed it meant it. A redirect was not
typed: it may lead to public addresses only, and never from https to http. A name is looked up
once, and the addresses that were checked are those that are connected to, so a name that changes
its address in between gains nothing. Proxies of the environment are not used, because behind one
that address cannot be seen.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from llava.common.json_files import shorten

from .deadline import DeadlineReader, seconds_left

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_CHUNK = 2**16
_KINDS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
#: What stays as it is in the path of a request: what has a meaning there, and what is quoted.
_UNQUOTED = "%/:=&?~+!$,;'@()*[]"


@dataclass(frozen=True)
class _Place:
    """Where a URL points. `host` is ASCII; `path` has the query in it, and no other characters
    than a request may have."""

    scheme: str
    host: str
    port: int
    path: str


class _Line:
    """An open connection as http.client asks for it, with one deadline for all that is read."""

    def __init__(self, connection: socket.socket, until: float, silence: float) -> None:
        self._connection, self._until, self._silence = connection, until, silence

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(DeadlineReader(self._connection, self._until, self._silence))

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(seconds_left(self._until, self._silence))
        self._connection.sendall(data)

    def close(self) -> None:
        """Nothing: the answer is still read when http.client is done with its connection."""


def fetch(url: str, most_bytes: int, timeout: float = 10.0, deadline: float = 60.0) -> bytes:
    """What is at an http or https URL.

    Args:
        most_bytes: of the body.
        timeout: seconds that the server may be silent.
        deadline: seconds that everything together may take, however the bytes trickle in. Only
            the system's look-up of a name, which has limits of its own, is not cut short by it.

    Raises:
        ValueError: another scheme, a redirect that is not followed, a status that is not 200, too
            many bytes, too slow a server, or an answer that breaks or cannot be read; says which.
        OSError: the server cannot be reached, or its certificate is not good.
    """
    until = monotonic() + deadline
    current = url
    for hop in range(_MOST_REDIRECTS + 1):
        place = _place(current)
        addresses = _addresses(place, current)
        if hop:
            _demand_public(addresses, url, current)
        with closing(_connect(addresses, place, current, until, timeout)) as connection:
            try:
                response = _ask(_Line(connection, until, timeout), place)
                target = response.getheader("Location")
                if response.status not in _REDIRECTS or not target:
                    _demand_readable(response, url, most_bytes)
                    return _read(response, url, most_bytes)
            except TimeoutError:
                if monotonic() >= until:
                    raise ValueError(f"{url} comes too slowly; given up") from None
                message = f"{url}: no answer of the server within {timeout:g} seconds; given up"
                raise ValueError(message) from None
            except (http.client.HTTPException, OSError) as error:
                message = f"{url}: the answer of the server is broken: {shorten(error)}"
                raise ValueError(message) from None
        current = _redirected(current, target)
    raise ValueError(f"{url} is redirected more than {_MOST_REDIRECTS} times")


def _place(url: str) -> _Place:
    """Where a URL points; raises ValueError for what is no URL, or not of http."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), _UNQUOTED)
        # Names may have letters of any script; what has a colon is no name, but an address.
        host = name if ":" in name else name.encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"{shorten(url)} is no URL: {error}") from None
    if parts.scheme not in _KINDS or not host:
        raise ValueError(f"expected an http:// or https:// URL, got {shorten(url)}")
    if port is None:
        port = _KINDS[parts.scheme].default_port
    return _Place(parts.scheme, host, port, path)


def _addresses(place: _Place, url: str) -> list[tuple[Any, ...]]:
    """What the system knows of a host: `socket.getaddrinfo`'s tuples."""
    try:
        return socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise OSError(f"{shorten(url)} cannot be reached: {error}") from None


def _demand_public(addresses: list[tuple[Any, ...]], first: str, current: str) -> None:
    """Refuse a redirect to a host with an address that is not public."""
    for *_, where in addresses:
        address = ipaddress.ip_address(where[0].partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not address.is_global:
            raise ValueError(
                f"{first} redirects to {shorten(current)}, which is at the private address "
                f"{address}; give that URL yourself if it is meant"
            )


def _connect(
    addresses: list[tuple[Any, ...]], place: _Place, url: str, until: float, timeout: float
) -> socket.socket:
    """A connection to the first address that takes one, encrypted for https."""
    reason: OSError | None = None
    for family, kind, protocol, _, where in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(seconds_left(until, timeout))
            connection.connect(where)
            if place.scheme == "http":
                return connection
            connection.settimeout(seconds_left(until, timeout))
            context = ssl.create_default_context()
            return context.wrap_socket(connection, server_hostname=place.host)
        except OSError as error:
            connection.close()
            reason = error
    raise OSError(f"{shorten(url)} cannot be reached: {reason}") from reason


def _ask(line: _Line, place: _Place) -> http.client.HTTPResponse:
    connection = _KINDS[place.scheme](place.host, place.port)
    connection.sock = line
    headers = {"Accept": "image/*", "User-Agent": "llava", "Connection": "close"}
    connection.request("GET", place.path, headers=headers)
    return connection.getresponse()


def _redirected(current: str, target: str) -> str:
    try:
        # As the bytes that it came in, which http.client reads as Latin-1.
        after = urljoin(current, quote(target.encode("latin-1"), f"{_UNQUOTED}#"))
    except ValueError as error:
        message = f"{shorten(current)} redirects to {shorten(target)}, which is no URL: {error}"
        raise ValueError(message) from None
    if urlsplit(current).scheme == "https" and urlsplit(after).scheme != "https":
        raise ValueError(
            f"{shorten(current)} redirects to {shorten(after)}, which is not encrypted; not "
            "followed"
        )
    return after


def _demand_readable(response: http.client.HTTPResponse, url: str, most: int) -> None:
    """Refuse an answer by its head."""
    status = response.status
    if status != 200:
        known = http.client.responses.get(status, "(no known status)")
        raise ValueError(f"{url}: the server says {status} {known}")
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        if (encoding := response.getheader(name, plain).strip().lower()) not in (plain, ""):
            raise ValueError(f"{url} comes in the encoding {shorten(encoding)}, unasked; not read")
    stated = set(response.headers.get_all("Content-Length", []))
    if response.chunked or not stated:
        return
    if len(stated) > 1 or not re.fullmatch("[0-9]{1,18}", length := stated.pop()):
        raise ValueError(f"{url}: the server states no Content-Length that is a number")
    _demand_small(int(length), url, most)


def _read(response: http.client.HTTPResponse, url: str, most: int) -> bytes:
    """The body; stops at one byte too many, whatever length the server states."""
    parts: list[bytes] = []
    length = 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        length += len(part)
        _demand_small(length, url, most)
    if response.length:
        raise ValueError(f"{url}: the connection broke after {length} bytes")
    return b"".join(parts)


def _demand_small(length: int, url: str, most: int) -> None:
    if length > most:
        raise ValueError(f"{url} has more than {most / 2**20:.1f} MiB; not downloaded")
