"""Pages and frames: which are asked for, what they are called, and that one that is damaged leaves
the others alone.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from tests.media import picture, write_huge_png, write_picture
from tests.read.fetch.web_server import WebServer, serving
from vlmbatch.core import Item
from vlmbatch.errors import DecodeError, JobError, MissingDependencyError, ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.fetch import http as web
from vlmbatch.read.pictures import pages
from vlmbatch.values import parse_pages

COLOURS = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (200, 200, 20)]


def write_pages(path: Path, count: int = 4, size: tuple[int, int] = (40, 30)) -> Path:
    """Writes a file whose pages are each of one colour; in a PDF they are 72 pixels an inch."""
    first, *rest = [Image.new("RGB", size, COLOURS[number % 4]) for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = (
        {"lossless": True}
        if path.suffix == ".webp"
        else {"quality": 100}
        if path.suffix == ".pdf"
        else {}
    )
    if rest:
        options |= {"save_all": True, "append_images": rest}
    first.save(path, **options)
    return path


def colour_of(item: Item) -> int:
    """Which page's colour an Item has, from 1."""
    (pixels,) = item.load().arrays()
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].astype(int)
    return 1 + int(np.argmin([np.abs(middle - colour).sum() for colour in COLOURS]))


def colour_or_none(item: Item) -> int | None:
    try:
        return colour_of(item)
    except DecodeError:
        return None


def items(*inputs: Path | str, **options: object) -> list[Item]:
    return list(open_reader(Job(inputs=tuple(map(str, inputs)), **options)))


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("1", ((1, 1),)),
        ("1-3", ((1, 3),)),
        (" 2, 5- ", ((2, 2), (5, None))),
        ("all", ((1, None),)),
        ("3,1", ((3, 3), (1, 1))),
    ],
)
def test_pages_are_read(text: str, ranges: object) -> None:
    assert parse_pages(text) == ranges


@pytest.mark.parametrize("text", ["", "0", "-3", "3-2", "a", "1,,2", "1-2-3", "1.5", "٣", "1" * 30])
def test_what_are_no_pages_is_said(text: str) -> None:
    with pytest.raises(JobError, match=r"not pages: .*; write 1, 1-3, 2,5- or all"):
        Job(inputs=("a",), pages=text)


def test_pages_are_part_of_what_rows_depend_on() -> None:
    plain = Job(inputs=("a",)).identity()
    assert "pages" not in plain
    assert Job(inputs=("a",), pages="1, 2").identity() == {**plain, "pages": "1,2"}
    assert Job(inputs=("a",), dpi=300).identity() == {**plain, "dpi": 300}
    assert Job.from_dict({"inputs": ["a"], "pages": 3}).pages == "3"
    with pytest.raises(JobError, match="pages goes with pictures"):
        Job(inputs=("a",), media="video", pages="all")


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png", "a.avif", "a.pdf"])
@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("all", [1, 2, 3, 4]),
        ("2", [2]),
        ("2-3", [2, 3]),
        ("4,1,1-2", [1, 2, 4]),
        ("3-", [3, 4]),
        ("9", []),
    ],
)
def test_the_pages_that_are_asked_for(
    tmp_path: Path, name: str, asked: str, numbers: list[int]
) -> None:
    found = items(write_pages(tmp_path / name), pages=asked)
    assert [item.id for item in found] == [f"{name}#page={number}" for number in numbers]
    assert [item.place for item in found] == [(0, number) for number in range(len(numbers))]
    assert [colour_of(item) for item in found] == numbers
    assert {item.media for item in found} <= {"image"}


def test_without_a_word_it_is_the_first_picture_and_the_whole_document(tmp_path: Path) -> None:
    for name in ("a.tif", "b.gif", "c.pdf", "d.jpg"):
        write_pages(tmp_path / name, 1 if name == "d.jpg" else 2)
    assert [(item.id, colour_of(item)) for item in items(tmp_path)] == [
        ("a.tif", 1),
        ("b.gif", 1),
        ("c.pdf#page=1", 1),
        ("c.pdf#page=2", 2),
        ("d.jpg", 1),
    ]
    assert [item.id for item in items(tmp_path, pages="1")] == ["a.tif", "b.gif", "c.pdf", "d.jpg"]


def test_a_file_with_one_page_keeps_its_name(tmp_path: Path) -> None:
    for name in ("a.tif", "b.pdf", "c.jpg", "d.png", "e"):
        path = tmp_path / name
        write_pages(path if path.suffix else path.with_suffix(".tif"), 1)
    (tmp_path / "e.tif").rename(tmp_path / "e")
    assert [item.id for item in items(tmp_path, tmp_path / "e", pages="all")] == [
        "a.tif",
        "b.pdf",
        "c.jpg",
        "d.png",
        "e",
    ]
    assert items(tmp_path, tmp_path / "e", pages="2-") == []


def test_pictures_are_not_opened_for_their_first_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "count_pages", lambda *given: pytest.fail("opened"))
    for name in ("a.tif", "b.gif"):
        write_pages(tmp_path / name)
    assert len(items(tmp_path)) == 2
    write_pages(tmp_path / "c.pdf")
    assert len(items(tmp_path, pages="1")) == 3


def test_files_are_opened_one_after_the_other(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        write_pages(tmp_path / name, 2)
    reader = iter(open_reader(Job(inputs=(str(tmp_path),))))
    assert next(reader).id == "a.pdf#page=1"
    (tmp_path / "b.pdf").write_bytes(b"gone")
    assert [item.id for item in reader] == ["a.pdf#page=2", "b.pdf"]


def test_pages_are_drawn_in_the_resolution_that_is_asked_for(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.pdf", 1, (480, 300))
    shapes = [
        items(path, **options)[0].load().arrays()[0].shape
        for options in ({}, {"dpi": 72}, {"dpi": 300})
    ]
    assert shapes == [(625, 1000, 3), (300, 480, 3), (1250, 2000, 3)]


def test_a_pdf_is_drawn_on_white_and_upright(tmp_path: Path) -> None:
    document = pypdfium2.PdfDocument.new()
    document.new_page(100, 50).set_rotation(90)
    document.save(tmp_path / "a.pdf")
    (pixels,) = items(tmp_path / "a.pdf", dpi=72)[0].load().arrays()
    assert pixels.shape == (100, 50, 3)
    assert pixels.min() == 255


def test_too_large_a_page_is_refused_before_it_is_drawn_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = pypdfium2.PdfDocument.new()
    for width, height in ((100, 100), (14_400, 14_400), (100, 100)):
        document.new_page(width, height)
    document.save(tmp_path / "a.pdf")
    first, large, last = items(tmp_path / "a.pdf", dpi=72)
    monkeypatch.setattr(pypdfium2.PdfPage, "render", lambda *given, **named: pytest.fail("drawn"))
    with pytest.raises(
        DecodeError, match=r"14400 x 14400 = 207,360,000 pixels are more than --max-pixels"
    ):
        large.load()
    monkeypatch.undo()
    assert first.load().arrays()[0].shape == last.load().arrays()[0].shape == (100, 100, 3)


def test_the_pixel_limit_holds_for_each_page_of_a_tiff(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 30)), Image.new("RGB", (400, 300))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    small, large = items(tmp_path / "a.tif", pages="all", max_pixels=10_000)
    assert small.load().arrays()[0].shape == (30, 40, 3)
    with pytest.raises(DecodeError, match="400 x 300 = 120,000 pixels"):
        large.load()


def test_the_orientation_of_each_page_is_its_own(tmp_path: Path) -> None:
    stored = Image.fromarray(picture())
    turned = Image.Exif()
    turned[0x0112] = 6
    with AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as writer:
        for options in ({}, {"exif": turned}):
            stored.save(writer, "TIFF", **options)
            writer.newFrame()
    first, second = items(tmp_path / "a.tif", pages="all")
    np.testing.assert_array_equal(first.load().arrays()[0], picture())
    np.testing.assert_array_equal(second.load().arrays()[0], np.rot90(picture(), -1))


def test_a_file_with_too_many_pages_is_one_error_row(tmp_path: Path) -> None:
    for name in ("a.tif", "b.gif", "c.pdf"):
        write_pages(tmp_path / name)
    assert len(items(tmp_path, pages="all", max_pages=4)) == 12
    found = items(tmp_path, pages="1-2", max_pages=3)
    assert [item.id for item in found] == ["a.tif", "b.gif", "c.pdf"]
    for item in found:
        with pytest.raises(DecodeError, match="it has more pages than --max-pages 3"):
            item.load()


def test_a_damaged_page_is_an_error_row_and_the_others_go_on(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif")
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(2)
        header = image._frame_pos[2]
    # The third page claims a compression (tag 259) that does not exist.
    entries = int.from_bytes(content[header : header + 2], "little")
    for place in range(header + 2, header + 2 + 12 * entries, 12):
        if int.from_bytes(content[place : place + 2], "little") == 259:
            content[place + 8 : place + 10] = (9999).to_bytes(2, "little")
    path.write_bytes(content)
    found = items(path, pages="all")
    assert [item.id for item in found] == [f"a.tif#page={number}" for number in (1, 2, 3, 4)]
    assert [colour_of(item) for item in found[:2]] == [1, 2]
    with pytest.raises(DecodeError, match="broken TIFF"):
        found[2].load()
    assert colour_of(found[3]) == 4


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png", "a.pdf"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_that_is_cut_off_gives_what_is_there_or_an_error_row(
    tmp_path: Path, name: str
) -> None:
    path = write_pages(tmp_path / name, 4, (400, 300))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        found = items(path, pages="all")
        good = list(itertools.takewhile(lambda number: number, map(colour_or_none, found)))
        assert good == list(range(1, len(good) + 1))
        assert len(found) > len(good) or len(good) == 4


def test_documents_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "gone.pdf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "locked.pdf").write_bytes(LOCKED)
    errors = {}
    for item in items(tmp_path):
        with pytest.raises((DecodeError, ReadError)) as caught:
            item.load()
        errors[item.id] = str(caught.value)
    assert errors == {
        "broken.pdf": "broken PDF: Failed to load document (PDFium: Data format error).",
        "empty.pdf": "empty file",
        "gone.pdf": "No such file or directory",
        "locked.pdf": "the PDF is protected by a password",
    }


def _locked() -> bytes:
    """A PDF whose user password is not empty: its /U fits no password, so none opens it."""
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>",
        b"<</Filter/Standard/V 1/R 2/P -4/O<" + b"11" * 32 + b">/U<" + b"22" * 32 + b">>>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        offsets.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, part)
    table = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(
        b"%010d 00000 n \n" % offset for offset in offsets
    )
    return (
        out
        + b"trailer<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>\nstartxref\n%d\n%%%%EOF"
        % table
    )


LOCKED = _locked()


def test_pages_load_side_by_side(tmp_path: Path) -> None:
    found = items(write_pages(tmp_path / "a.pdf"), write_pages(tmp_path / "b.gif"), pages="all")
    seen: dict[str, int] = {}
    threads = [
        threading.Thread(target=lambda item=item: seen.__setitem__(item.id, colour_of(item)))
        for item in found * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {
        f"{name}#page={number}": number for name in ("a.pdf", "b.gif") for number in (1, 2, 3, 4)
    }


def test_heic_is_read_upright(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGB", (64, 48), COLOURS[0])
    image.paste(COLOURS[2], (0, 0, 64, 24))
    try:
        image.save(tmp_path / "a.heic", exif=turned.tobytes(), quality=100)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"this pillow-heif cannot write: {error}")
    (pixels,) = items(tmp_path)[0].load().arrays()
    assert pixels.shape == (64, 48, 3)
    assert pixels[32, 40, 2] > 150 > 100 > pixels[32, 40, 0]
    assert pixels[32, 8, 0] > 150 > 100 > pixels[32, 8, 2]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.pdf", "pypdfium2", "pdf"),
        ("a.heic", "pillow_heif", "heif"),
        ("a.HIF", "pillow_heif", "heif"),
    ],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    write_picture(tmp_path / "b.png")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"need {module}: pip install 'vlmbatch\[{extra}\]'"
    ):
        items(tmp_path / name)
    missing, there = items(tmp_path)
    with pytest.raises(ReadError, match=rf"pip install 'vlmbatch\[{extra}\]'"):
        missing.load()
    assert there.load().arrays()[0].shape == (30, 40, 3)


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving() as running:
        yield running
    web.close()


def test_pages_of_a_remote_document_cost_one_download(server: WebServer, tmp_path: Path) -> None:
    url = server.url("/a.pdf", write_pages(tmp_path / "a.pdf").read_bytes())
    found = items(url, allow_private_urls=True)
    assert [(item.id, item.source, colour_of(item)) for item in found] == [
        (f"a.pdf#page={number}", url, number) for number in (1, 2, 3, 4)
    ]
    assert server.count("/a.pdf") == 1


def test_a_huge_canvas_is_refused_whatever_page_is_asked_for(tmp_path: Path) -> None:
    for item in items(write_huge_png(tmp_path / "a.png"), pages="all"):
        with pytest.raises(DecodeError, match="40000 x 40000"):
            item.load()
