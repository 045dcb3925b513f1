"""Root of the command line: a table of commands.

The module of a command is imported when the command is asked for, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click

import vlmbatch
from vlmbatch.cli.waiting import set_waiting_policy
from vlmbatch.errors import VlmbatchError, one_line

COMMANDS = {
    "caption": ("vlmbatch.cli.work", "Write one caption for each image."),
    "ocr": ("vlmbatch.cli.work", "Read the text in each image."),
    "vqa": ("vlmbatch.cli.work", "Ask questions about each image (-q TEXT or --questions FILE)."),
    "video": ("vlmbatch.cli.work", "Ask about frames, clips or windows of each video."),
    "run": ("vlmbatch.cli.run", "Run a job from a YAML file, for example from cron."),
    "serve": ("vlmbatch.cli.serve", "Serve OpenAI's chat API on this machine."),
    "batch": ("vlmbatch.cli.serve", "Answer a file of OpenAI batch requests."),
    "stats": ("vlmbatch.cli.stats", "Show counts, tokens and seconds of a run, from its records."),
    "eval": ("vlmbatch.cli.eval", "Score the answers of an OUTPUT against a reference file."),
    "export": ("vlmbatch.cli.export", "Convert an OUTPUT to another table, texts or subtitles."),
    "correct": ("vlmbatch.cli.correct", "Put corrected texts back into an OUTPUT."),
    "finetune": ("vlmbatch.cli.finetune", "Fine-tune a model on your own prompts and answers."),
    "models": ("vlmbatch.cli.models", "List, describe, fetch, merge, convert and compare models."),
    "doctor": ("vlmbatch.cli.doctor", "Check this machine, and say how to fix what is missing."),
    "bench": ("vlmbatch.cli.bench", "Measure the speed of this machine against its own limits."),
}
"""Module and one line of help of each command."""

EPILOG = """\b
Try it without a network:
  vlmbatch caption photos/ --model demo -o -
Exit codes: 0 ok, 1 the run could not go on, 2 bad usage or job, 3 some items
are errors, 4 stopped by --max-errors or worse than --fail-under, 66 nothing
found to ask about, 75 OUTPUT is in use, 130 interrupted.
"""


class _Tolerant(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Make the standard streams safe to use.

    A closed stream is opened on the null device. Otherwise the next file that is opened gets its
    number, and whatever a library writes to the stream lands in that file. Standard output is
    opened for reading only: a command that has something to write there must fail.

    Standard error never fails: a terminal that is gone or a full disk must not change how a run
    ends. Characters that the encoding of standard output lacks are written as escape sequences.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "r"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest free number, and that is this one.
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        if getattr(sys, name) is None:  # closed when Python started
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Tolerant(2, "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


class LazyGroup(click.Group):
    """Import the module of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when a command does not exist; `help` is --help."""
        if args[:1] == ["help"]:
            if len(args) == 1:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [*args[1:], "--help"]
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
    help="Captions, text and answers from folders of pictures and hours of video, with SmolVLM2 on "
    "this machine.",
)
@click.version_option(vlmbatch.__version__, "--version", message="vlmbatch %(version)s")
def cli() -> None:
    """Run one of the commands."""
    set_waiting_policy()


def main() -> None:
    """Run the command line: an error is one line on stderr and an exit code."""
    open_streams()
    try:
        code = cli.main(prog_name="vlmbatch", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VlmbatchError as error:
        click.echo(f"vlmbatch: {one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("vlmbatch: interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        _end_after_stream_error(error)


def _end_after_stream_error(error: OSError) -> NoReturn:
    """Exit after an error of stdout; raise an error of anything else."""
    if isinstance(error, io.UnsupportedOperation) and not sys.stdout.writable():
        click.echo("vlmbatch: cannot write to stdout: it is closed", err=True)
        sys.exit(1)
    if error.filename is not None or error.errno is None:
        raise error
    if not isinstance(error, BrokenPipeError):  # the reader of a pipe went away, as `head` does
        click.echo(f"vlmbatch: cannot write to stdout: {error.strerror}", err=True)
    # Python would complain once more when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
