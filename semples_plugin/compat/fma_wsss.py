"""What FMA-WSSS needs on today's Python and packages; each correction names the line that needs it."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

from semples_plugin.compat.common import fill_packaging
from semples_plugin.compat.config_options import apply_options, take_options
from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
CORRECTIONS.stand_in("pkg_resources")(fill_packaging)  # src/libs/clip/clip.py:6


@CORRECTIONS.stand_in("torch._six")  # src/utils/lr_scheduler.py:4
def fill_six(module: Any) -> None:
    """Of it only `inf` is used."""
    module.inf = math.inf


@CORRECTIONS.after("cv2")
def restore_cv2(cv2: Any) -> None:
    """`from cv2 import cv2`."""
    cv2.cv2 = cv2


@CORRECTIONS.in_source("alchemy_cat.contrib.voc.utils")  # its line 29
def count_colours_beyond_a_byte(source: str) -> str:
    """numpy 2 no longer widens a byte that is multiplied by 256."""
    return source.replace("enumerate(VOC_COLOR)", "enumerate(VOC_COLOR.tolist())")


@CORRECTIONS.in_source("alchemy_cat.acplot.plot_conf_matrix")  # its line 54
def choose_by_an_integer(source: str) -> str:
    """numpy 2 no longer lets its booleans index a list; the picture of a confusion matrix was lost."""
    return source.replace("[per_ok == 100]", "[int(per_ok == 100)]")


@CORRECTIONS.after("alchemy_cat")  # src/tasks/train_coop/run.py:48, :294
def pickle_lambdas(_: Any) -> None:
    """The configs that go to child processes hold lambdas, which Python's own pickle refuses."""
    from multiprocessing.reduction import ForkingPickler

    import cloudpickle

    pickle.dump = cloudpickle.dump

    def reduce(_: Any, value: Any) -> Any:
        if isinstance(value, FunctionType) and "<" in value.__qualname__:  # a lambda has no name to be found by
            return cloudpickle.loads, (cloudpickle.dumps(value),)
        return NotImplemented

    ForkingPickler.reducer_override = reduce  # type: ignore[method-assign]  # of what goes to new processes


@CORRECTIONS.after("alchemy_cat.torch_tools.env")
def take_options_of_the_command_line(env: Any) -> None:
    """`semples run fma-wsss --cfg KEY=VALUE`: entries of the script's config, before its lazy ones are computed."""
    if options := take_options():
        parse_config = env.parse_config

        def with_options(*arguments: Any, **keywords: Any) -> Any:
            config = apply_options(parse_config(*arguments, **keywords), options)
            Path(config.rslt_dir).mkdir(parents=True, exist_ok=True)  # which may be another one now
            return config

        env.parse_config = with_options


@CORRECTIONS.after("utils.cache_dir")  # src/utils/cache_dir.py:124, :126
def copy_without_rsync(cache_dir: Any) -> None:
    """CAMs are made in /tmp and copied at the end by rsync; where it isn't installed, all of them were lost."""
    if shutil.which("rsync") is None:
        cache_dir.subprocess = SimpleNamespace(run=_run_or_mirror)


def _run_or_mirror(command: list[str], **options: Any) -> Any:
    if command[0] != "rsync":
        return subprocess.run(command, **options)
    source, target = Path(command[-2]), Path(command[-1])
    whole = target.with_name(f".{target.name}.whole")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(source, whole)
    shutil.rmtree(target, ignore_errors=True)
    whole.rename(target)
    return subprocess.CompletedProcess(command, 0)


@CORRECTIONS.after("alchemy_cat.torch_tools.env")  # src/tasks/train_coop/run.py:50
def end_where_inference_failed(_: Any) -> None:
    """The training's last step makes CAMs in a process of its own, whose failure was not told."""
    run = subprocess.run

    def checked(command: Any, *arguments: Any, **options: Any) -> Any:
        done = run(command, *arguments, **options)
        is_inference = isinstance(command, list) and "src/tasks/infer_cam/run.py" in command[1:2]
        if is_inference and done.returncode and "infer" in Path(command[-1]).parts:
            print(f"semples run: no CAMs: {' '.join(command[1:])} ended with status {done.returncode}", file=sys.stderr)
            sys.exit(1)
        return done

    subprocess.run = checked  # type: ignore[assignment]


@CORRECTIONS.after("utils.eval_cams")  # src/utils/eval_cams.py:211
def judge_new_cams_anew(eval_cams: Any) -> None:
    """Its figures are kept in a file, which was taken for those of CAMs that were made again."""
    search_and_eval = eval_cams.search_and_eval

    def anew(dt: Any, cam_dir: str, seed_cfg: Any, rslt_dir: str, pool_size: int = 0) -> None:
        kept = Path(rslt_dir, "eval/bg_method_metrics.pkl")
        if kept.is_file():
            judged = kept.stat().st_mtime
            if any(entry.stat().st_mtime > judged for entry in os.scandir(cam_dir)):
                kept.unlink()
        search_and_eval(dt, cam_dir, seed_cfg, rslt_dir, pool_size)

    eval_cams.search_and_eval = anew
