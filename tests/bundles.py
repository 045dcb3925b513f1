"""Put the files of a folder into manifests and archives."""

from __future__ import annotations

import csv
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.read.files.kinds import media_of, printable

MANIFESTS = ("txt", "csv", "parquet")
BUNDLES = (*MANIFESTS, "zip", "tar", "tar.gz")


def contain(folder: Path, kind: str) -> Path:
    """Make an archive of all that is below a folder, or a manifest of its pictures. Links are
    stored as links.
    """
    path = folder.with_name(f"{folder.name}.{kind}")
    names = sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, files in os.walk(folder)
        for name in files
    )
    pictures = [name for name in names if media_of(name) == "image"]
    if kind == "txt":
        path = folder / ".list.txt"
        path.write_bytes(b"".join(os.fsencode(f"{name}\n") for name in pictures))
    elif kind == "csv":
        path = folder / ".list.csv"
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows(
                [["path", "number"], *([name, number] for number, name in enumerate(pictures))]
            )
    elif kind == "parquet":
        held = [
            {
                "bytes": None if (folder / name).is_symlink() else (folder / name).read_bytes(),
                "path": printable(name),
            }
            for name in pictures
        ]
        schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
        pq.write_table(pa.table({"image": held}, schema=schema), path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                entry = zipfile.ZipInfo(printable(name))
                if (folder / name).is_symlink():
                    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(
                    entry,
                    os.readlink(folder / name)
                    if (folder / name).is_symlink()
                    else (folder / name).read_bytes(),
                )
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name in names:
                archive.add(folder / name, name)
    return path


def tar_bytes(entries: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    """Return an uncompressed tar of these files."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, data in entries.items() if isinstance(entries, Mapping) else entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return held.getvalue()
