"""A day of an archivist: the text of scans and documents, page by page, over years."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

from tests.days.conftest import Work, page, rows


def test_a_day_of_an_archivist(work: Work, tool: Work, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "1950").mkdir(parents=True)
    page("HELLO").save(scans / "1950" / "letter.png")
    register = [page("ONE"), page("TWO")]
    register[0].save(scans / "register.pdf", save_all=True, append_images=register[1:])
    (scans / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 half of a file")
    (scans / "1950" / "letter.txt").write_text("my own notes\n")
    read = ("ocr", "scans", "-o", "texts.jsonl", "--sidecar", "txt")

    # The disk with the scans is not mounted: that is no success, and nothing is written.
    scans.rename(tmp_path / "away")
    scans.mkdir()
    assert "nothing" in work(*read, code=66).stderr
    assert not (tmp_path / "texts.jsonl").exists()
    scans.rmdir()
    (tmp_path / "away").rename(scans)

    # A page that no document has: the message says what there is.
    done = work(*read, "--pages", 9, "--include", "*.pdf", code=66)
    assert "register.pdf has 2 pages, --pages 9 is none of them" in done.stderr

    # The whole archive. The torn file is named, with the reason; everything else is read.
    done = work(*read, code=3)
    assert "4 items" in done.stderr
    assert "    torn.jpg: " in done.stderr
    # Pages are marked in a document's text; the archivist's own file is left alone.
    text = (scans / "register.txt").read_text()
    assert text.index("[page 1]") < text.index("[page 2]")
    assert (scans / "1950" / "letter.txt").read_text() == "my own notes\n"
    assert "did not write" in done.stderr

    # Years later, restored from a backup elsewhere: the same command asks about nothing. The torn
    # file is said, and wakes nobody.
    shutil.copytree(scans, tmp_path / "backup")
    shutil.rmtree(scans)
    (tmp_path / "backup").rename(scans)
    for path in scans.rglob("*.*"):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    done = work(*read)
    assert "nothing new: 3 answers and 1 error done before -> texts.jsonl" in done.stderr
    assert "1 kept error" in done.stderr

    # The file was scanned anew.
    page("NEW").save(scans / "torn.jpg")
    assert "1 answer ok" in work(*read).stderr

    # A letter was taken out of the archive. Its row is said, and removed when that is asked for.
    page("OUT").save(scans / "1950" / "draft.png")
    work(*read)
    (scans / "1950" / "draft.png").unlink()
    (scans / "1950" / "draft.txt").unlink()
    assert "--prune" in work(*read).stderr
    work(*read, "--prune")
    assert len(rows(tmp_path / "texts.jsonl")) == 4

    # A finding aid for a spreadsheet; a colleague sends corrections back.
    sheet = ("--to", "csv", "--columns", "id,page,text", "-o", "-")
    found = list(csv.DictReader(io.StringIO(tool("export", "texts.jsonl", *sheet).stdout)))
    assert [(row["id"], row["page"]) for row in found] == [
        ("1950/letter.png", ""),
        ("register.pdf#page=1", "1"),
        ("register.pdf#page=2", "2"),
        ("torn.jpg", ""),
    ]
    (tmp_path / "back.csv").write_text("id;text\nregister.pdf#page=2;Two thousand\n")
    assert "1 text corrected" in tool("correct", "texts.jsonl", "back.csv").stderr
    assert rows(tmp_path / "texts.jsonl")[2]["text"] == "Two thousand"
    done = work(*read)
    assert "1 text edited in OUTPUT kept" in done.stderr
    assert "Two thousand" in (scans / "register.txt").read_text()

    # The archivist's own notes stay until they are given up by name.
    tool("export", "texts.jsonl", "--to", "txt", "--overwrite")
    assert (scans / "1950" / "letter.txt").read_text() == "my own notes\n"
    tool("export", "texts.jsonl", "--to", "txt", "--overwrite-all")
    assert (scans / "1950" / "letter.txt").read_text() != "my own notes\n"
