"""Pictures and videos behind http and https URLs, from a web server of the test."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.media import write_video
from tests.read.fetch.web_server import Answer, WebServer, serving
from tests.serve.conftest import WAIT, LiveServer, image_part, png
from tests.serve.test_process import started
from vlmbatch.read.fetch import http as web


@pytest.fixture
def site() -> Iterator[WebServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 40).read_bytes()


def ask(server: LiveServer, kind: str, url: str, **rest: Any) -> httpx2.Response:
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "What happens?"}]
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    return server.chat(content, **{"model": model, "max_tokens": 8, **rest})


def answer_of(found: httpx2.Response) -> tuple[str, int]:
    assert found.status_code == 200, found.text
    reply = found.json()
    return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "sampling", [{}, {"fps": 2}, {"num_frames": 3}], ids=["own", "fps", "num-frames"]
)
def test_a_video_behind_a_url_is_answered_as_its_data(
    demo: LiveServer, site: WebServer, clip: bytes, sampling: dict[str, int]
) -> None:
    extra = {"media_io_kwargs": {"video": sampling}} if sampling else {}
    data = image_part(clip)["image_url"]["url"]
    moved = Answer(status=302, headers={"location": site.url("/clip.mp4", clip)})
    found = ask(demo, "video_url", site.url("/moved", moved), **extra)
    assert answer_of(found) == answer_of(ask(demo, "video_url", data, **extra))
    assert site.count("/clip.mp4") == 1


def test_a_picture_behind_a_url(demo: LiveServer, scripted: LiveServer, site: WebServer) -> None:
    url = site.url("/picture.png", png())
    data = image_part(png())["image_url"]["url"]
    assert answer_of(ask(demo, "image_url", url)) == answer_of(ask(demo, "image_url", data))
    assert ask(scripted, "image_url", url).status_code == 400
    away = Answer(status=302, headers={"location": "file:///etc/passwd"})
    for broken, words in (
        (site.url("/nothing", Answer(status=404)), "HTTP 404"),
        (site.url("/away", away), ""),
    ):
        found = ask(demo, "image_url", broken)
        assert found.status_code == 400
        assert words in found.json()["error"]["message"]


def test_what_is_no_video_is_a_400_that_names_its_place(demo: LiveServer, site: WebServer) -> None:
    for url, words in (
        (site.url("/text", b"no video at all"), "not a video"),
        (site.url("/nothing", Answer(status=404)), "HTTP 404"),
        (site.url("/empty", b""), ""),
        (site.url("/away", Answer(status=302, headers={"location": "file:///etc/passwd"})), ""),
        ("file:///etc/passwd", "data: or https:"),
    ):
        found = ask(demo, "video_url", url)
        error = found.json()["error"]
        assert (found.status_code, error["param"]) == (400, "messages[0].content[0]")
        assert words in error["message"]
        assert "passwd" not in error["message"]


def test_a_video_at_a_private_address_is_not_asked_for(
    scripted: LiveServer, site: WebServer, clip: bytes
) -> None:
    url = site.url("/clip.mp4", clip)
    for each in (url, url.replace("http:", "https:")):
        assert ask(scripted, "video_url", each).status_code == 400
    assert not site.requests


@pytest.fixture
def secure_site(
    site: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WebServer]:
    """The web server with TLS, by a certificate that this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make, *name, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    web.close()  # its connections were made without the certificate
    yield site
    web.close()


def test_pictures_and_videos_come_by_https(
    demo: LiveServer, secure_site: WebServer, clip: bytes
) -> None:
    for kind, path, data in (
        ("image_url", "/picture.png", png()),
        ("video_url", "/clip.mp4", clip),
    ):
        url = secure_site.url(path, data).replace("http:", "https:")
        wanted = ask(demo, kind, image_part(data)["image_url"]["url"])
        assert answer_of(ask(demo, kind, url)) == answer_of(wanted)


def test_a_web_server_that_never_answers_does_not_hold_up_the_end() -> None:
    options = ("--model", "demo", "--port", "0", "--allow-private-urls", "--drain", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent, started("serve", *options) as found:
        process, stderr = found
        base = stderr.readline().split("listening on ")[1].split(";")[0]
        assert "ready: " in stderr.readline()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {"model": "demo", "messages": [{"role": "user", "content": [part]}]}
        statuses: list[int] = []
        path = f"{base}/v1/chat/completions"
        thread = threading.Thread(
            target=lambda: statuses.append(httpx2.post(path, json=body, timeout=WAIT).status_code)
        )
        thread.start()
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)  # it is asked, and says nothing
            process.send_signal(signal.SIGTERM)
            assert process.wait(web.READ_SECONDS - 5) == 0
        thread.join(WAIT)
        assert statuses == [503]
