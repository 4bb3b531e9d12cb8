"""A server with a thread a connection, in which nobody can keep others out, and which ends."""

from __future__ import annotations

import math
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 49\r\n"
    b'Connection: close\r\n\r\n{"error": "too many connections; try again soon"}'
)


class Connections:
    """Each open connection, and since when it has been waiting for a request, whole or in part.

    Where there are `most`, a new one takes the place of the one that has waited longest, so senders
    who are silent or slow keep nobody out. Those whose request is being answered stay.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()

    def add(self, connection: socket.socket) -> bool:
        """Take in a new one; False where every place is held by one that is being answered."""
        with self._lock:
            if len(self._since) >= self._most:
                oldest = min(self._since, key=self._since.__getitem__)
                if self._since[oldest] == math.inf:
                    return False
                _hang_up(oldest)
                del self._since[oldest]
            self._since[connection] = monotonic()
            return True

    def waits(self, connection: socket.socket) -> None:
        """From now on it waits for its next request."""
        self._set(connection, monotonic())

    def works(self, connection: socket.socket) -> None:
        """Its request is there, and is being answered."""
        self._set(connection, math.inf)

    def remove(self, connection: socket.socket) -> None:
        """It is about to be closed."""
        with self._lock:
            self._since.pop(connection, None)

    def end(self) -> None:
        """Hang up all: what reads from them finds the end, and what answers them may stop."""
        with self._lock:
            for connection in self._since:
                _hang_up(connection)

    def _set(self, connection: socket.socket, since: float) -> None:
        with self._lock:
            if connection in self._since:
                self._since[connection] = since


class LimitedServer(ThreadingHTTPServer):
    """Serves at most `most` connections; `server_close`, which `with` calls, ends them all.

    A handler tells `connections` when it waits and when it works.
    """

    daemon_threads = False  # the interpreter aborts where one is still inside torch at its end
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], most: int
    ) -> None:
        self.connections = Connections(most)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection, if there is a place for it."""
        if self.connections.add(request):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(0)
            request.sendall(_FULL)
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.connections.remove(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, end all connections, and wait for their threads."""
        self.connections.end()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is nobody's error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side may have gone before
        connection.shutdown(socket.SHUT_RDWR)
