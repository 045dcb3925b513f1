"""OpenMP's threads wait asleep, unless the user says otherwise; children inherit nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmbatch.cli.waiting import OF_USERS, POLICY

REPORT = """
import os, subprocess, sys
from vlmbatch.cli.main import cli
cli.callback()
names = {names!r}
child = "import os; print([name for name in {names!r} if name in os.environ])"
subprocess.run([sys.executable, "-c", child], check=True)
import torch
torch.ones(2, 2) @ torch.ones(2, 2)
if os.path.exists("/proc/self/maps"):
    with open("/proc/self/maps") as maps:
        paths = {{line.split()[-1] for line in maps}}
    print(len([path for path in paths if "libgomp" in path]))
"""


def run_report(**variables: str) -> tuple[list[str], str]:
    environment = {name: text for name, text in os.environ.items() if name not in OF_USERS}
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(names=OF_USERS)],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(autouse=True)
def _gnu() -> None:
    import torch

    if not list((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        pytest.skip("torch has another runtime here")


def test_torch_runs_with_the_policy_and_children_do_not_inherit_it() -> None:
    (inherited, libraries), told = run_report()
    assert inherited == "[]"
    assert libraries == "1"  # what was loaded with the policy is what torch uses
    assert f"GOMP_SPINCOUNT = '{POLICY['GOMP_SPINCOUNT']}'" in told


@pytest.mark.parametrize(
    ("name", "text"),
    [("GOMP_SPINCOUNT", "12345"), ("OMP_WAIT_POLICY", "ACTIVE")],
)
def test_a_policy_of_the_user_stays_and_is_inherited(name: str, text: str) -> None:
    (inherited, _), told = run_report(**{name: text})
    assert inherited == f"['{name}']"
    assert f"{name} = '{text}'" in told
    assert f"GOMP_SPINCOUNT = '{POLICY['GOMP_SPINCOUNT']}'" not in told


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; from vlmbatch.cli.main import cli; cli.callback(); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "'torch'" not in done.stdout
    assert done.returncode == 0, done.stderr
