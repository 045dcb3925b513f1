"""URLs as INPUTs: files of a web server, and files, folders and globs of whatever fsspec opens."""

from __future__ import annotations

import gc
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.media import number_of, picture, write_picture, write_video
from tests.read.fetch.web_server import Answer, WebServer, serving
from vlmbatch.core import Item
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import DecodeError, JobError, MissingDependencyError, ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.fetch import http as web
from vlmbatch.read.fetch.remote import RemoteFile
from vlmbatch.run.pipeline import Run
from vlmbatch.sample import make_sampler
from vlmbatch.urls import is_url, url_name, without_credentials


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving() as running:
        yield running
    web.close()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def png(tmp_path: Path, seed: int = 0) -> bytes:
    return write_picture(tmp_path / f"{seed}.png", seed=seed).read_bytes()


def items(*inputs: str, stdin: bytes = b"", **options: object) -> list[Item]:
    job = Job(inputs=inputs, allow_private_urls=True, **options)
    return list(
        open_reader(
            job,
            stdin=io.BytesIO(stdin),
            sampler=make_sampler(job) if job.media == "video" else None,
        )
    )


def test_a_url_is_an_input(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/holiday/my%20photo.png", Answer(png(tmp_path), headers={"ETag": '"7"'}))
    (item,) = items(url)
    assert (item.id, item.source, item.media) == ("my photo.png", url, "image")
    assert item.fingerprint.startswith('"7"|')
    np.testing.assert_array_equal(item.load().arrays()[0], picture())


def test_ids_of_urls_are_unique_and_the_same_url_is_taken_once(
    server: WebServer, tmp_path: Path
) -> None:
    urls = [server.url(f"/{folder}/a.png", png(tmp_path)) for folder in ("x", "y", "z")]
    host = f"127.0.0.1:{server.server_port}"
    assert [item.id for item in items(*urls, urls[0])] == [
        "a.png",
        f"{host}/a.png",
        f"{host}/a.png#2",
    ]


def test_what_is_not_there_is_an_error_row(server: WebServer) -> None:
    (item,) = items(server.url("/gone.png", Answer(status=404)))
    with pytest.raises(ReadError, match="HTTP 404"):
        item.load()
    (item,) = items(server.url("/page.png", b"<html>"))
    with pytest.raises(DecodeError, match="not a picture"):
        item.load()


def test_nothing_is_asked_of_a_url_before_its_turn(server: WebServer, tmp_path: Path) -> None:
    urls = [server.url(f"/lazy/{number}.png", png(tmp_path)) for number in range(3)]
    server.requests.clear()
    next(iter(open_reader(Job(inputs=tuple(urls), allow_private_urls=True))))
    assert [path for _, path, _ in server.requests] == ["/lazy/0.png"]


def test_urls_on_stdin(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/in/a.png?size=2&token=abc", png(tmp_path))
    server.requests.clear()
    first, second = items("-", stdin=f"{url}\n{tmp_path}/0.png\n".encode())
    assert (first.id, second.id) == (url.removesuffix("&token=abc"), f"{tmp_path}/0.png")
    assert server.requests == []
    assert first.load().arrays()[0].shape == second.load().arrays()[0].shape


@pytest.mark.parametrize("per", ["frame", "clip"])
def test_a_remote_video_is_a_temporary_file_while_it_is_needed(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per: str
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    url = server.url("/clip.mp4", write_video(tmp_path / "clip.mp4", 25).read_bytes())
    found = items(url, media="video", per=per)
    ids = ["clip.mp4#t=0.000", "clip.mp4#t=1.000", "clip.mp4#t=2.000"]
    assert [item.id for item in found] == (ids if per == "frame" else ["clip.mp4"])
    assert len(list(copies.iterdir())) == (0 if per == "frame" else 1)
    expected = [0, 10, 20] if per == "frame" else [0, 24]
    assert [number_of(frame) for item in found for frame in item.load().arrays()] == expected
    found.clear()
    gc.collect()
    assert list(copies.iterdir()) == []


def test_a_copy_that_fails_leaves_nothing(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ReadError, match="HTTP 404"):
        RemoteFile(
            server.url("/gone.mp4", Answer(status=404)), Job(inputs=("-",), allow_private_urls=True)
        ).as_file()
    assert list(tmp_path.iterdir()) == []
    (item,) = items(server.url("/gone.mp4", Answer(status=404)), media="video")
    with pytest.raises(ReadError, match="HTTP 404"):
        item.load()
    (item,) = items(server.url("/big.mp4", bytes(100)), media="video", max_file_size="99")
    with pytest.raises(ReadError, match="--max-file-size"):
        item.load()


def test_a_file_a_folder_and_a_glob_of_a_store(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for number, name in enumerate(
        (
            "b/2.png",
            "b/10.png",
            "a.png",
            "b/note.txt",
            "b/c/deep.png",
            "b/.hidden.png",
            "b/clip.mp4",
        )
    ):
        memory.pipe(f"/bucket/{name}", png(tmp_path, number))
    assert [item.id for item in items("memory://bucket")] == [
        "a.png",
        "b/10.png",
        "b/2.png",
        "b/c/deep.png",
    ]
    assert [item.id for item in items("memory://bucket/b/")] == ["10.png", "2.png", "c/deep.png"]
    assert [item.id for item in items("memory://bucket/*/*.png")] == ["b/10.png", "b/2.png"]
    assert [item.id for item in items("memory://bucket/**/d*.png")] == ["b/c/deep.png"]
    assert [item.id for item in items("memory://bucket", exclude=("b/*",))] == ["a.png"]
    (item,) = items("memory://bucket/a.png")
    assert (item.id, item.source) == ("a.png", "memory://bucket/a.png")
    np.testing.assert_array_equal(item.load().arrays()[0], picture(seed=2))
    reader = open_reader(Job(inputs=("memory://bucket",)))
    found = list(reader)
    assert reader.counts.other_media == 1
    np.testing.assert_array_equal(found[2].load().arrays()[0], picture(seed=0))


def test_a_glob_of_a_store_is_listed_once(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    ls = type(memory).ls
    monkeypatch.setattr(
        type(memory),
        "ls",
        lambda store, path, **options: listed.append(path) or ls(store, path, **options),
    )
    for name in ("b/2.png", "b/10.png", "c.png"):
        memory.pipe(f"/bucket/{name}", b"")
    assert [item.id for item in items("memory://bucket/*/*.png")] == ["b/10.png", "b/2.png"]
    assert listed == ["/bucket", "/bucket/b"]


def test_a_folder_by_its_file_url_is_that_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "sub" / "a.png")
    (item,) = items(f"file://{tmp_path}/in")
    assert item.id == "sub/a.png"
    np.testing.assert_array_equal(item.load().arrays()[0], picture())


def test_the_fingerprint_of_a_store_changes_with_the_file(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    for url in ("memory://bucket", "memory://bucket/a.png"):
        memory.pipe("/bucket/a.png", png(tmp_path, 1))
        (first,), (again,) = items(url), items(url)
        memory.pipe("/bucket/a.png", png(tmp_path, 2))
        (changed,) = items(url)
        assert first.fingerprint == again.fingerprint != changed.fingerprint
        assert first.fingerprint


def test_the_size_limit_holds_for_stores(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/bucket/a.png", bytes(1000))
    job = Job(inputs=("-",), max_file_size="1000")
    assert len(RemoteFile("memory://bucket/a.png", job).read()) == 1000
    with pytest.raises(ReadError, match="1,000 bytes are more than --max-file-size allows"):
        RemoteFile("memory://bucket/a.png", Job(inputs=("-",), max_file_size="999")).read()
    with pytest.raises(ReadError, match="no such file"):
        RemoteFile("memory://bucket/gone.png", Job(inputs=("-",))).read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "no such file or folder: memory://nowhere"),
        ("memory://nowhere/*.png", "no file matches"),
        ("nonsense://a/b.png", "no file system for nonsense://; there are .*s3"),
        ("simplecache::http://169.254.169.254/a.png", "chains of file systems are not read"),
        (
            "ftp://me:secret@10.0.0.1/a.png",
            r"ftp://10.0.0.1/a.png: the address behind ftp:// cannot be checked; --allow-private",
        ),
        ("https://example.org/a.mp4", "is a video: use `vlmbatch video`"),
    ],
)
def test_urls_that_cannot_be_inputs_are_job_errors(url: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        open_reader(Job(inputs=(url,)))


@pytest.mark.parametrize(
    "url",
    ["nonsense://a/b.png", "simplecache::http://169.254.169.254/a.png", "ftp://10.0.0.1/a.png"],
)
def test_urls_of_a_list_that_cannot_be_read_are_error_rows(url: str) -> None:
    with pytest.raises(ReadError):
        RemoteFile(url, Job(inputs=("-",))).read()


@pytest.mark.parametrize(
    ("url", "module"), [("https://example.org/a.png", "httpx2"), ("s3://bucket/a.png", "fsspec")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, url: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"{module}: pip install 'vlmbatch\[remote\]'"
    ):
        open_reader(Job(inputs=(url,)))
    with pytest.raises(ReadError, match="pip install"):
        RemoteFile(url, Job(inputs=("-",))).read()


def test_a_store_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match="s3fs"):
        open_reader(Job(inputs=("s3://bucket/a.png",)))


def test_a_run_over_urls_goes_on_where_it_stopped_and_keeps_no_secret(
    server: WebServer, tmp_path: Path
) -> None:
    urls = [
        server.url(
            f"/run/{name}.png?X-Amz-Signature=hidden&v=1",
            Answer(png(tmp_path), headers={"ETag": name}),
        )
        for name in "ab"
    ]
    urls.append(
        server.url("/run/c.png", Answer(status=404)).replace("http://", "http://me:hidden@")
    )
    output = tmp_path / "out.jsonl"

    def run() -> dict[str, object]:
        return (
            Run(
                Job(inputs=tuple(urls), output=str(output), allow_private_urls=True),
                engine=ScriptedEngine(),
            )
            .start()
            .summary
        )

    assert run()["status"] == {"ok": 2, "error": 1}
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["error"]) for row in rows] == [
        ("a.png", None),
        ("b.png", None),
        ("c.png", "HTTP 404 Not Found"),
    ]
    assert rows[0]["source"] == urls[0].replace("X-Amz-Signature=hidden&", "")
    assert "hidden" not in "".join(
        path.read_text()
        for path in tmp_path.iterdir()
        if path.suffix in (".jsonl", ".json", ".journal")
    )
    server.url("/run/b.png", Answer(png(tmp_path, 1), headers={"ETag": "changed"}))
    server.requests.clear()
    summary = run()
    assert summary["status"] == {"ok": 1}
    assert [path for method, path, _ in server.requests if method == "GET"] == [
        "/run/b.png?X-Amz-Signature=hidden&v=1"
    ]


@pytest.mark.parametrize(
    ("url", "name", "shown"),
    [
        ("https://a.org/b/c%20d.png?x=1#y", "c d.png", "https://a.org/b/c%20d.png?x=1"),
        ("https://me:pw@a.org", "a.org", "https://a.org"),
        ("https://a.org/%2e%2e", "%2e%2e", "https://a.org/%2e%2e"),
        ("https://a.org/x%2Fy", "x%2Fy", "https://a.org/x%2Fy"),
        ("https://a.org/x?key=1&keyword=2&sig=3", "x", "https://a.org/x?keyword=2"),
        ("s3://bucket/x/y#1.png", "y#1.png", "s3://bucket/x/y#1.png"),
        ("ftp://me:pw@host/x/", "x", "ftp://host/x/"),
    ],
)
def test_names_of_urls(url: str, name: str, shown: str) -> None:
    assert is_url(url)
    assert (url_name(url), without_credentials(url)) == (name, shown)


@pytest.mark.parametrize("text", ["C://x", "a.png", "./http://x", "-", "//host/x"])
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "output"),
    [
        ("https://me:pw@a.org/b/c.jpg?sig=1", "c.jpg"),
        ("s3://bucket/x/**/*.jpg", "x"),
        ("s3://bucket", "bucket"),
        ("https://a.org/", "a.org"),
    ],
)
def test_the_default_output_is_called_after_the_url(url: str, output: str) -> None:
    assert Job(inputs=(url,)).output_path == f"{output}.caption.jsonl"
