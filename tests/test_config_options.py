"""`semples run fma-wsss --cfg KEY=VALUE`; `test_hosts` has them on FMA-WSSS's own configs."""

import os
import re
import subprocess
import sys

import pytest

from semples_plugin.cli.app import main
from semples_plugin.compat.config_options import VARIABLE, apply_options, parse_options, take_options, to_environment


class Later(dict):
    """A config that reads its bases when it is given to another script, as `infer.cfg` is."""

    def get_attribute(self, name):
        return ("base.py",) if name == "_cfgs_update_at_parser" else None

    def __missing__(self, name):
        return self.setdefault(name, Later())

    def branch_copy(self):
        return Later(self)

    def update_at_parser(self):
        self.update({"loader": {"val": {"batch_size": 1}}, **self})


def test_entries_are_set_and_a_wrong_one_is_named():
    config = {"solver": {"max_iter": 1800}, "infer": {"cfg": Later()}, "names": ("a",), "x": None}
    config["semples"] = {"preset": "voc", "weights": {}}
    texts = ["solver.max_iter=3", "infer.cfg.loader.val.batch_size=2", "names=('b', 'c')", "x=a=b", "semples.clip=demo",
             "semples.weights.image=0"]  # fmt: skip
    assert apply_options(config, parse_options(texts)) is config
    assert config["solver"] == {"max_iter": 3} and config["infer"]["cfg"] == {"loader": {"val": {"batch_size": 2}}}
    assert config["names"] == ("b", "c") and config["x"] == "a=b"
    assert config["semples"] == {"preset": "voc", "weights": {"image": 0}, "clip": "demo"}
    for key, message in {
        "slover.max_iter": "the config has no 'slover'; it has solver, infer, names, x, semples; did you mean solver?",
        "solver.max_iters": "solver has no 'max_iters'; it has max_iter; did you mean max_iter?",
        "rand_seeds": "the config has no 'rand_seeds'; it has solver",
        "solver.max_iter.x": "solver.max_iter is no branch, it is 3",
        "infer.cgf.x": "infer has no 'cgf'; it has cfg; did you mean cfg?",
        "infer.cfg.loader.val.batchsize": "infer.cfg.loader.val has no 'batchsize'; it has batch_size",
        "infer.cfg.laoder.val.x": "infer.cfg has no 'laoder'; it has loader; did you mean loader?",
        "semples.learnin.epochs": "semples has no 'learnin'; it has preset, weights, clip",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"--cfg {key}: {message}")):
            apply_options(config, {key: 1})
    assert config["solver"] == {"max_iter": 3} and config["infer"]["cfg"] == {"loader": {"val": {"batch_size": 2}}}


@pytest.mark.parametrize("value", ["1e400", "[0.5, -1e400]", "{'pow': 1e999}"])
def test_infinite_numbers_are_refused(value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "fma-wsss", "--cfg", f"solver.lr={value}", "run.py"]) == 1
    assert f"--cfg: expected finite numbers, got {f'solver.lr={value}'!r}" in capsys.readouterr().err


def test_only_the_process_that_is_started_takes_them(monkeypatch):
    options = {"solver.max_iter": 3, "weights": (0.0, 1.0), "model.initialize_seed": "\u673a"}
    monkeypatch.setenv(VARIABLE, to_environment(options))
    assert take_options() == options and VARIABLE not in os.environ and take_options() == {}


@pytest.mark.parametrize("wrong", ["solver", "=3", "a..b=3", "a b=3"])
def test_what_is_no_entry_is_refused(wrong, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "fma-wsss", "--cfg", wrong, "run.py"]) == 1
    assert "--cfg: expected KEY=VALUE such as solver.max_iter=3, got" in capsys.readouterr().err


def test_other_hosts_have_no_configs(capsys):
    assert main(["run", "weaktr", "--cfg", "a=1", "main.py"]) == 1
    assert "--cfg: weaktr takes its options behind the script" in capsys.readouterr().err


def test_they_reach_the_script_and_not_what_it_starts(tmp_path):
    (tmp_path / "src/tasks/train_coop").mkdir(parents=True)
    (tmp_path / "src/tasks/train_coop/run.py").write_text(
        "import subprocess, sys\n"
        "from semples_plugin.compat.config_options import take_options\n"
        "print(take_options(), sys.argv[1:], flush=True)\n"
        "if not sys.argv[1:]: sys.exit()\n"
        "subprocess.run([sys.executable, sys.argv[0]])\n"
    )
    command = [sys.executable, "-m", "semples_plugin", "run", "fma-wsss", "--any-commit", "--cfg=a.b=1", "--cfg", "c=x"]
    done = subprocess.run(
        [*command, "src/tasks/train_coop/run.py", "--cfg", "d"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["{'a.b': 1, 'c': 'x'} ['--cfg', 'd']", "{} []"], done.stderr
