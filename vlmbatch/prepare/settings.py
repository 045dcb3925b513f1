"""Read tile settings of pictures and clips from a checkpoint's processor files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError
from vlmbatch.prepare.tiles import TileSettings


def read_tile_settings(checkpoint: Checkpoint) -> tuple[TileSettings, TileSettings | None]:
    """Return the settings for pictures, and those for frames of clips, or None if the checkpoint
    has none.

    Raises:
        ModelLoadError: A file is missing, or has invalid settings.
    """
    image_size = checkpoint.vision_sizes()["image_size"]
    settings = checkpoint.image_processor()
    longest = _longest_edge(settings.get("size"), checkpoint.name, "size")
    picture = _tile_settings(
        settings, longest, checkpoint.name, bool(settings.get("do_image_splitting", True))
    )
    clip = _clip_settings(checkpoint.video_processor(), checkpoint.name)
    for edge in {picture.tile_edge, clip.tile_edge if clip else picture.tile_edge}:
        if edge != image_size:
            raise ModelLoadError(
                f"{checkpoint.name}: the processor cuts tiles of {edge} pixels, the vision "
                f"encoder takes {image_size}"
            )
    return picture, clip


def _tile_settings(
    settings: Mapping[str, Any], longest: int, name: str, split: bool
) -> TileSettings:
    edge = _longest_edge(settings.get("max_image_size"), name, "max_image_size")
    resample = settings.get("resample", Image.Resampling.LANCZOS)
    if resample not in list(Image.Resampling):
        raise ModelLoadError(
            f"{name}: the processor asks for resample {resample!r}; Pillow has the filters "
            f"{', '.join(str(int(f)) for f in Image.Resampling)}"
        )
    return TileSettings(longest, edge, split, bool(settings.get("do_resize", True)), int(resample))


def _clip_settings(settings: Mapping[str, Any], name: str) -> TileSettings | None:
    """Return the settings for frames of a clip, or None if the checkpoint has none."""
    if not settings:
        return None
    sampling = settings.get("video_sampling") or {}
    if "video_size" in sampling:
        longest = _longest_edge(sampling["video_size"], name, "video_sampling.video_size")
    else:
        longest = _longest_edge(settings.get("size"), name, "size of the video processor")
    return _tile_settings(settings, longest, name, split=False)


def _longest_edge(size: Any, name: str, where: str) -> int:
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    if not isinstance(edge, int) or isinstance(edge, bool) or edge < 1:
        raise ModelLoadError(f"{name}: {where} has no longest_edge in pixels: {size!r}")
    return edge
