"""Whether a video looks whole, by its headers: at a tenth of the time that its pixels take."""

from __future__ import annotations

from vlmbatch.read.video.container import open_container, packets


def looks_whole(path: str) -> bool:
    """Whether reading a video's packets, and their headers as its decoder knows them, meets no
    fault.

    Decoders that cannot leave pixels out (VP9, AV1) are asked about one frame, as all would take as
    long as decoding them.

    Args:
        path: The file.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video.
    """
    from av.error import FFmpegError

    container, stream = open_container(path)
    faults: list[Exception] = []
    asks_decoder = True
    with container:
        stream.codec_context.skip_frame = "ALL"
        for packet in packets(container, stream, faults.append):
            if faults or packet.is_corrupt:
                return False
            try:
                asks_decoder = asks_decoder and not packet.decode()
            except (FFmpegError, MemoryError):
                return False
    return not faults
