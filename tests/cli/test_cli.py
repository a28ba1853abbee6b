import subprocess
import sys

import pytest

from llasa_core import cli
from llasa_core.cli import train
from llasa_core.errors import InputError

SUBCOMMANDS = (
    *("check", "prepare", "encode", "import-memmap", "export-memmap", "train", "adapt-codec"),
    *(
        "synthesize",
        "search",
        "transcribe",
        "evaluate",
        "protocol",
        "compare",
        "rating-page",
        "rating-scores",
        "run",
    ),
)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_a_handler_and_helps_with_an_example(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example: llasa {name} " in out


def test_help_lists_every_subcommand(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name}" in out for name in SUBCOMMANDS)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["speak"],
        ["run"],
        ["run", "x.yaml", "--jobs", "0"],
        ["prepare", "builtin", "o", "--hours", "x"],
    ],
)
def test_wrong_usage_is_status_2(argv, capsys):
    assert cli.main(argv) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            InputError("a.json: line 3:\nexpected a number"),
            2,
            "llasa: a.json: line 3: expected a number\n",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "a.wav"),
            2,
            "llasa: a.wav: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, "llasa: interrupted\n"),
    ],
)
def test_errors_of_the_user_become_one_line_and_a_status(error, status, line, capsys, monkeypatch):
    def handler(options):
        raise error

    monkeypatch.setattr(train, "check", handler)
    assert cli.main(["check", "anything"]) == status
    assert capsys.readouterr().err == line


def test_errors_of_the_program_keep_their_traceback(monkeypatch):
    def handler(options):
        raise ZeroDivisionError

    monkeypatch.setattr(train, "check", handler)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check", "anything"])


def test_closed_pipe_ends_without_a_traceback():
    script = (
        "from llasa_core import cli\nfrom llasa_core.cli import train\n"
        "train.check = lambda options: [print('x' * 80) for _ in range(9999)] and 0\n"
        "raise SystemExit(cli.main(['check', 'x']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_check_prints_every_difference_config_json_included_and_returns_1(
    mini_tokenizer, tmp_path, capsys
):
    mini_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 128256}')
    assert cli.main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vocabulary size: ") and lines[0].endswith("expected 193800")
    assert lines[-1] == "config vocab_size: 128256, expected 193800"


@pytest.mark.slow
def test_check_accepts_the_released_layout(llama3_tokenizer, tmp_path, capsys):
    llama3_tokenizer.save_pretrained(tmp_path)
    assert cli.main(["check", str(tmp_path)]) == 0
    assert "193800 ids" in capsys.readouterr().out
