"""A copy of a YAML config with other values: `python -m semples_plugin.recipes.yaml_config CONFIG OUT KEY=VALUE ...`.

For hosts whose configs take no values on the command line, such as the DeepLabV2 in CLIMS's checkout.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.extras import how_to_install


def write_yaml_config(config: str | Path, out: str | Path, changes: Sequence[str]) -> None:
    """Writes `config` to `out` with changed values.

    Args:
        config: YAML.
        out: file to write.
        changes: `KEY=VALUE` with dots between a key's parts, such as `SOLVER.ITER_MAX=20000`; VALUE is YAML.

    Raises:
        FileNotFoundError: where there is no config.
        ImportError: where `omegaconf` is missing.
        ValueError: for a change that is no `KEY=VALUE`, or of a key that the config lacks.
    """
    try:
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ImportError(f"configs of CLIMS's DeepLabV2 need omegaconf: {how_to_install('clims')}") from error
    content = OmegaConf.load(config)
    for change in changes:
        key, equals, _ = change.partition("=")
        if not equals or OmegaConf.select(content, key, default=_ABSENT) is _ABSENT:
            raise ValueError(f"{change}: expected KEY=VALUE with a key of {config}, such as SOLVER.ITER_MAX=20000")
    merged = OmegaConf.merge(content, OmegaConf.from_dotlist(list(changes)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        OmegaConf.save(merged, temporary)


_ABSENT = object()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.yaml_config", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("out", metavar="OUT", help="file to write")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="such as SOLVER.ITER_MAX=20000")
    options = parser.parse_args()
    write_yaml_config(options.config, options.out, options.changes)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
