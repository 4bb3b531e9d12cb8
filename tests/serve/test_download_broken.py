"""Downloads from servers that send what they like: never for ever, and each ends with a message."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

import pytest

from llava.serve import download
from llava.serve.download import fetch

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
#: The latter where this process itself was kept waiting while it connected.
TOO_SLOW = r"comes too slowly|timed out"
LONGEST = 5.0  # seconds that a server goes on sending: a test that fails ends too


class Server(socketserver.ThreadingTCPServer):
    """Reads the head of a request, and calls `send` with the connection."""

    daemon_threads = True
    send: Callable[[socket.socket], None]

    def handle_error(self, request, client_address) -> None:
        """Clients hang up, as they should."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Reader(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.server.heads.append(head := [])
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            head.append(line)
        self.server.send(self.connection)


@contextmanager
def listening(family: int, address: str) -> Iterator[Server]:
    made = type("Server", (Server,), {"address_family": family})
    with made((address, 0), Reader) as server:
        server.heads = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with listening(socket.AF_INET, "127.0.0.1") as server:
        yield server


@pytest.fixture
def server(shared) -> Server:
    shared.heads.clear()
    return shared


def sends(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


@pytest.mark.parametrize(
    ("front", "piece"),
    [
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"X: ", b"x"),
        (OK + b"\r\n", b"x"),
        (CHUNKED, b"0"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"0\r\n", b"X: x\r\n"),
    ],
    ids=[
        *("status", "continue", "header", "body"),
        *("chunk line", "chunk extension", "chunks", "trailer"),
    ],
)
def test_the_deadline_is_for_all_of_it(server, front, piece) -> None:
    """Whatever trickles in: each byte comes well within the time that a server may be silent."""

    def trickle(connection: socket.socket) -> None:
        connection.sendall(front)
        end = monotonic() + LONGEST
        while monotonic() < end:
            connection.sendall(piece)
            sleep(0.01)

    server.send = trickle
    start = monotonic()
    with pytest.raises((ValueError, OSError), match=TOO_SLOW):
        fetch(server.url, 10**6, deadline=0.3)
    assert monotonic() - start < LONGEST


def test_the_deadline_is_for_all_redirects_together(server, monkeypatch) -> None:
    def redirect(connection: socket.socket) -> None:
        sleep(0.1)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n")

    server.send = redirect
    monkeypatch.setattr(download, "_demand_public", lambda *_: None)
    with pytest.raises((ValueError, OSError), match=TOO_SLOW):
        fetch(server.url, 10**6, deadline=0.25)
    assert len(server.heads) <= 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "answer of the server is broken"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answer of the server is broken: BadStatusLine"),
        (b"\x1b[2J" * 20_000 + b"\r\n", "is broken"),
        (OK + b"X: " + b"x" * 70_000, "is broken: LineTooLong"),
        (OK + b"X: x\r\n" * 200 + b"\r\n", "is broken: HTTPException.*more than 100 headers"),
        (CHUNKED + b"zz\r\nabc", "is broken: IncompleteRead"),
        (CHUNKED + b"5\r\nab", "is broken: IncompleteRead"),
        (CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n", "is broken: IncompleteRead"),
        (CHUNKED + b"2\r\nab\r\n", "is broken: IncompleteRead"),
        (CHUNKED + b"1;" + b"x" * 70_000, "is broken"),
        (CHUNKED + b"fffffff\r\n" + b"x" * 3000, "has more than 0.0 MiB"),
        (OK + b"\r\n" + b"x" * 3000, "has more than 0.0 MiB"),
        (OK + b"Content-Length: 3000\r\n\r\n", "has more than 0.0 MiB"),
        (OK + b"Content-Length: 5\r\n\r\nab", "broke after 2 bytes"),
        *(
            (OK + b"Content-Length: " + length + b"\r\n\r\nabcde", "no Content-Length that is a")
            for length in (b"abc", b"-5", b"+5", b"1_0", b"5, 5", b"9" * 5000, b"\xd9\xa5", b"")
        ),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", "no Content-Length that is"),
        (OK + b"Content-Encoding: gzip\r\n\r\nabc", "comes in the encoding 'gzip'|encoding gzip"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "encoding gzip, "),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the server says 204 No Content"),
        (b"HTTP/1.1 404 \x1b[2J\r\n\r\n", "the server says 404 Not Found$"),
        (b"HTTP/1.1 799 What\r\n\r\n", r"the server says 799 \(no known status\)"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "the server says 302 Found"),
        *(
            (b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\n\r\n", "is no URL")
            for target in (b"http://[", b"http://a:99999/", b"http://a:b/", b"http://" + b"a" * 99)
        ),
        *(
            (b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\n\r\n", "expected an http")
            for target in (b"file:///etc/hostname", b"javascript:1", b"ftp://a/b")
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_said(server, answer, message) -> None:
    server.send = sends(answer)
    with pytest.raises(ValueError, match=message) as error:
        fetch(server.url, 2000)
    said = str(error.value)
    assert len(said) < 400 and said.isprintable()


def test_a_connection_that_is_reset_is_said(server) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 5\r\n\r\nab")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    server.send = reset
    with pytest.raises(ValueError, match=r"is broken: ConnectionResetError|broke after"):
        fetch(server.url, 2000)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nabcdefgh",
        OK + b"\r\nabcde",
        CHUNKED + b"2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nX: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nX: x\r\n\r\n" * 3 + OK + b"Content-Length: 5\r\n\r\nabcde",
        OK + b"Content-Encoding: identity\r\nContent-Length: 5\r\n\r\nabcde",
    ],
)
def test_an_answer_that_can_be_used_is(server, answer) -> None:
    server.send = sends(answer)
    assert fetch(server.url, 5) == b"abcde"


def test_paths_and_names_of_any_script_arrive(server, monkeypatch) -> None:
    server.send = sends(OK + b"\r\nabcde")
    assert fetch(f"{server.url}/a b/\u00fc.png?q=\u00e9%20[1]#part", 10) == b"abcde"
    assert server.heads[-1][0] == b"GET /a%20b/%C3%BC.png?q=%C3%A9%20[1] HTTP/1.1\r\n"

    names = []

    def addresses(host: str, *rest: object, **more: object) -> list:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", server.server_address)]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    assert fetch("http://b\u00fccher.example/", 10) == b"abcde"
    assert names == ["xn--bcher-kva.example"]
    assert b"Host: xn--bcher-kva.example\r\n" in server.heads[-1]


@pytest.mark.parametrize(
    ("url", "port"), [("http://[::1]/x", 80), ("https://[::1]", 443), ("http://[::1]:81", 81)]
)
def test_a_literal_address_of_ipv6_is_a_host(url, port) -> None:
    place = download._place(url)
    assert (place.host, place.port) == ("::1", port)


def test_a_literal_address_of_ipv6_is_reached() -> None:
    with suppress(OSError), socket.socket(socket.AF_INET6) as trial:
        trial.bind(("::1", 0))
        with listening(socket.AF_INET6, "::1") as server:
            server.send = sends(OK + b"\r\nabcde")
            port = server.server_address[1]
            assert fetch(f"http://[::1]:{port}/", 10) == b"abcde"
            assert f"Host: [::1]:{port}\r\n".encode() in server.heads[-1]
            return
    pytest.skip("no IPv6 on this machine's loopback")


@pytest.mark.parametrize(
    "url",
    [
        *("http://[", "http://[::1", "http://[zz]/", "http://a:99999/", "http://a:-1/"),
        *("http://" + "a" * 64 + ".example/", "http://a..b/", "http://a/\udcff", "http://\udcff/"),
    ],
)
def test_what_is_no_url(url) -> None:
    with pytest.raises((ValueError, OSError), match=r"is no URL|cannot be reached"):
        fetch(url, 10, timeout=0.5)


def test_a_redirect_is_checked_before_anything_is_connected_to(server, monkeypatch) -> None:
    """A name is looked up once a step, so it cannot change its address after the check."""
    lookups = []
    original = socket.getaddrinfo

    def addresses(host: str, *rest: object, **more: object) -> list:
        lookups.append(host)
        return original("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    port = server.server_address[1]
    target = f"http://rebound.example:{port}/".encode()
    server.send = sends(b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\n\r\n")
    with pytest.raises(ValueError, match=r"rebound\.example.* private address 127"):
        fetch(f"http://first.example:{port}/", 10)
    assert lookups == ["first.example", "rebound.example"] and len(server.heads) == 1


def test_what_is_behind_an_encrypted_line_without_end_is_given_up(server) -> None:
    """The greeting of TLS is waited for no longer than the rest."""
    server.send = lambda connection: sleep(0.5)
    start = monotonic()
    with pytest.raises(OSError, match="cannot be reached"):
        fetch(server.url.replace("http", "https"), 10, deadline=0.2)
    assert monotonic() - start < LONGEST
