"""http and https: what helps is tried again, what is too much is left, and nobody is sent to an
address inside.
"""

from __future__ import annotations

import datetime
import email.utils
import gzip
import socket
from collections.abc import Iterator

import pytest

from tests.read.fetch.web_server import Answer, WebServer, serving
from vlmbatch.errors import ReadError
from vlmbatch.job import Job
from vlmbatch.read.fetch import http as web
from vlmbatch.read.fetch.remote import RemoteFile

HERE = Job(inputs=("-",), allow_private_urls=True)
PUBLIC = Job(inputs=("-",))


def load_bytes(url: str, job: Job) -> bytes:
    return RemoteFile(url, job).read()


@pytest.fixture(scope="module")
def running() -> Iterator[WebServer]:
    with serving() as server:
        yield server
    web.close()


@pytest.fixture
def server(running: WebServer) -> WebServer:
    running.requests.clear()
    running.answers.clear()
    return running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the pauses, which take no time here."""
    seconds: list[float] = []
    monkeypatch.setattr(web, "wait", seconds.append)
    return seconds


def test_bytes_arrive_as_they_are(server: WebServer) -> None:
    content = bytes(range(256)) * 1000
    assert load_bytes(server.url("/a.bin", content), HERE) == content
    assert load_bytes(server.url("/b.bin", Answer(content, stated=-1)), HERE) == content


def test_user_and_password_are_sent_and_not_told(server: WebServer) -> None:
    url = server.url("/a.png", b"x").replace("http://", "http://me:secret@")
    assert load_bytes(url, HERE) == b"x"
    assert server.requests[0][2]["Authorization"].startswith("Basic ")
    with pytest.raises(ReadError) as caught:
        load_bytes(url.replace("a.png", "missing"), HERE)
    assert str(caught.value) == "HTTP 404 Not Found"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_will_not_change_is_not_tried_again(
    server: WebServer, waits: list[float], status: int
) -> None:
    with pytest.raises(ReadError, match=f"HTTP {status}"):
        load_bytes(server.url("/a", Answer(status=status)), HERE)
    assert server.count("/a") == 1
    assert waits == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: WebServer, waits: list[float], status: int) -> None:
    url = server.url("/a", Answer(b"half", status=status), Answer(b"half", status=status), b"whole")
    assert load_bytes(url, HERE) == b"whole"
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


def test_it_is_not_tried_for_ever(server: WebServer, waits: list[float]) -> None:
    with pytest.raises(ReadError, match=r"HTTP 503 Service Unavailable \(4 tries\)"):
        load_bytes(server.url("/a", Answer(status=503)), HERE)
    assert server.count("/a") == 4


def test_a_body_that_is_cut_off_is_tried_again_from_its_start(
    server: WebServer, waits: list[float]
) -> None:
    url = server.url("/a", Answer(b"ha", stated=5), b"whole")
    assert load_bytes(url, HERE) == b"whole"
    with pytest.raises(ReadError, match=r"broken answer: .*\(4 tries\)"):
        load_bytes(server.url("/b", Answer(b"ha", stated=5)), HERE)


def test_a_refused_connection_is_tried_again_and_then_told(waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ReadError, match=r"connection failed: .*\(4 tries\)"):
        load_bytes(f"http://127.0.0.1:{port}/a.png", HERE)
    assert len(waits) == 3


def test_retry_after_is_honoured(server: WebServer, waits: list[float]) -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    busy = [
        Answer(status=429, headers={"Retry-After": text})
        for text in ("7", email.utils.format_datetime(then, usegmt=True), "soon")
    ]
    assert load_bytes(server.url("/a", *busy, b"x"), HERE) == b"x"
    assert waits[0] == 7
    assert 0 <= waits[1] <= 20
    assert 2 <= waits[2] <= 4


def test_a_server_that_asks_for_an_hour_is_left_alone(
    server: WebServer, waits: list[float]
) -> None:
    with pytest.raises(ReadError, match="the server asks to wait 3600 s"):
        load_bytes(server.url("/a", Answer(status=503, headers={"Retry-After": "3600"})), HERE)
    assert waits == []


@pytest.mark.parametrize("stated", [None, -1])
def test_the_size_limit(server: WebServer, stated: int | None) -> None:
    url = server.url("/a", Answer(bytes(1000), stated=stated))
    assert (
        len(load_bytes(url, Job(inputs=("-",), allow_private_urls=True, max_file_size="1000")))
        == 1000
    )
    with pytest.raises(ReadError, match=r"than --max-file-size allows \(999\)"):
        load_bytes(url, Job(inputs=("-",), allow_private_urls=True, max_file_size="999"))


def test_the_size_limit_counts_unpacked_bytes(server: WebServer) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    url = server.url("/a", Answer(bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(ReadError, match="more bytes than --max-file-size allows"):
        load_bytes(url, Job(inputs=("-",), allow_private_urls=True, max_file_size="1MB"))


def test_a_server_that_drips_is_given_up(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 61.0])
    monkeypatch.setattr(web.time, "monotonic", lambda: next(clock))
    with pytest.raises(ReadError, match="too slow: 5 bytes in 61 s"):
        list(web.steady([b"hello"]))


def test_redirects_are_followed_but_not_round_and_round(server: WebServer) -> None:
    server.url("/b", b"x")
    assert (
        load_bytes(server.url("/a", Answer(status=302, headers={"Location": "/b"})), HERE) == b"x"
    )
    with pytest.raises(ReadError, match="redirects"):
        load_bytes(server.url("/loop", Answer(status=302, headers={"Location": "/loop"})), HERE)
    assert server.count("/loop") == web.MAX_REDIRECTS + 1
    with pytest.raises(ReadError):
        load_bytes(
            server.url("/file", Answer(status=302, headers={"Location": "file:///etc/passwd"})),
            HERE,
        )


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://a b/c", "https://x:99999/a", "http://\x00/"]
)
def test_what_is_no_address_is_an_error_row(url: str, waits: list[float]) -> None:
    with pytest.raises(ReadError) as caught:
        load_bytes(url, PUBLIC)
    assert len(str(caught.value).splitlines()) == 1


NOT_PUBLIC = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%1",
    "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_inside_are_known(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "2606:2800:220:1::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
    ],
)
def test_addresses_outside_are_known(address: str) -> None:
    assert web.is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ],
)
def test_no_spelling_of_this_machine_is_connected_to(
    server: WebServer, waits: list[float], host: str
) -> None:
    with pytest.raises(
        ReadError,
        match=r"not a public address; --allow-private-urls permits it|Invalid IPv4 address",
    ):
        load_bytes(server.url("/a.png", b"secret", host=host), PUBLIC)
    assert server.requests == []
    assert waits == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]", "[fe80::1]", "224.0.0.1"]
)
def test_no_address_of_the_local_net_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(
        socket, "create_connection", lambda *given, **named: pytest.fail(f"connected to {given}")
    )
    with pytest.raises(ReadError, match="not a public address"):
        load_bytes(f"http://{host}/latest/meta-data/", PUBLIC)


class Names:
    """A resolver that says what it is told, and a network on which every public address is the
    test's server.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: WebServer) -> None:
        self.known: dict[str, list[list[str]]] = {}
        self.connected: list[str] = []
        look_up, connect = socket.getaddrinfo, socket.create_connection

        def getaddrinfo(host: str, port: int, *rest: object, **named: object) -> object:
            if host not in self.known:
                return look_up(host, port, *rest, **named)
            answers = self.known[host]
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in addresses
            ]

        def create_connection(
            address: tuple[str, int], *rest: object, **named: object
        ) -> socket.socket:
            self.connected.append(address[0])
            return connect(("127.0.0.1", server.server_port), *rest, **named)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket, "create_connection", create_connection)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, server: WebServer) -> Names:
    web.close()  # connections of the tests before
    return Names(monkeypatch, server)


def test_a_public_name_is_connected_to_at_the_address_that_was_checked(
    server: WebServer, names: Names
) -> None:
    names.known["pictures.example"] = [["93.184.216.34"], ["127.0.0.1"]]
    server.url("/a.png", b"x")
    assert load_bytes("http://pictures.example/a.png", PUBLIC) == b"x"
    assert names.connected == ["93.184.216.34"]
    assert server.requests[0][2]["Host"] == "pictures.example"


def test_a_name_that_means_something_inside_is_refused(server: WebServer, names: Names) -> None:
    for addresses in (["10.0.0.7"], ["93.184.216.34", "127.0.0.1"]):
        names.known["inside.example"] = [addresses]
        with pytest.raises(
            ReadError, match=rf"inside.example is {addresses[-1]}, which is not a public address"
        ):
            load_bytes("http://inside.example/a.png", PUBLIC)
    assert names.connected == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/b",
        "http://169.254.169.254/b",
        "http://[::1]:{port}/b",
        "http://[::ffff:127.0.0.1]:{port}/b",
        "http://2130706433:{port}/b",
        "//inside.example/b",
    ],
)
def test_a_redirect_leads_nowhere_inside(server: WebServer, names: Names, target: str) -> None:
    names.known |= {"pictures.example": [["93.184.216.34"]], "inside.example": [["192.168.0.1"]]}
    server.url("/b", b"secret")
    server.url(
        "/a", Answer(status=302, headers={"Location": target.format(port=server.server_port)})
    )
    with pytest.raises(ReadError, match="not a public address"):
        load_bytes("http://pictures.example/a", PUBLIC)
    assert names.connected == ["93.184.216.34"]
    assert server.count("/b") == 0


def test_a_name_that_changes_its_address_between_requests_is_checked_each_time(
    server: WebServer, names: Names
) -> None:
    names.known["rebinding.example"] = [["93.184.216.34"], ["127.0.0.1"]]
    server.url("/a", Answer(b"x", headers={"Connection": "close"}))
    assert load_bytes("http://rebinding.example/a", PUBLIC) == b"x"
    with pytest.raises(
        ReadError, match=r"rebinding.example is 127.0.0.1, which is not a public address"
    ):
        load_bytes("http://rebinding.example/a", PUBLIC)
    assert names.connected == ["93.184.216.34"]


def test_a_proxy_of_the_environment_is_not_asked_unless_private_urls_are_allowed(
    server: WebServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://10.9.9.9:3128")
    names.known["pictures.example"] = [["93.184.216.34"]]
    server.url("/a.png", b"x")
    assert load_bytes("http://pictures.example/a.png", PUBLIC) == b"x"
    assert names.connected == ["93.184.216.34"]


def test_a_name_that_is_none_is_told_at_once_and_a_resolver_that_is_down_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    def fails(number: int) -> None:
        def getaddrinfo(*given: object, **named: object) -> object:
            raise socket.gaierror(number, "look-up failed")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    fails(socket.EAI_NONAME)
    with pytest.raises(ReadError, match=r"no such host: nowhere.example"):
        load_bytes("http://nowhere.example/a.png", PUBLIC)
    assert waits == []
    fails(socket.EAI_AGAIN)
    with pytest.raises(
        ReadError, match=r"cannot look up nowhere.example: look-up failed \(4 tries\)"
    ):
        load_bytes("http://nowhere.example/a.png", PUBLIC)


def test_the_fingerprint_is_what_a_head_request_states(server: WebServer) -> None:
    url = server.url(
        "/a",
        Answer(b"abc", headers={"ETag": '"1"', "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}),
    )
    assert web.fingerprint(url, allow_private=True) == '"1"|Mon, 02 Nov 2026 10:00:00 GMT|3'
    assert server.count("/a", "HEAD") == 1
    assert web.fingerprint(server.url("/missing", Answer(status=404)), allow_private=True) == ""
    assert web.fingerprint(url, allow_private=False) == ""
