"""The command line's root: a table of commands whose modules are imported when they are asked for,
so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

import vlmbatch
from vlmbatch.errors import VlmbatchError

COMMANDS = {
    "caption": ("vlmbatch.cli.work", "One caption per image."),
    "ocr": ("vlmbatch.cli.work", "The text in each image."),
    "vqa": ("vlmbatch.cli.work", "Questions about each image (-q TEXT, or --questions FILE)."),
    "video": ("vlmbatch.cli.work", "Sampled frames, clips or windows of each video."),
    "run": ("vlmbatch.cli.run", "A job from a YAML file; the form for cron."),
    "stats": ("vlmbatch.cli.stats", "What a run took, from its own records."),
    "eval": (
        "vlmbatch.cli.eval",
        "How good the answers of an OUTPUT are, against a file of right ones.",
    ),
    "export": ("vlmbatch.cli.export", "An OUTPUT as another table, or as text and subtitle files."),
    "finetune": (
        "vlmbatch.cli.finetune",
        "Teach a model your answers: pictures or videos with prompt and answer.",
    ),
    "models": ("vlmbatch.cli.models", "List, describe and fetch models."),
    "doctor": (
        "vlmbatch.cli.doctor",
        "What this machine has, and what to do about what is missing.",
    ),
    "bench": ("vlmbatch.cli.bench", "What this machine does, beside its own limits."),
}

EPILOG = """\b
Try it without a network:
  vlmbatch caption photos/ --model demo -o -
Exit codes: 0 ok, 1 the run could not go on, 2 bad usage or job, 3 some items
are errors, 4 stopped by --max-errors or worse than --fail-under, 75 OUTPUT is
in use, 130 interrupted.
"""


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Names the nearest command when there is none of the name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(
                f"no such command {args[0]!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(COMMANDS)}")
            )
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
    help="Captions, text and answers from folders of pictures and hours of video, with SmolVLM2 on this machine.",
)
@click.version_option(vlmbatch.__version__, "--version", message="vlmbatch %(version)s")
def cli() -> None:
    """The root command."""


def main() -> None:
    """Entry point: errors are one line on stderr and an exit code."""
    if (
        sys.stdout is None
    ):  # as Python has it when it is closed: then what goes there is no error, and the next file that is opened may get its number
        sys.stdout = open(os.devnull, encoding="utf-8")
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a terminal that cannot show a character of a name still shows the rest
    try:
        code = cli.main(prog_name="vlmbatch", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VlmbatchError as error:
        click.echo(f"vlmbatch: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("vlmbatch: interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, io.UnsupportedOperation) and not sys.stdout.writable():
            click.echo("vlmbatch: cannot write to stdout: it is closed", err=True)
            sys.exit(1)
        if error.filename is not None or error.errno is None:  # not of a stream
            raise
        if not isinstance(
            error, BrokenPipeError
        ):  # which says that the reader of a pipe went away, as `head` does
            click.echo(f"vlmbatch: cannot write to stdout: {error.strerror}", err=True)
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
