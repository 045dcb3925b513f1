"""Arguments, job files and --set: what is taken, what is refused, and with which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command
from tests.media import write_video


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["caption"], 2, "Usage"),
        (["caption", "nowhere", "--model", "demo"], 2, "no such file or folder: nowhere"),
        (["captoin", "photos"], 2, "did you mean 'caption'"),
        (["caption", "photos", "--limit", "x"], 2, "--limit"),
        (["caption", "photos", "--detail", "best"], 2, "--detail"),
        (["caption", "photos", "-o", "x.txt"], 2, "output must end in"),
        (["vqa", "photos"], 2, "vqa needs questions"),
        (["video", "photos", "--fps", "1", "--every", "2"], 2, "different ways"),
        (["video", "--skip-similar=much", "photos"], 2, "'much' is not a number"),
        (
            ["video", "photos", "--scenes", "--per", "window"],
            2,
            "scenes goes with --per frame or --per clip",
        ),
        (["video", "photos", "--at", ""], 2, "not a list of times"),
        (
            ["vqa", "photos", "--questions", "none.txt", "--dry-run"],
            2,
            "question file none.txt: No such file",
        ),
        (["caption", "photos", "--prompt", "What\udcff?"], 2, "not valid text"),
        (["caption", "photos", "--prompt", "<image> What is it?"], 2, "may not hold <image>"),
        (["vqa", "photos", "-q", "Why?", "--questions", "none.txt"], 2, "not from both"),
        (["run", "none.yaml"], 2, "none.yaml: No such file"),
        (
            ["caption", "photos", "--model", "demo", "--revision", "v2"],
            2,
            "--revision goes with a hub id; demo is the model that ships inside the package",
        ),
        (["caption", "photos", "--model", "{tiny}", "--revision", "v2"], 2, "tiny is a folder"),
        (
            ["caption", "photos", "--model", "{tiny}", "--revision", "v2", "--dry-run"],
            2,
            "tiny is a folder",
        ),
        (["models", "info", "demo", "--revision", "v2"], 2, "--revision goes with a hub id"),
        (["caption", "photos", "--model", "owner/nothing"], 1, "--model demo"),
        (["caption", "photos", "--model", "photos"], 1, "config.json is missing"),
        (
            ["caption", "photos", "--model", "{tiny}", "--device", "cuda:7"],
            1,
            "no device cuda:7 here; there is",
        ),
        (["caption", "photos", "--model", "{tiny}", "--max-memory", "100K"], 1, "may take 0 MiB"),
        (
            ["caption", "photos", "--model", "{tiny}", "-o", "/proc/nowhere/x.jsonl"],
            1,
            "cannot write",
        ),
        (
            ["caption", "photos", "--model", "{tiny}", "-o", "photos/0.png/x.jsonl"],
            1,
            "photos/0.png is no folder",
        ),
        (["stats", "none.jsonl"], 1, "cannot read none.jsonl"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    vlmbatch: Command, photos: Path, tiny: Path, arguments: list[str], code: int, message: str
) -> None:
    result = vlmbatch(*(argument.format(tiny=tiny) for argument in arguments))
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("vlmbatch:")]) <= 1


@pytest.mark.parametrize(
    ("command", "offers", "refuses"),
    [
        ("video", ["[frame|clip|window]", "[txt|srt|vtt]"], ("--per", "tile")),
        ("ocr", ["[page|tile]", "[txt]"], ("--per", "clip")),
        ("caption", ["[txt]"], ("--sidecar", "srt")),
        ("vqa", ["[txt]"], ("--sidecar", "vtt")),
    ],
)
def test_a_command_offers_what_goes_with_it(
    vlmbatch: Command, photos: Path, command: str, offers: list[str], refuses: tuple[str, str]
) -> None:
    found = re.findall(r"--(?:per|sidecar) +(\[.*?\])", vlmbatch(command, "--help").stdout)
    assert found == offers
    refused = vlmbatch(command, "photos", *refuses)
    assert refused.returncode == 2
    assert f"'{refuses[1]}' is not" in refused.stderr


def test_help_states_defaults_of_numbers_texts_and_automatic_values(vlmbatch: Command) -> None:
    found = " ".join(vlmbatch("video", "--help").stdout.split())
    for option in (
        "--temperature T 0 is greedy. [default: 0.0]",
        "--seed N Seed of sampling and of --shuffle. [default: 0]",
        "--device DEVICE auto, cpu, cuda, cuda:N or mps. [default: auto]",
        "as many as fit into memory. [default: auto]",
    ):
        assert option in found
    assert "[default: False]" not in found
    assert "[default: None]" not in found


def test_unknown_keys_name_the_nearest_known_one(vlmbatch: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("inputs: x\nmax_new_token: 3\n")
    result = vlmbatch("run", "job.yaml")
    assert result.returncode == 2
    assert "job.yaml: unknown key 'max_new_token'; did you mean 'max_new_tokens'?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "threshold"),
    [
        (["--skip-similar", "a.mp4"], 0.05),
        (["a.mp4", "--skip-similar"], 0.05),
        (["--skip-similar", "--fps", "2", "a.mp4"], 0.05),
        (["--skip-similar", "0.2", "a.mp4"], 0.2),
        (["--skip-similar=0.2", "a.mp4"], 0.2),
    ],
)
def test_the_threshold_of_skip_similar_may_be_left_out_anywhere(
    vlmbatch: Command, tmp_path: Path, arguments: list[str], threshold: float
) -> None:
    write_video(tmp_path / "a.mp4", 2)
    result = vlmbatch("video", *arguments, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["skip_similar"] == threshold


def test_a_key_of_a_job_file_stands_there_once(
    vlmbatch: Command, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text("inputs: photos\nbatch-size: 3\nbatch_size: 4\n")
    (tmp_path / "server.yaml").write_text("serve:\n  port: 1\n  port: 2\n")
    for name, key, line in (("job", "batch_size", 3), ("server", "port", 3)):
        result = vlmbatch("run", f"{name}.yaml", "--dry-run")
        where = f"{name}.yaml, line {line}: the key {key!r} is there already, in line {line - 1}"
        assert (result.returncode, result.stderr) == (2, f"vlmbatch: {where}: give it once\n")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("limit: 0", ["--set", "seed=1"], "job.yaml: limit must be at least 1, not 0"),
        ("limit: 1", ["--set", "limt=1"], "--set limt: unknown key 'limt'; did you mean 'limit'?"),
        ("limit: 1", ["--set", "seed=1", "--set", "fps=1"], "--set fps: fps goes with videos"),
        ("limit: 1", ["--output", "x.txt"], "--output: output must end in .jsonl"),
        ("limit: 0\ntask: vqa", ["--set", "questions=Why?"], "job.yaml: limit must be"),
        ("task: vqa", ["--limit", "1"], "job.yaml: vqa needs questions"),
        ("port: 1", [], "job.yaml: unknown key 'port': it goes with a server, under"),
        ("serve:", ["--set", "prot=1"], "--set prot: unknown key 'prot'; did you mean 'port'?"),
        (
            "serve:",
            ["--limit", "1"],
            "--limit: unknown key 'limit': a server has no limit; leave it out",
        ),
        (
            "serve:\ntask: ocr",
            ["--set", "port=1"],
            "job.yaml: unknown key 'task': a server has no task",
        ),
    ],
)
def test_an_error_names_the_file_the_setting_or_the_option(
    vlmbatch: Command, tmp_path: Path, text: str, arguments: list[str], message: str
) -> None:
    inputs = "" if "serve:" in text else "inputs: photos\n"
    (tmp_path / "job.yaml").write_text(f"{inputs}{text}\n")
    result = vlmbatch("run", "job.yaml", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"vlmbatch: {message}"), result.stderr


def test_a_setting_replaces_a_key_however_it_is_written(
    vlmbatch: Command, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text("inputs: photos\nbatch-size: 3\nmodel: demo\n")
    changes = ("--set", "batch_size=4", "--set", "batch-size=5")
    result = vlmbatch("run", "job.yaml", "--dry-run", *changes)
    assert yaml.safe_load(result.stdout)["batch_size"] == 5


def test_batch_needs_an_output_and_help_says_so(vlmbatch: Command, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text("")
    result = vlmbatch("batch", "requests.jsonl", "--model", "demo")
    assert result.returncode == 2
    assert "batch needs an OUTPUT: give a .jsonl file with -o" in result.stderr
    text = " ".join(vlmbatch("batch", "--help").stdout.split())
    assert "OUTPUT, a .jsonl file. [required]" in text
    assert "[default: ]" not in text


def test_a_server_says_only_options_that_it_has(
    vlmbatch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = yaml.safe_load(vlmbatch("serve", "--dry-run").stdout)["serve"]
    text = vlmbatch("serve", "--help").stdout
    missing = [key for key in printed if f"--{key.replace('_', '-')} " not in text]
    assert missing == []
    monkeypatch.setenv("HOME", "/home/of/mine")
    printed = vlmbatch("serve", "--api-key-file=~/keys", "--dry-run").stdout
    assert "api_key_file: /home/of/mine/keys\n" in printed
    for command in ("serve", "batch"):
        assert "--shuffle" not in vlmbatch(command, "--help").stdout


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("prompt=yes", "prompt", "yes"),
        ("prompt=What is it: a dog?", "prompt", "What is it: a dog?"),
        ("prompt=#1?", "prompt", "#1?"),
        ("prompt='a: b'", "prompt", "a: b"),
        ("prompt=null", "prompt", None),
        ("exclude=*.jpg", "exclude", ["*.jpg"]),
        ("exclude=[a, '*.jpg']", "exclude", ["a", "*.jpg"]),
        ("exclude=[0-2]*", "exclude", ["[0-2]*"]),
        ("max-errors=10", "max_errors", "10"),
        ("output=-", "output", "-"),
        ("shuffle=true", "shuffle", True),
        ("limit=2", "limit", 2),
    ],
)
def test_set_takes_text_as_it_stands(
    vlmbatch: Command, photos: Path, tmp_path: Path, setting: str, key: str, value: object
) -> None:
    (tmp_path / "job.yaml").write_text("inputs: photos\nprompt: Why?\n")
    result = vlmbatch("run", "job.yaml", "--dry-run", "--set", setting)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)[key] == value


def test_a_job_file_may_say_how_it_is_told(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(
        f"inputs: photos\nmodel: {tiny}\nmax_new_tokens: 2\noutput: '-'\nquiet: true\n"
    )
    told = vlmbatch("run", "job.yaml", "--log-format", "json", "--set", "quiet=false")
    assert '"event": "run_started"' in told.stderr
    result = vlmbatch("run", "job.yaml")
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, "", 4)
    printed = vlmbatch("run", "job.yaml", "--set", "dry-run=true").stdout
    assert printed.startswith("# 4 items\n")
    assert "dry_run" not in printed
    (photos / "broken.png").write_bytes(b"no picture")
    told = vlmbatch("run", "job.yaml", "--set", "quiet=false", "--set", "verbose=2")
    assert "broken.png: DecodeError: " in told.stderr
    refused = vlmbatch("run", "job.yaml", "--set", "quiet=loud")
    assert refused.returncode == 2
    assert "quiet must be true or false, not 'loud'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("caption photos --question Why?", "goes with `vlmbatch vqa` and `vlmbatch video`"),
        ("caption photos --fps 2", "it goes with `vlmbatch video`"),
        ("vqa photos --prompt Why?", "vqa asks questions: use -q TEXT"),
        ("run job.yaml --fps 2", "use --set fps=VALUE"),
        ("run job.yaml --port 2", "use --set port=VALUE"),
        ("ocr photos --modle demo", "Did you mean '--model'"),
        ("caption photos -q Why?", "'Why?'; -q is --quiet here: use `vlmbatch vqa`"),
        ("video photos -q Why?", "choose it with --task vqa"),
    ],
)
def test_advice_knows_the_command(
    vlmbatch: Command, photos: Path, arguments: str, advice: str
) -> None:
    result = vlmbatch(*arguments.split())
    assert result.returncode == 2
    assert advice in result.stderr


def test_quiet_goes_with_patterns_and_names_of_files(vlmbatch: Command, photos: Path) -> None:
    (photos / "0.png").rename(photos / "is it?")
    for name in ("photos/1.pn?", "photos/is it?"):
        assert vlmbatch("caption", name, "-q", "--model", "demo", "--dry-run").returncode == 0


def test_help_is_a_command_too(vlmbatch: Command) -> None:
    for words in ([], ["caption"], ["models", "fetch"]):
        asked, wanted = vlmbatch("help", *words), vlmbatch(*words, "--help")
        assert (asked.returncode, asked.stdout) == (0, wanted.stdout)
        assert asked.stdout
    assert "did you mean 'caption'?" in vlmbatch("help", "captoin").stderr


def test_a_shell_completes_commands_and_options(
    vlmbatch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_VLMBATCH_COMPLETE", "bash_complete")
    for words, found in (("vlmbatch cap", "caption"), ("vlmbatch vqa --quest", "--questions")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert f"plain,{found}" in vlmbatch().stdout.split()
