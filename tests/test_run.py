"""`semples run` on small scripts that stand for a host's; `test_hosts` runs the hosts' own."""

import os
import re
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


def test_what_will_be_gone_one_day_is_not_told_and_all_else_is(checkout, monkeypatch):
    (checkout / "helper.py").write_text("pattern = '\\d'\n")  # a SyntaxWarning, when it is compiled
    told = "import warnings, helper\nfor kind in ({}):\n    warnings.warn('about ' + kind.__name__, kind)\nprint(1 / 0)"
    (checkout / "main.py").write_text(told.format("DeprecationWarning, FutureWarning, UserWarning, RuntimeWarning"))
    errors = run("weaktr", "--any-commit", "main.py").stderr
    assert re.findall(r"Warning: (.*)", errors) == ["about UserWarning", "about RuntimeWarning"]
    assert "ZeroDivisionError" in errors
    monkeypatch.setenv("PYTHONWARNINGS", "default")  # who wants to see them all
    assert "about FutureWarning" in run("weaktr", "--any-commit", "main.py").stderr


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


def test_what_is_wrong_is_told_in_a_sentence(checkout, capsys, monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *_: None)  # a script that starts after all
    (checkout / "folder").mkdir()
    for arguments, told in {
        ("weaktr", "main.py"): f"{checkout} is no git checkout; clone weaktr with git, an unpacked archive has no "
        "commits; or say --any-commit",
        ("weaktr", "--any-commit"): "expected a script of the host and its arguments, such as main.py --help, or -m "
        "and a module, got none",
        ("weaktr", "--any-commit", "-m"): "or -m and a module, got -m",
        ("weaktr", "--any-commit", "--devise", "cpu"): "got the option --devise; run's own are --device, --seed",
        ("weaktr", "--any-commit", "-I", "main.py"): "got the option -I; run's own are",
        ("weaktr", "--any-commit", "-uE", "main.py"): "got the option -uE",
        ("weaktr", "--any-commit", "-S", "main.py"): "got the option -S",
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
    told = "semples run: the script wants a GPU, and torch finds no CUDA device; --device cpu, "
    spawn = "import torch\nif __name__ == '__main__':\n    torch.multiprocessing.spawn(print, nprocs={})\n"
    for script in ("import torch\ntorch.ones(2).cuda()\n", spawn.format("torch.cuda.device_count()")):
        (checkout / "main.py").write_text(script)
        failed = run("weaktr", "--any-commit", "main.py", env=hidden)
        assert failed.returncode == 1 and failed.stderr.startswith(told) and failed.stderr.count("\n") == 1
    (checkout / "main.py").write_text(spawn.format("1"))  # what wants no GPU is left alone
    fine = run("weaktr", "--any-commit", "main.py", env=hidden)
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "0\n", "")


DRAW = """
import random, numpy, torch

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return [random.random(), numpy.random.rand(), torch.rand(()).item()]

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Images(), num_workers=2, shuffle=True)
    print(random.random(), numpy.random.rand(), torch.rand(()).item(), list({"a", "b", "c", "d", "e"}))
    print([torch.stack(batch).tolist() for batch in loader])
"""


def test_a_seed_holds_for_the_script_and_its_loaders_workers(checkout):
    (checkout / "main.py").write_text(DRAW)

    def drawn(*options: str, **variables: str) -> str:
        result = run("weaktr", *options, "--any-commit", "main.py", env={**os.environ, **variables})
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = drawn("--seed", "7")
    assert drawn("--seed=7") == first
    others = [drawn("--seed", "8"), drawn(), drawn("--seed=7", RANK="1")]  # a rank draws numbers of its own
    for other in others:
        script, loaded = zip(*(text.splitlines() for text in (first, other)), strict=True)
        assert not set(script[0].split()[:3]) & set(script[1].split()[:3])
        assert not set(re.findall(r"0\.\d+", loaded[0])) & set(re.findall(r"0\.\d+", loaded[1]))


def test_a_seed_that_numpy_does_not_take_is_refused(checkout, capsys):
    for seed in ("-1", "4294967296"):
        assert main(["run", "weaktr", "--any-commit", f"--seed={seed}", "main.py"]) == 1
        assert f"--seed: expected a number from 0 to 4294967295, got {seed}" in capsys.readouterr().err


def test_distributed_training_on_the_cpu(checkout):
    (checkout / "main.py").write_text(
        "import torch\n"
        "torch.distributed.init_process_group(backend='nccl')\n"
        "torch.cuda.set_device(0)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).cuda(0)\n"
        "model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)\n"
        "model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0], output_device=0,\n"
        "                                                  find_unused_parameters=True)\n"
        "model(torch.rand(4, 2)).square().sum().backward()\n"
        "print(torch.distributed.get_backend(), model.module[0].weight.grad is not None)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    result = run(
        "weaktr", "--any-commit", "--device=cpu", "-m", "torch.distributed.run", "--nproc_per_node=1", "main.py"
    )
    assert result.returncode == 0 and result.stdout == "gloo True\n", result.stderr


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


CLIMS_LINES = {
    "voc12.dataloader": "x = np.loadtxt(dataset_path, dtype=np.int32)",
    "misc.torchutils": "return [Subset(dataset, np.arange(i, len(dataset), n_splits)) for i in range(n_splits)]",
    "step.train_clims": "torch.nonzero(label.reshape(-1) == 1, as_tuple=False).squeeze()",
    "step.make_clims": "iter % (len(databin) // 20) == 0",
    "step.cam_to_ir_label": "iter % (len(databin) // 20) == 0 and x == args.num_workers - 1\n"
    "dataset = torchutils.split_dataset(dataset, args.num_workers)\nspawn(_work, nprocs=args.num_workers)",
    "step.make_sem_seg_labels": "size = np.asarray(pack['size'])\n% (len(databin) // 20)\n"
    "propagate(edge, beta=args.beta, exp_times=args.exp_times)",
    "step_coco.train_clims": '(label == 1, as_tuple=False).squeeze()\nclip.load("ViT-B/32", device=device)',
}


@pytest.mark.parametrize("module", CLIMS_LINES)
def test_climss_lines_are_corrected(module):
    """Every correction of a source finds the line that it is for; `test_hosts` runs the results."""
    source = CLIMS_LINES[module]
    for change in clims.CORRECTIONS.sources[module]:
        corrected = change(source)
        assert corrected != source, change.__name__
        source = corrected
    for gone in ("np.arange", "dtype=np.int32", ".squeeze()", "% (len(databin)", "=args.num_workers", '"ViT-B/32"'):
        assert gone not in source
    assert "['size'])." in source or "['size']" not in source


def test_the_stand_ins_of_deeplab():
    class Module:
        pass

    clims.fill_torchnet_meter(Module)
    meter = Module.MovingAverageValueMeter(2)
    assert meter.value() == (0.0, 0.0)
    for value in (9.0, 1.0, 3.0):
        meter.add(value)
    assert meter.value() == (2.0, pytest.approx(2**0.5))


def test_labels_of_floats_become_integers(monkeypatch):
    import torch

    real = torch.LongTensor
    monkeypatch.setattr(torch, "LongTensor", real)
    clims.round_labels(None)
    labels = torch.LongTensor([np.array([[0.0, 255.0]], np.float32), np.array([[3.0, 4.0]], np.float32)])
    assert labels.dtype == torch.int64 and labels.tolist() == [[[0, 255]], [[3, 4]]]
    assert torch.LongTensor([1, 2]).tolist() == [1, 2] and torch.LongTensor(2, 3).shape == (2, 3)
    assert isinstance(labels, torch.LongTensor) and not isinstance(torch.ones(1), torch.LongTensor)


def test_every_host_has_its_corrections():
    assert set(REGISTRIES) == set(COMMITS)
    for module in REGISTRIES.values():
        text = Path(clims.__file__).with_name(f"{module}.py").read_text()
        assert "CORRECTIONS = Corrections()" in text


def test_alchemy_cats_confusion_matrix_is_drawn_on_numpy_2():
    from semples_plugin.compat.fma_wsss import choose_by_an_integer

    names = {"per_ok": np.float64(100)}
    source = 'text = ["%.2f%%" % per_ok, "100%"][per_ok == 100]'
    exec(choose_by_an_integer(source), names)
    assert names["text"] == "100%"
