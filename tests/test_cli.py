import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semples_plugin.cli.app import build_parser, main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    text = capsys.readouterr().out
    assert status.value.code == 0 and "demo" in text and "doctor" in text and "no download" in text


def parsers(parser):
    """A parser and those of the commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_help_says_defaults_once_and_exit_codes():
    seen = 0
    for parser in parsers(build_parser()):
        text = " ".join(parser.format_help().split())
        assert "Exit status: 0 done; 1 bad input" in text and "2 wrong usage; 130 interrupted" in text, parser.prog
        for action in parser._actions:
            said = parser.formatter_class("x")._expand_help(action)
            assert said.count("(default") <= 1 and "default: None" not in said and "default: False" not in said, said
            if isinstance(action, argparse._StoreAction) and action.default not in (None, 0, []):
                assert "(default: " in said, (parser.prog, action.dest)
                seen += 1
    assert seen > 20


def test_help_needs_none_of_the_large_packages():
    code = (
        "import sys\nfrom semples_plugin.cli.app import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "argparse" in loaded and not {"torch", "numpy", "cv2", "matplotlib", "PIL", "tqdm"} & set(loaded)


def judged(folder: Path) -> list[str]:
    """A command that judges, for a process of its own."""
    (folder / "masks").mkdir()
    (folder / "cams").mkdir()
    mask = np.repeat(np.array([[0, 1], [2, 1]], np.uint8), 8, axis=0)
    for n in range(3):
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
        cams = {k: (mask == k + 1).astype(np.float32) for k in range(2)}
        np.save(folder / "cams" / f"{n}.npy", np.array(cams, dtype=object), allow_pickle=True)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return [sys.executable, "-m", "semples_plugin", "eval", str(folder / "cams"), "--masks", str(folder / "masks")]


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as users' Pythons are


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_closed_pipe_or_stream_loses_words_and_nothing_else(tmp_path):
    command = judged(tmp_path)
    running = {}
    for name, shell, streams in (
        ("both read no further", "", ("stdout", "stderr")),
        ("stderr closed", "2>&-", ()),
        ("all closed", "<&- >&- 2>&-", ()),
    ):
        process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {shell}', "sh", *command, "--out", str(tmp_path / name)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=BUFFERED,
        )  # fmt: skip
        for stream in streams:
            getattr(process, stream).close()
        running[name] = process
    for name, process in running.items():
        said = "".join(stream.read() for stream in (process.stdout, process.stderr) if not stream.closed)
        assert process.wait() == 0, (name, said)
        assert {path.name for path in (tmp_path / name).iterdir()} == {"eval.json", "images.csv", "curve.png"}
        assert "Traceback" not in said and "Exception" not in said and "Error" not in said, (name, said)
        assert ("mIoU 100.00 %" in said) == (name == "stderr closed"), (name, said)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    code = """if 1:
        import os
        from semples_plugin.cli.streams import lasting_streams
        with lasting_streams(), open("file", "w") as file:
            os.write(1, b"words of a library")
            os.write(2, b"more of them")
    """
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0 and (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_words_that_find_no_room_are_told(tmp_path):
    command = [*judged(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 1 and done.stderr.startswith("semples eval: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "eval.json").exists()


def interrupted_import(_) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error  # as pybind11 does


def failed_import(_) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        raise ImportError("initialization failed") from error


def interrupted_work(_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("run", "status", "said"),
    [(interrupted_import, 130, "interrupted"), (interrupted_work, 130, "interrupted"),
     (failed_import, 1, "initialization failed")],
)  # fmt: skip
def test_an_interrupt_is_one_wherever_it_comes(run, status, said, monkeypatch, capsys):
    monkeypatch.setattr("semples_plugin.cli.doctor.run", run)
    assert main(["doctor"]) == status and capsys.readouterr().err == f"semples doctor: {said}\n"


def test_warnings_of_ours_are_told_and_libraries_deprecations_are_not(capsys, monkeypatch):
    class Deprecation(UserWarning, DeprecationWarning):
        pass

    def run(*_):
        warnings.warn("look here", UserWarning, stacklevel=1)
        warnings.warn("'oneOf' deprecated", Deprecation, stacklevel=1)

    monkeypatch.setattr("semples_plugin.cli.doctor.print_report", run)
    assert main(["doctor"]) == 0 and capsys.readouterr().err == "semples doctor: look here\n"
