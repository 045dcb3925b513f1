"""A run with the scripted engine as a process, which starts quickly.

``python -m tests.faults.scripted FOLDER[:FOLDER…] OUTPUT ANSWER_MILLISECONDS [STAGING]``
"""

from __future__ import annotations

import sys

from vlmbatch.cli.closing import say_summary
from vlmbatch.cli.logs import set_up_logging
from vlmbatch.cli.signals import catch_signals
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import VlmbatchError
from vlmbatch.job import Job
from vlmbatch.run.pipeline import Run


def main() -> int:
    """Runs the job as the command line would; gives its exit code."""
    folders, output, milliseconds, *staging = sys.argv[1:]
    set_up_logging("text", verbose=0, quiet=False, bar=False)
    try:
        job = Job(
            inputs=tuple(folders.split(":")),
            output=output,
            staging_dir=staging[0] if staging else None,
        )
        run = Run(job, engine=ScriptedEngine(seconds=float(milliseconds) / 1000))
    except VlmbatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    catch_signals(run)
    outcome = run.start()
    if outcome.error is not None:
        print(outcome.error, file=sys.stderr)
        say_summary(
            job,
            outcome.summary,
            exit_code=outcome.exit_code,
            interrupted=outcome.interrupted,
            names_output=False,
        )
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
