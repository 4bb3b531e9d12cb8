"""The viewer's HTTP against senders that are wrong, slow, many or gone: byte for byte."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack, closing
from time import monotonic, sleep

import pytest
from PIL import Image

from llava.serve import handler, viewing
from llava.serve.handler import ViewerServer

from .test_pictures import encoded
from .test_viewer import SMALL, ask, b64, send

GOOD = {"image": b64(SMALL), "question": "?", "method": "none"}
LONGEST = 60.0  # seconds until a test gives up; none takes them


def connect(server) -> socket.socket:
    return socket.create_connection(server.server_address[:2], timeout=LONGEST)


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def exchange(server, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer to some bytes, after which the server hangs up."""
    with connect(server) as connection:
        connection.sendall(request)
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def question(body: bytes = b"{}", *lines: str, length: str | None = "") -> bytes:
    """A POST with these further headers; `length` is the stated one, None for none."""
    stated = f"Content-Length: {len(body) if length == '' else length}"
    head = [
        "POST /api/answer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        *([] if length is None else [stated]),
        *lines,
    ]
    return "\r\n".join([*head, "\r\n"]).encode() + body


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        # The address.
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "http://[ is no address"),
        (b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "nothing at /["),
        (b"GET /%ff%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "nothing at /%ff%2e%2e/"),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "nothing at /\u00ff"),
        (
            b"GET /../viewer.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
            404,
            "nothing at /../viewer.py",
        ),
        (b"GET /style.css// HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "nothing at /style.css//"),
        (b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 60_000), 404, "nothing at /aaa"),
        (b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 70_000), 414, "Too Long"),
        # The request line and the head.
        (b"GET /\r\n", 400, "name its version of HTTP"),
        (b"GET / HTTP/9.9\r\n\r\n", 505, "Invalid HTTP version"),
        (b"GET / HTTP/x\r\n\r\n", 400, "Bad request version"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "Bad request syntax"),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431, "Too many headers"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "Line too long"),
        # The method.
        *(
            (f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 405, "takes GET, HEAD")
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH")
        ),
        (b"GET /api/answer HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "/api/answer takes POST"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, "Unsupported method"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nGET ", 400, "no body"),
        # The host.
        *(
            (b"GET / HTTP/1.1\r\n" + host + b"\r\n", 400, "Host must be")
            for host in (
                b"",
                b"Host:\r\n",
                b"Host: http://[\r\n",
                b"Host: [::1\r\n",
                b"Host: localhost:port\r\n",
                b"Host: me@localhost\r\n",
                b"Host: localhost/\r\n",
                b"Host: localhost, localhost\r\n",
                b"Host: \xff\r\n",
                b"Host: localhost\r\nHost: localhost\r\n",
            )
        ),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1.example.org\r\n\r\n", 403, "open the viewer as"),
        # The origin.
        (question(b"{}", "Origin: http://["), 400, "Origin must be an address"),
        (question(b"{}", "Origin: null"), 403, "own page"),
        (question(b"{}", "Origin: http://localhost", "Origin: http://a"), 400, "Origin must be st"),
        # The length.
        (question(length=None), 411, "state its length"),
        *(
            (question(length=length), 400, "Content-Length must be a number of bytes")
            for length in ("9" * 5000, "-1", "+5", "1_0", "5,5", "5.0", "0x5", "\u0665", " ", "a")
        ),
        (question(b"{}", "Content-Length: 2"), 400, "Content-Length must be stated once"),
        (question(b"{}", "Transfer-Encoding: chunked"), 400, "no Transfer-Encoding"),
        (question(b"0\r\n\r\n", "Transfer-Encoding: chunked", length=None), 400, "no Transfer-Enc"),
        (question(b"{}", "Content-Type: text/plain"), 400, "Content-Type must be stated once"),
        (question(length="999999999"), 413, "at most 20.0 MiB"),
        (question(b"", length="0"), 400, "the request is not JSON"),
    ],
)
def test_a_wrong_request_gets_its_message(served, request_, status, message) -> None:
    found, head, body = exchange(served, request_)
    said = json.loads(body)["error"]
    assert found == status and message in said, said
    assert len(said) < 300
    assert b"Connection: close" in head and b"Content-Security-Policy" in head
    assert (b"Allow: " in head) == (status == 405)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff", "the request is not JSON"),
        (b"[" * 100_000, "the request is nested too deep"),
        (b'{"a": ' * 100_000, "the request is nested too deep"),
        (b'{"tokens": ' + b"9" * 5000 + b"}", "the request is not JSON"),
        (b"[]", "the request: expected an object with image, question, method"),
        (b"7", "the request: expected an object"),
        (b"{}", "the request: image is missing"),
        *(
            (json.dumps({**GOOD, name: value}).encode(), message)
            for name, value, message in (
                ("image", None, "image must be a string, got None"),
                ("image", {}, "image must be a string, got {}"),
                ("image", "\u00fc", "image must be base64"),
                ("image", "\ud800", "image must be base64"),
                ("question", 7, "question must be a string, got 7"),
                ("question", ["?"], "question must be a string"),
                ("question", "a \ud800", "question: the text has half of a surrogate pair"),
                ("method", None, "method must be a string, got None"),
                ("method", [], "method must be a string, got []"),
                ("method", {"a": 1}, "method must be a string"),
                ("method", "\ud800", r"unknown method '\\ud800'"),
                ("method", "a" * 10**6, "unknown method 'aaa"),
                ("tokens", "64", "tokens must be a number, got 64"),
                ("settings", 3, "settings must be a string, got 3"),
                ("tokens", True, "tokens must be a number, got True"),
                ("tokens", [64], "tokens must be a number"),
                ("tokens", -1, "tokens must be from 1 to 1000000, got -1"),
                ("tokens", 1e308, "tokens must be from 1 to 1000000, got 1e+308"),
                ("tokens", 10**20, "tokens must be from 1 to 1000000, got 1000"),
                ("tokens", 10**4000, "tokens must be from 1 to 1000000, got 1000"),
                ("tokens", float("nan"), "tokens must be from 1 to 1000000, got nan"),
                ("tokens", float("inf"), "tokens must be from 1 to 1000000, got inf"),
            )
        ),
    ],
)
def test_a_wrong_body_gets_a_message_that_names_the_field(served, body, message) -> None:
    status, _, answer = exchange(served, question(body))
    said = json.loads(answer)["error"]
    assert status == 400 and message in said, said
    assert len(said) < 400


def test_what_the_page_and_other_programs_send_is_taken(served) -> None:
    for path in ("//style.css", "/style.css?v=1", "http://localhost/style.css"):
        assert send(served, "GET", path, Host="localhost")[0] == 200
    status, headers, body = send(served, "HEAD", "/style.css")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 500
    assert send(served, "GET", "/", Content_Length="0")[0] == 200
    # Two requests on one connection; and one of the older version.
    with connect(served) as connection:
        request = b"GET /style.css HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        assert rest(connection).count(b"HTTP/1.1 200 OK") == 2
    status, _, body = exchange(served, b"GET /style.css HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert status == 200 and len(body) > 500


@pytest.mark.parametrize(
    ("front", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: ", None),
        (b"G", None),
        (question(b"", length="100000"), 408),
    ],
    ids=["head", "request line", "body"],
)
def test_a_request_has_a_time_to_arrive_in_all(served, monkeypatch, front, status) -> None:
    """However the bytes trickle in: each comes well within the time between two bytes."""
    monkeypatch.setattr(handler, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(handler, "BODY_SECONDS", 0.0)
    with connect(served) as connection:
        connection.sendall(front)
        connection.settimeout(0.02)
        start, answer = monotonic(), None
        while answer is None and monotonic() < start + 10:
            try:
                answer = connection.recv(2**16)
            except TimeoutError:
                connection.sendall(b"x")
            except ConnectionError:
                answer = b""
    assert answer is not None, "still open"
    assert (int(answer.split()[1]) if answer else None) == status


def test_an_idle_connection_is_closed(served, monkeypatch) -> None:
    monkeypatch.setattr(handler, "HEAD_SECONDS", 0.1)
    with connect(served) as silent, connect(served) as kept:
        kept.sendall(b"GET /style.css HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert rest(kept).startswith(b"HTTP/1.1 200 OK") and rest(silent) == b""


@pytest.fixture
def narrow(served, monkeypatch):
    """A server with four places."""
    monkeypatch.setattr(handler, "MOST_CONNECTIONS", 4)
    with ViewerServer(served.viewer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_many_idle_connections_keep_nobody_out(narrow) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(narrow))) for _ in range(20)]
        assert ask(narrow, SMALL, "none", None)[0] == 200
        assert threading.active_count() <= before + 5  # one may be on its way out
        assert rest(idle[0]) == b""  # the first to come was the first to go
        idle[-1].sendall(b"GET /style.css HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert rest(idle[-1]).startswith(b"HTTP/1.1 200 OK")


def test_who_is_being_answered_keeps_the_place(narrow) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(closing(connect(narrow))) for _ in range(4)]
        with narrow.viewer._lock:
            for connection in held:
                connection.sendall(question(json.dumps(GOOD).encode(), "Connection: close"))
            # Each has its place among those who wait for the model once its body is read.
            places, end = narrow.viewer._places, monotonic() + LONGEST
            while places._value > viewing.MOST_WAITING + 1 - 4 and monotonic() < end:
                sleep(0.01)
            status, _, body = exchange(narrow, b"")
        assert status == 503 and "too many connections" in json.loads(body)["error"]
        assert all(rest(connection).startswith(b"HTTP/1.1 200 OK") for connection in held)


def test_who_goes_while_waiting_gives_up_the_place(served, monkeypatch) -> None:
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(served.viewer, "_places", places)
    monkeypatch.setattr(viewing, "_LOOK", 0.01)
    with served.viewer._lock:
        with connect(served) as connection:
            connection.sendall(question(json.dumps(GOOD).encode()))
            end = monotonic() + LONGEST
            while places._value and monotonic() < end:
                sleep(0.01)
            assert places._value == 0
        assert places.acquire(timeout=LONGEST)
    places.release()


@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\n"], ids=["", "with more sent"])
def test_an_answer_stops_when_its_asker_has_gone(served, endless, more) -> None:
    with connect(served) as connection:
        connection.sendall(question(json.dumps(GOOD).encode()) + more)
        assert endless.begun.wait(LONGEST)
    assert endless.tokens.get(timeout=LONGEST) < endless.most
    # The next is answered as ever.
    endless.most = served.viewer._max_new_tokens = 4
    status, found = ask(served, SMALL, "none", None)
    assert status == 200 and found["new_tokens"] == 4


def test_who_leaves_a_question_half_sent_is_not_answered(served, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(viewing.ViewerQuestion, "from_json", asked.append)
    with connect(served) as connection:
        connection.sendall(question(b"{", length="9"))
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""
    assert asked == []


def test_a_large_picture_arrives(served) -> None:
    data = encoded("BMP", Image.new("RGB", (1500, 1200)))
    assert ask(served, data, "none", None)[0] == 200


def test_who_takes_no_answer_is_given_up(served, monkeypatch) -> None:
    """An answer larger than what lies in the buffers of two sockets."""
    monkeypatch.setattr(handler, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(served.viewer, "answer", lambda *_: {"text": "x" * 2**25})
    with connect(served) as connection:
        connection.sendall(question(json.dumps(GOOD).encode()))
        end = monotonic() + LONGEST
        while served.connections._since and monotonic() < end:
            sleep(0.02)
        assert not served.connections._since
