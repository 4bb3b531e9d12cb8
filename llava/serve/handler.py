"""The viewer's HTTP: four files, one question, and a message for everything else.

    GET  /  /style.css  /script.js  /api/settings
    POST /api/answer       JSON in, JSON out; see `ViewerQuestion` and `Viewer.answer` of `viewing`

A page of another site must not be able to use a viewer on this machine: a question needs the JSON
content type, which other sites may not send, and, where the viewer listens on loopback, requests
must name a loopback host, so that no foreign name can be pointed at it. The page itself may load
nothing from elsewhere. Bodies stay in memory and are never logged.

Nobody can keep others out by being slow or silent: a request has a time to arrive in, whole, and
connections are limited in number (`server`). Whoever leaves, or closes the half of the
connection that the request came on, is not answered further.
"""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import re
import select
import socket
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from llava.common.json_files import parse, shorten

from .deadline import DeadlineReader
from .pictures import MAX_BYTES, size
from .server import LimitedServer
from .viewing import Busy, Gone, Viewer, ViewerQuestion

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
}
_METHODS = {path: "GET, HEAD" for path in (*_FILES, "/api/settings")} | {"/api/answer": "POST"}
#: A picture in base64, and what else a question has.
MOST_BODY = MAX_BYTES * 4 // 3 + 2**16
#: Bytes read of what a refused request still sends, so that its sender gets to read why.
_MOST_DISCARDED = 4 * MOST_BODY
#: Places are for who waits to be answered, and for browsers, which open up to six each.
MOST_CONNECTIONS = 32
#: Seconds in all: from the opening of a connection, or its last answer, to the end of a head; for a
#: body, and a second more for so many bytes of it; for an answer to be taken; to hear a refusal.
HEAD_SECONDS = 15.0
BODY_SECONDS, BODY_RATE = 10.0, 2**19
SEND_SECONDS = 60.0
_LINGER_SECONDS = 2.0
_HOST = re.compile(r"(\[[\da-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)
#: What poll reports when the other side has closed its half. Where it cannot tell that from bytes
#: (macOS), a second request sent in advance counts as well.
_CLOSED = getattr(select, "POLLRDHUP", select.POLLIN)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewerServer(LimitedServer):
    """Listens on `host` and `port` (0: any free one) and serves `viewer`, a thread a connection."""

    def __init__(self, viewer: Viewer, host: str, port: int) -> None:
        self.viewer = viewer
        # OSError for an address that is taken, is not there or may not be used.
        self.address_family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__(address[:2], Handler, MOST_CONNECTIONS)
        self.local = ipaddress.ip_address(self.server_address[0]).is_loopback

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Refused(Exception):
    """A request that gets an error status and a message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ViewerServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # a request without a version gets a status line as well
    server_version, sys_version = "llava-viewer", ""

    def setup(self) -> None:
        """Have everything read in time."""
        super().setup()
        self._reader = DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it."""
        self.server.connections.waits(self.connection)
        self._reader.until = monotonic() + HEAD_SECONDS
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the head; False where the request is refused already."""
        if len(self.raw_requestline.split()) == 2:  # HTTP/0.9, whose requests have no head
            self.command, self.request_version = None, self.default_request_version
            self.send_error(HTTPStatus.BAD_REQUEST, "the request must name its version of HTTP")
            return False
        return super().parse_request()

    def respond(self) -> None:
        """Answer a request, whatever it is."""
        try:
            self._demand_own_host()
            status, kind, body = self._answer(self._path())
        except Refused as error:
            self._send(error.status, "application/json", {"error": str(error)})
        except (Gone, ConnectionError):
            self.close_connection = True
        except Exception as error:  # no memory left, mostly: the next may well be answered
            failed = f"the {'model' if self.command == 'POST' else 'viewer'} failed"
            logging.getLogger(__name__).exception(failed)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            self._send(status, "application/json", {"error": f"{failed}: {_reason(error)}"})
        else:
            self._send(status, kind, body)

    do_GET = do_HEAD = do_POST = respond
    do_PUT = do_DELETE = do_OPTIONS = do_PATCH = respond

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, as everything else is refused."""
        status = HTTPStatus(code)
        self._send(status, "application/json", {"error": message or status.phrase})

    def log_request(self, *_: Any) -> None:
        """Nothing: what is asked is the asker's."""

    log_error = log_request

    def _send(self, status: HTTPStatus, kind: str, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.settimeout(SEND_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", _METHODS[self._path()])
        if refused := status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # what is left of the body is not another request
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if refused:
            self._linger()

    def _linger(self) -> None:
        """Take what is still sent: closed over unread bytes, a connection takes back its answer."""
        self.server.connections.waits(self.connection)
        self._reader.until = monotonic() + _LINGER_SECONDS
        left = _MOST_DISCARDED
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (part := self.rfile.read1(2**16)):
                left -= len(part)

    def _answer(self, path: str) -> tuple[HTTPStatus, str, Any]:
        """Status, content type and body of an answer."""
        if path not in _METHODS:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {shorten(path)}")
        if self.command not in _METHODS[path].split(", "):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {_METHODS[path]}")
        if path == "/api/answer":
            return HTTPStatus.OK, "application/json", self._ask()
        if self._header("Transfer-Encoding") or self._header("Content-Length") not in (None, "0"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"a {self.command} has no body")
        if path == "/api/settings":
            return HTTPStatus.OK, "application/json", self.server.viewer.settings()
        name, kind = _FILES[path]
        return HTTPStatus.OK, kind, (_PAGE / name).read_bytes()

    def _ask(self) -> dict[str, Any]:
        """The model's answer to the question in the body."""
        body = self._body()
        self.server.connections.works(self.connection)
        viewer = self.server.viewer
        try:
            with viewer.place():
                question = ViewerQuestion.from_json(parse(body, "the request"))
                return viewer.answer(question, self._gone)
        except Busy as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _body(self) -> bytes:
        """The body of a question, refused before it is read where its head is wrong."""
        origin, kind = self._header("Origin"), self._header("Content-Type")
        if origin is not None and _authority(origin) != self._header("Host"):
            raise Refused(HTTPStatus.FORBIDDEN, "questions come from the viewer's own page")
        if kind is None or self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is application/json")
        if self._header("Transfer-Encoding") is not None:
            message = "a question is sent whole, with a Content-Length and no Transfer-Encoding"
            raise Refused(HTTPStatus.BAD_REQUEST, message)
        stated = self._header("Content-Length")
        if stated is None:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request must state its length")
        if not re.fullmatch("[0-9]{1,18}", stated):
            message = f"Content-Length must be a number of bytes, got {shorten(stated)}"
            raise Refused(HTTPStatus.BAD_REQUEST, message)
        length = int(stated)
        if length > MOST_BODY:
            message = f"a picture may have at most {size(MAX_BYTES)}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        seconds = BODY_SECONDS + length / BODY_RATE
        self._reader.until = monotonic() + seconds
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            message = f"the question did not arrive within {seconds:.0f} seconds"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, message) from None
        if len(body) < length:
            raise Gone
        return body

    def _path(self) -> str:
        try:
            return urlsplit(self.path).path
        except ValueError as error:
            message = f"{shorten(self.path)} is no address: {error}"
            raise Refused(HTTPStatus.BAD_REQUEST, message) from None

    def _header(self, name: str) -> str | None:
        """A header that may stand once."""
        values = self.headers.get_all(name, [])
        if len(values) > 1:
            message = f"{name} must be stated once, got {len(values)} of it"
            raise Refused(HTTPStatus.BAD_REQUEST, message)
        return values[0] if values else None

    def _demand_own_host(self) -> None:
        stated = self._header("Host") or ""
        parts = _HOST.fullmatch(stated)
        if parts is None:
            message = f"Host must be a name and a port, got {shorten(stated) or 'none'}"
            raise Refused(HTTPStatus.BAD_REQUEST, message)
        if not self.server.local:
            return
        name = parts[1].strip("[]").lower()
        try:
            is_loopback = name == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            raise Refused(HTTPStatus.FORBIDDEN, "open the viewer as localhost or 127.0.0.1")

    def _gone(self) -> bool:
        """Whether either side has closed the connection."""
        poll = select.poll()
        try:
            poll.register(self.connection, _CLOSED)
        except ValueError:  # closed here
            return True
        return bool(poll.poll(0))


def _authority(origin: str) -> str:
    """Host and port of an Origin header, "" where it has none (`null`)."""
    try:
        return urlsplit(origin).netloc
    except ValueError as error:
        message = f"Origin must be an address, got {shorten(origin)}: {error}"
        raise Refused(HTTPStatus.BAD_REQUEST, message) from None


def _reason(error: Exception) -> str:
    """An error in a line: its message, where that speaks for itself."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
