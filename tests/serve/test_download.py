"""Downloads from a server on loopback: limits, redirects, and what each refusal says."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import pytest

from llava.serve import download
from llava.serve.download import fetch

BODY = bytes(range(256)) * 300


class Site(BaseHTTPRequestHandler):
    """/file, /long (no length given), /slow, /broken, /gone, /loop, /elsewhere, /to?URL."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path in ("/loop", "/to"):
            self.send_response(302)
            self.send_header("Location", "/loop" if path == "/loop" else query)
            self.end_headers()
            return
        if path == "/silent":
            sleep(0.6)
            return
        self.send_response(404 if path == "/gone" else 200)
        if path in ("/file", "/broken"):
            self.send_header("Content-Length", str(len(BODY) + (path == "/broken")))
        self.end_headers()
        if path == "/drip":
            for _ in range(20):
                self.wfile.write(b"x")
                self.wfile.flush()
                sleep(0.05)
        elif path != "/gone":
            self.wfile.write(BODY)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # clients that hang up, as they should
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_was_asked_for_may_be_anywhere(site) -> None:
    assert fetch(f"{site}/file", 10**6) == BODY
    assert fetch(f"{site}/long", len(BODY)) == BODY


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone", "the server says 404"),
        ("/broken", f"broke after {len(BODY)} bytes"),
        ("/to?file:///etc/hostname", "expected an http:// or https:// URL, got file:///etc"),
        ("/to?http://[::1", "is no URL"),
    ],
)
def test_trouble_is_named(site, path, message) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(site + path, 10**6)


def test_sizes_and_times_are_limited(site) -> None:
    for path in ("/file", "/long"):
        with pytest.raises(ValueError, match=r"has more than 0\.1 MiB"):
            fetch(site + path, len(BODY) - 1)
    with pytest.raises(ValueError, match="no answer of the server"):
        fetch(f"{site}/silent", 10**6, timeout=0.2)
    with pytest.raises(ValueError, match="comes too slowly"):
        fetch(f"{site}/drip", 10**6, deadline=0.3)


def test_a_redirect_into_a_private_network_is_not_followed(site) -> None:
    name = site.replace("127.0.0.1", "localhost")
    for target in (f"{site}/file", f"{name}/file", "/file"):
        with pytest.raises(ValueError, match=r"/to\?.* redirects to .*private address (127|::1)"):
            fetch(f"{site}/to?{target}", 10**6)


def test_other_redirects_are_followed(site, monkeypatch) -> None:
    monkeypatch.setattr(download, "_demand_public", lambda *_: None)
    assert fetch(f"{site}/to?{site}/file", 10**6) == BODY
    assert fetch(f"{site}/to?/to?/file", 10**6) == BODY
    with pytest.raises(ValueError, match="redirected more than 5 times"):
        fetch(f"{site}/loop", 10**6)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:192.168.1.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("0.0.0.0", False),
    ],
)
def test_which_addresses_are_public(address, public) -> None:
    addresses = [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", (address, 80))]
    if public:
        download._demand_public(addresses, "http://a", "http://b")
    else:
        with pytest.raises(ValueError, match="private address"):
            download._demand_public(addresses, "http://a", "http://b")


def test_encryption_is_not_given_up() -> None:
    assert download._redirected("http://a/x", "https://b/y") == "https://b/y"
    assert download._redirected("https://a/x/y", "z") == "https://a/x/z"
    with pytest.raises(ValueError, match="not encrypted"):
        download._redirected("https://a/x", "http://a/y")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a", "expected an http:// or https:// URL"),
        ("http://", "expected an http"),
        ("http://a:b/c", "is no URL"),
        ("http://exa mple/", "is no URL|cannot be reached"),
    ],
)
def test_what_is_no_url(url, message) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        fetch(url, 10, timeout=0.5)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(OSError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/", 10)
