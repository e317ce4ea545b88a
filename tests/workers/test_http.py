"""`http.request` against a real server, and what it refuses."""

import base64
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from workers import egress
from workers.settings import Settings
from workers.tasks.http import BODY_BYTES, RequestFailed, exchange

GOOD = {"broker_url": "redis://localhost/0", "redis_url": "redis://localhost/0"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind = self.path.partition("?")[0]
        if kind == "/drip":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif kind == "/endless":
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            while True:
                self.wfile.write(b"x" * 65536)
        else:
            body = {"/big": b"\xc3\xa9" * BODY_BYTES, "/binary": b"\xff\x00\xfe", "/text": "grüß".encode()}.get(
                kind, b""
            )
            self.send_response({"/gone": 410, "/moved": 302}.get(kind, 200))
            self.send_header("location", "http://169.254.169.254/")
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.send_header("x-host", self.headers["host"])
            self.send_header("x-huge", "y" * 9000)
            self.end_headers()
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-seen", self.headers["x-mine"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join(5)


def send(method: Any, url: Any, **kwargs: Any) -> dict[str, Any]:
    private = kwargs.pop("private", True)
    settings = Settings.load(**GOOD, http_allow_private=private, http_max_bytes=kwargs.pop("max_bytes", 10**6))
    arguments = {"headers": None, "body": None, "timeout_s": 10, "raise_for_status": False, **kwargs}
    told = arguments.pop("told", [])
    return exchange(method, url, settings=settings, report=lambda *at: told.append(at), **arguments)


def test_answer_and_its_progress(server: str) -> None:
    told: list[tuple[int, int | None]] = []
    answer = send("get", f"{server}/big", told=told)
    body = b"\xc3\xa9" * BODY_BYTES
    assert answer["status"] == 200
    assert answer["bytes"] == len(body) == told[-1][0] == told[-1][1]
    assert answer["sha256"] == hashlib.sha256(body).hexdigest()
    assert (answer["body_encoding"], answer["truncated"]) == ("text", True)
    assert answer["body"] == "é" * (BODY_BYTES // 2)
    assert "x-huge" not in answer["headers"]
    assert answer["headers"]["x-host"] == server.removeprefix("http://")
    assert 0 <= answer["elapsed_s"] < 10


def test_body_and_headers_are_sent(server: str) -> None:
    answer = send("POST", f"{server}/", body="grüß", headers={"X-Mine": "42"})
    assert (answer["status"], answer["body"], answer["headers"]["x-seen"]) == (201, "grüß", "42")


def test_binary_answer_is_base64(server: str) -> None:
    answer = send("GET", f"{server}/binary")
    assert (answer["body_encoding"], base64.b64decode(answer["body"])) == ("base64", b"\xff\x00\xfe")


def test_error_status_is_a_result_unless_asked(server: str) -> None:
    assert send("GET", f"{server}/gone")["status"] == 410
    with pytest.raises(RequestFailed, match="status 410"):
        send("GET", f"{server}/gone", raise_for_status=True)


def test_redirect_is_not_followed(server: str) -> None:
    answer = send("GET", f"{server}/moved")
    assert (answer["status"], answer["headers"]["location"]) == (302, "http://169.254.169.254/")


def test_time_and_size_are_bounded(server: str) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^timeout_s: "):
        send("GET", f"{server}/drip", timeout_s=0.5)
    assert time.monotonic() - start < 25, "half of what the whole answer would take"
    with pytest.raises(ValueError, match=r"^url: the answer has more than the 100000 bytes"):
        send("GET", f"{server}/endless", max_bytes=100_000)
    with pytest.raises(ValueError, match=r"^url: the answer has 65536 bytes"):
        send("GET", f"{server}/big", max_bytes=1000)


def test_no_answer_is_told() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(RequestFailed, match=r"^GET 127\.0\.0\.1: "):
            send("GET", f"http://127.0.0.1:{closed.getsockname()[1]}/")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "127。0。0。1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::a00:1]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[ff02::1]",
        "[fec0::1]",
        "169.254.169.254",
        "2852039166",
        "100.64.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"^url: (.* is not a public address|Invalid IPv4 address)"):
        send("GET", f"http://{host}:9/", private=False)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_address(address: str) -> None:
    assert egress.is_public(address)


def test_every_address_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("1.1.1.1", 80), ("10.0.0.1", 80)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", answer) for answer in answers])
    with pytest.raises(ValueError, match=r"^url: name\.test is 10\.0\.0\.1"):
        send("GET", "http://name.test/", private=False)


def test_connection_goes_to_the_address_that_was_checked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers otherwise the second time is never asked a second time."""
    real, asked = socket.getaddrinfo, []

    def rebinding(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        return real("127.0.0.1" if host == "name.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    answer = send("GET", server.replace("127.0.0.1", "name.test"))
    assert answer["headers"]["x-host"].startswith("name.test:")
    assert asked == ["name.test", "127.0.0.1"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"method": 3}, TypeError, "method: "),
        ({"method": "G T"}, ValueError, "method: "),
        ({"method": "CONNECT"}, ValueError, "method: "),
        ({"url": None}, TypeError, "url: "),
        ({"url": "ftp://example.com/"}, ValueError, "url: must begin with"),
        ({"url": "file:///etc/passwd"}, ValueError, "url: must begin with"),
        ({"url": "http://"}, ValueError, "url: "),
        ({"url": "http://me:secret@example.com/"}, ValueError, "url: must not hold"),
        ({"url": "http://me@example.com/"}, ValueError, "url: must not hold"),
        ({"url": "http://example.com:99999/"}, ValueError, "url: "),
        ({"url": f"http://{'a' * 70}.test/"}, ValueError, "url: "),
        ({"headers": []}, TypeError, "headers: "),
        ({"headers": {"a b": "c"}}, ValueError, "headers: "),
        ({"headers": {"a": 1}}, TypeError, "headers: a "),
        ({"headers": {"a": "b\r\nc: d"}}, ValueError, "headers: a "),
        ({"headers": {"Host": "other"}}, ValueError, "headers: Host "),
        ({"body": {"a": 1}}, TypeError, "body: "),
        ({"timeout_s": "3"}, TypeError, "timeout_s: "),
        ({"timeout_s": True}, TypeError, "timeout_s: "),
        ({"timeout_s": 0}, ValueError, "timeout_s: "),
        ({"timeout_s": 1e9}, ValueError, "timeout_s: "),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s: "),
        ({"raise_for_status": "no"}, TypeError, "raise_for_status: "),
    ],
)
def test_wrong_argument_is_named(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        send(**{"method": "GET", "url": "http://example.com/", **arguments})
    assert str(caught.value).startswith(message)
