"""Trains and tests a config with mmengine's runner; mmsegmentation's own `tools/train.py` does the same.

python examples/mmseg/train.py CONFIG
python examples/mmseg/train.py CONFIG --test CHECKPOINT
torchrun --nproc-per-node 4 examples/mmseg/train.py CONFIG --launcher pytorch        # on as many GPUs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", help="default: work_dirs/NAME OF THE CONFIG")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work folder")
    parser.add_argument("--test", metavar="CHECKPOINT", help="test these weights, and train nothing")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={}, help="KEY=VALUE in the config")
    options = parser.parse_args()
    config = Config.fromfile(options.config)
    config.merge_from_dict(options.cfg_options)
    config.work_dir = options.work_dir or f"work_dirs/{options.config.stem}"
    config.launcher, config.resume = options.launcher, options.resume
    if options.test:
        config.load_from = options.test
    runner = Runner.from_cfg(config)
    if not options.test:
        runner.train()
    if "test_dataloader" in config:
        runner.test()


if __name__ == "__main__":
    main()
