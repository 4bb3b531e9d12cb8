"""The viewer's HTTP: four files, one question, and a message for everything else.

    GET  /  /style.css  /script.js  /api/settings
    POST /api/answer       JSON in, JSON out; see `viewing.Question` and `viewing.Viewer.answer`

A page of another site must not be able to use a viewer on this machine: a question needs the JSON
content type, which other sites may not send, and, where the viewer listens on loopback, requests
must name a loopback host, so that no foreign name can be pointed at it. The page itself may load
nothing from elsewhere. Bodies stay in memory and are never logged.
"""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .pictures import MAX_BYTES, size
from .viewing import Busy, Gone, Question, Viewer

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/script.js": ("script.js", "text/javascript"),
}
#: A picture in base64, and what else a question has.
MOST_BODY = MAX_BYTES * 4 // 3 + 2**16
#: Bytes read of a body that is too large, so that its sender gets to read why it was refused.
_MOST_DISCARDED = 4 * MOST_BODY
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewerServer(ThreadingHTTPServer):
    """Listens on `host` and `port` (0: any free one) and serves `viewer`, a thread a connection."""

    daemon_threads = True

    def __init__(self, viewer: Viewer, host: str, port: int) -> None:
        self.viewer = viewer
        # OSError for an address that is taken, is not there or may not be used.
        self.address_family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__(address[:2], Handler)
        self.local = ipaddress.ip_address(self.server_address[0]).is_loopback

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that gets an error status and a message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ViewerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llava-viewer", ""
    timeout = 30  # seconds without a byte

    def do_GET(self) -> None:
        """A file of the page, or its settings."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """A question."""
        self._respond(self._post)

    def log_request(self, *_: Any) -> None:
        """Nothing: what is asked is the asker's."""

    def _respond(self, method: Any) -> None:
        try:
            self._demand_own_host()
            status, kind, body = method(urlsplit(self.path).path)
        except Refused as error:
            status, kind, body = error.status, "application/json", _error(error)
        except Gone:
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # what is left of the body is not another request
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _get(self, path: str) -> tuple[HTTPStatus, str, Any]:
        if path == "/api/settings":
            return HTTPStatus.OK, "application/json", self.server.viewer.settings()
        if path not in _FILES:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")
        name, kind = _FILES[path]
        return HTTPStatus.OK, kind, (_PAGE / name).read_bytes()

    def _post(self, path: str) -> tuple[HTTPStatus, str, Any]:
        body = self._body()
        if path != "/api/answer":
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {path}")
        try:
            question = Question.from_json(json.loads(body))
            answer = self.server.viewer.answer(question, self._gone)
        except Busy as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        except (ValueError, RecursionError) as error:
            unreadable = isinstance(error, (json.JSONDecodeError, UnicodeError, RecursionError))
            said = "the request is no JSON" if unreadable else str(error)
            raise Refused(HTTPStatus.BAD_REQUEST, said) from None
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, Gone):
                raise
            # No memory left, mostly: the next, smaller request may well be answered.
            message = f"the model failed: {error or type(error).__name__}"
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, message) from None
        return HTTPStatus.OK, "application/json", answer

    def _body(self) -> bytes:
        """The request's body, refused before it is held when it is too large."""
        stated = self.headers.get("Content-Length", "")
        if not (stated.isascii() and stated.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request must state its length")
        length = int(stated)
        if length > MOST_BODY:
            self._discard(min(length, _MOST_DISCARDED))
            message = f"a picture may have at most {size(MAX_BYTES)}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        body = self.rfile.read(length)
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is application/json")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            raise Refused(HTTPStatus.FORBIDDEN, "questions come from the viewer's own page")
        return body

    def _discard(self, length: int) -> None:
        while length > 0 and (part := self.rfile.read(min(length, 2**16))):
            length -= len(part)

    def _demand_own_host(self) -> None:
        if not self.server.local:
            return
        try:
            host = urlsplit("//" + self.headers.get("Host", "")).hostname or ""
            own = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            own = False
        if not own:
            raise Refused(HTTPStatus.FORBIDDEN, "open the viewer as localhost or 127.0.0.1")

    def _gone(self) -> bool:
        """Whether the other side has closed the connection."""
        try:
            readable = select.select([self.connection], [], [], 0)[0]
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):  # broken; or more connections than select can number
            return True


def _error(error: Exception) -> dict[str, str]:
    return {"error": str(error)}
