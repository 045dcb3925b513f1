"""Decoders start no more threads than the control group's quota allows to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media import write_video
from vlmbatch.processor import ProcessorShare
from vlmbatch.read.video import container


@pytest.mark.parametrize(("quota", "threads"), [(2.5, 3), (None, 0)])
def test_a_quota_bounds_the_threads_of_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(container, "processor_share", lambda: ProcessorShare(64, quota, 64))
    with container.Demuxer(str(path)) as opened:
        assert opened.stream.codec_context.thread_count == threads
        assert next(opened.container.decode(opened.stream)).width > 0
