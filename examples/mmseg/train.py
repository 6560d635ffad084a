"""Trains and tests a config with mmengine's runner; mmsegmentation's own `tools/train.py` trains the same.

python examples/mmseg/train.py CONFIG
python examples/mmseg/train.py CONFIG --test CHECKPOINT --tta --crf 10
torchrun --nproc-per-node 4 examples/mmseg/train.py CONFIG --launcher pytorch        # on as many GPUs

Where the package is installed, python -m semples_plugin.mmseg_configs.train does the same. CONFIG is a file, or the
name of one beside this script, such as voc_deeplab_r101.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from semples_plugin.adapters.mmseg_options import Options, set_options
from semples_plugin.adapters.mmseg_testing import (
    Test,
    check_data,
    check_pseudo_masks,
    check_whole,
    pack_submission,
    use_data,
    write_metrics,
)
from semples_plugin.data.cam_files import read_image_list
from semples_plugin.utils.checkpoint_files import check_saved
from semples_plugin.utils.text import reason


def main() -> None:
    options = parse()
    test = test_of(options)
    try:
        config = config_of(options)
        if options.test:
            config.load_from = checkpoint_of(options.test, Path(config.work_dir))
            test.apply(config)
        elif options.resume and config.get("load_from") is None:
            config.load_from = last_checkpoint(Path(config.work_dir))
        check_data(config, bool(options.test))
        if not options.test:
            check_pseudo_masks(config)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    runner = Runner.from_cfg(config)
    if not options.test:
        runner.train()
    if "test_dataloader" not in config:
        return
    metrics, data = runner.test(), config.test_dataloader.dataset
    if not is_main_process():
        return
    if metrics:
        settings = {
            "config": " ".join([options.config, *options.fragments]),
            "checkpoint": config.load_from if options.test else "the last one",
            "images": data.get("ann_file", ""),
            "seed": runner.seed,
        }
        write_metrics(Path(config.work_dir) / f"{test.name}.json", metrics, **settings)
    if options.submit:
        names = read_image_list(Path(data.data_root) / data.ann_file)
        print(f"for VOC's evaluation server: {pack_submission(options.submit, names)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a file, or the name of one of ours")
    changes = "configs that change what they name: miniature, coco_weights, or a file"
    parser.add_argument("--with", dest="fragments", nargs="+", default=[], metavar="FRAGMENT", help=changes)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the data set's, instead of the config's")
    parser.add_argument("--pseudo-masks", type=Path, metavar="FOLDER", help="to train on, instead of the config's")
    parser.add_argument("--work-dir", help="default: work_dirs/NAME OF THE CONFIG")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work folder")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument("--cfg-options", nargs="+", action=Options, default={}, help="KEY=VALUE in the config")
    test = parser.add_argument_group("testing")
    test.add_argument("--test", metavar="CHECKPOINT", help="test these weights, or the `last` ones, and train nothing")
    test.add_argument("--tta", action="store_true", help="at several scales, and flipped")
    test.add_argument("--crf", type=int, default=0, metavar="N", help="N iterations of a dense CRF (10 is usual)")
    test.add_argument("--masks", type=Path, metavar="FOLDER", help="for the predicted masks, palette PNGs")
    test.add_argument("--list", type=Path, metavar="FILE", help="of images, instead of the config's")
    server = "for masks of VOC's test list, which has no ground truth, as its evaluation server takes them"
    test.add_argument("--submit", type=Path, metavar="FOLDER", help=server)
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> Config:
    file = config_file(options.config)
    config = read_config(file)
    for fragment in options.fragments:
        changes = read_config(config_file(fragment)).to_dict()
        try:
            config.merge_from_dict(changes)
        except (KeyError, TypeError) as error:  # of a position in a list, or of an entry of another kind
            raise ValueError(f"--with {fragment} doesn't fit {options.config}: {error}") from error
    check_whole(config, options.config)
    use_data(config, options.data, options.pseudo_masks)
    set_options(config, options.cfg_options)
    config.work_dir = options.work_dir or f"work_dirs/{file.stem}"
    config.launcher, config.resume = options.launcher, options.resume
    return config


def read_config(file: Path) -> Config:
    try:
        return Config.fromfile(file)
    except ImportError:
        raise
    except Exception as error:  # a config is code, which raises anything
        raise ValueError(f"{file} can't be read as a config ({type(error).__name__}: {reason(error)})") from error


def config_file(name: str) -> Path:
    """A path, or the name of a config that lies beside this script."""
    own = Path(__file__).parent / f"{name}.py"
    if Path(name).is_file():
        return Path(name)
    if not own.is_file():
        ours = sorted(path.stem for path in own.parent.glob("*.py") if path.name != Path(__file__).name)
        raise FileNotFoundError(f"there is no config {name}: expected a file, or one of {', '.join(ours)}")
    return own


def test_of(options: argparse.Namespace) -> Test:
    test = Test(options.tta, options.crf, options.masks, options.submit, options.list)
    if test != Test() and not options.test:
        sys.exit("--tta, --crf, --masks, --list and --submit say how to test a network: give --test CHECKPOINT, too")
    return test


def checkpoint_of(name: str, work_dir: Path) -> str:
    """The path of a checkpoint, or of the last one in the work folder."""
    found = last_checkpoint(work_dir) if name == "last" else name
    if found is None or ("://" not in found and not Path(found).is_file()):
        raise FileNotFoundError(f"there is no checkpoint {name if found else f'in {work_dir}'}")
    if "://" not in found:
        check_saved(found)
    return found


def last_checkpoint(work_dir: Path) -> str | None:
    """The path that mmengine noted in the work folder; where that was moved or copied since, the same file in it."""
    noted = find_latest_checkpoint(str(work_dir))
    here = work_dir / Path(noted or "").name
    return str(here) if here.is_file() else noted


if __name__ == "__main__":
    main()
