"""`semples run` on small scripts that stand for a host's; `test_hosts` runs the hosts' own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semples_plugin.adapters import patching
from semples_plugin.adapters.commits import COMMITS
from semples_plugin.cli.app import main
from semples_plugin.compat import clims
from semples_plugin.compat.corrections import REGISTRIES, Corrections, install
from semples_plugin.compat.run import check_checkout, environment

MAIN = """
import multiprocessing, subprocess, sys
import mlflow
from PIL import Image
from helper import in_child

if __name__ == "__main__":
    mlflow.start_run(run_name="a run")
    print("main", __file__, sys.argv[1:], Image.CUBIC == Image.BICUBIC)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("spawned", pool.apply(in_child))
    print(subprocess.run([sys.executable, "-c", "import mlflow; print('started', mlflow.log_param(1, 2))"],
                         capture_output=True, text=True).stdout.strip())
    sys.exit(7)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Something that looks like WeakTr."""
    folder = tmp_path / "weaktr"
    folder.mkdir()
    (folder / "AAF.py").write_text("")
    (folder / "helper.py").write_text("def in_child():\n    import mlflow\n    return mlflow.__name__\n")
    (folder / "main.py").write_text(MAIN)
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "semples_plugin", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_script_its_children_and_theirs_have_the_stand_ins(checkout):
    result = run("weaktr", "--any-commit", "main.py", "--epochs", "1", "--device", "cuda")
    assert result.returncode == 7, result.stderr  # the script's own status
    main_line, *rest = result.stdout.splitlines()
    assert main_line == f"main {checkout / 'main.py'} ['--epochs', '1', '--device', 'cuda'] True"
    assert rest == ["spawned mlflow", "started None"]


def test_weaktrs_second_stage_finds_its_package_and_the_data(checkout, monkeypatch):
    """As `OnlineRetraining/segm/dist_train.sh` has it."""
    found = environment("weaktr")
    assert found["PYTHONPATH"].split(os.pathsep)[-1] == str(checkout / "OnlineRetraining")
    assert found["DATASET"] == str(checkout / "data") and "DATASET" not in environment("clims")
    monkeypatch.setenv("DATASET", "/data")
    assert environment("weaktr")["DATASET"] == "/data"


def test_another_start_up_file_is_run_as_well(checkout, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('another')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (checkout / "main.py").write_text("import mlflow; print('after it')\n")
    assert run("weaktr", "--any-commit", "main.py").stdout.split("\n")[-3:] == ["another", "after it", ""]


def test_what_is_wrong_is_told_in_a_sentence(checkout, capsys):
    (checkout / "folder").mkdir()
    for arguments, told in {
        ("weaktr", "main.py"): f"{checkout} is no git checkout; clone weaktr with git, an unpacked archive has no "
        "commits; or say --any-commit",
        ("weaktr", "--any-commit"): "expected a script of the host and its arguments, such as main.py --help, or -m "
        "and a module, got none",
        ("weaktr", "--any-commit", "-m"): "or -m and a module, got -m",
        ("weaktr", "--any-commit", "--devise", "cpu"): "got the option --devise; run's own are --device and",
        ("weaktr", "--any-commit", "man.py"): f"there is no script man.py in {checkout}",
        ("weaktr", "--any-commit", "folder"): "there is no script folder in",
        ("clims", "main.py"): f"{checkout} is no checkout of clims: it has no run_sample.py",
    }.items():
        assert main(["run", *arguments]) == 1
        error = capsys.readouterr().err
        assert told in error and error.startswith("semples run: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "place", [["--device", "tpu", "weaktr"], ["weaktr", "--device", "tpu"], ["weaktr", "--device"]]
)
def test_an_unknown_device_is_wrong_usage(place, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", *place])
    assert "error: argument --device: " in capsys.readouterr().err


def test_the_commit_is_that_of_the_checkout_itself(checkout, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q", checkout.parent], check=True)  # around it
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "somebody else's"], check=True)
    around = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setitem(COMMITS, "weaktr", around)  # even then
    inside = rf"weaktr is a folder inside of the checkout {checkout.parent}; give that, if it is weaktr's, or"
    for refuse in (lambda: check_checkout("weaktr"), lambda: patching.patch("weaktr", checkout, "check")):
        with pytest.raises(ValueError, match=inside):
            refuse()
    check_checkout("weaktr", any_commit=True)
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(ValueError, match=r"git says: Needed a single revision; or say --any-commit"):
        check_checkout("weaktr")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "another"], check=True)
    with pytest.raises(ValueError, match=rf"{checkout} is at [0-9a-f]{{8}}: git -C {checkout} checkout {around[:8]}"):
        check_checkout("weaktr")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setitem(COMMITS, "weaktr", head)
    check_checkout("weaktr")


def test_another_users_checkout_comes_with_gits_advice(checkout, monkeypatch):
    subprocess.run(["git", "init", "-q", checkout], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    advice = rf"git says: detected dubious ownership in .*; if you trust it: git config .* safe.directory {checkout}"
    for refuse in (lambda: check_checkout("weaktr"), lambda: patching.patch("weaktr", checkout, "check")):
        with pytest.raises(ValueError, match=advice):
            refuse()
    monkeypatch.setenv("PATH", "")
    for refuse in (lambda: check_checkout("weaktr"), lambda: patching.patch("weaktr", checkout, "check")):
        with pytest.raises(ValueError, match="git is not installed"):
            refuse()
    check_checkout("weaktr", any_commit=True)


def test_cuda_calls_go_to_the_cpu_only_when_asked_to(checkout):
    (checkout / "main.py").write_text(
        "import torch\n"
        "x = torch.ones(2).cuda().to('cuda', non_blocking=True).to(torch.float64)\n"
        "print(x.device, x.dtype, torch.nn.Linear(1, 1).cuda().to(device='cuda:0').weight.device)\n"
        "torch.cuda.synchronize()\n"
    )
    on_cpu = run("weaktr", "--any-commit", "--device", "cpu", "main.py")
    assert on_cpu.stdout == "cpu torch.float64 cpu\n" and "for a trial, not for figures" in on_cpu.stderr
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    failed = run("weaktr", "--any-commit", "main.py", env=hidden)
    assert failed.returncode == 1 and failed.stderr.count("--device cpu maps CUDA calls to the CPU") == 1


def test_sources_are_corrected_in_memory_and_a_line_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "semples_tried.py").write_text("VALUE = old()\n")
    (tmp_path / "semples_fits.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    corrections = Corrections()
    corrections.in_source("semples_tried")(lambda source: source.replace("old()", "2"))
    corrections.after("semples_tried")(lambda module: setattr(module, "VALUE", module.VALUE + 1))
    corrections.in_source("semples_fits")(lambda source: source.replace("old()", "2"))
    monkeypatch.setattr("semples_plugin.compat.weaktr.CORRECTIONS", corrections)
    install("weaktr")
    import semples_tried

    assert semples_tried.VALUE == 3 and semples_tried.__file__ == str(tmp_path / "semples_tried.py")
    assert (tmp_path / "semples_tried.py").read_text() == "VALUE = old()\n"
    with pytest.warns(UserWarning, match="semples_fits no longer holds the line that .* corrects"):
        import semples_fits
    assert semples_fits.VALUE == 1


def test_the_stand_in_for_chainercvs_evaluation_counts_as_it_does():
    class Module:
        pass

    clims.fill_chainercv_evaluations(Module)
    predictions, truths = (
        [np.array([[0, 1], [2, 2]]), np.array([[1, 0]])],
        [np.array([[0, 1], [-1, 0]]), np.array([[1, 1]])],
    )
    confusion = Module.calc_semantic_segmentation_confusion(predictions, truths)
    assert confusion.tolist() == [[1, 0, 1], [1, 2, 0], [0, 0, 0]]  # rows are the ground truth


def test_every_host_has_its_corrections():
    assert set(REGISTRIES) == set(COMMITS)
    for module in REGISTRIES.values():
        text = Path(clims.__file__).with_name(f"{module}.py").read_text()
        assert "CORRECTIONS = Corrections()" in text
