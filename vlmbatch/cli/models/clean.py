"""``models clean``: remove converted models and compiled libraries that are of no use any more."""

from __future__ import annotations

import click

from vlmbatch.cli.folders import with_user_folders
from vlmbatch.job import ResourceOptions

DEFAULT_DAYS = 30


@click.command(name="clean")
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=DEFAULT_DAYS,
    show_default=True,
    metavar="DAYS",
    help="Remove what was not used for this time.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--cache-dir",
    metavar="PATH",
    help="Folder to clean. [default: vlmbatch in the user's folder for caches]",
)
def _clean(days: float, dry_run: bool, cache_dir: str | None) -> None:
    """Remove what is of no use any more from the folder for caches.

    That is: converted models (GGUF, ONNX) and compiled libraries that were not used for a while,
    and converted models whose checkpoint has changed or is gone. What a run needs again, it makes
    again. Checkpoints and models that `models convert` wrote elsewhere are not touched.
    """
    from vlmbatch.cached_files import leftovers

    cache = with_user_folders(ResourceOptions(cache_dir=cache_dir)).cache_folder
    total = 0
    for each in leftovers(cache, days):
        if not dry_run:
            each.remove()
        total += each.size_bytes
        click.echo(f"{each.path}: {each.size_bytes / 1e6:.1f} MB, {each.reason}")
    verb = "can be removed from" if dry_run else "removed from"
    click.echo(f"{total / 1e6:.1f} MB {verb} {cache}")


COMMAND = _clean
