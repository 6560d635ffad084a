"""`semples doctor`: packages, devices, whether CLIP loads or can be downloaded, and what a host's run needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.cli.arguments import add_command
from semples_plugin.utils.extras import how_to_install

if TYPE_CHECKING:
    from semples_plugin.clip.frozen import FrozenClip

_NEEDED = (
    "semples-plugin",
    "torch",
    "torchvision",
    "open_clip_torch",
    "numpy",
    "opencv-python",
    "matplotlib",
    "pillow",
    "safetensors",
    "tqdm",
)
_OPTIONAL = {
    "transformers": "tokenizers of SigLIP and other models of the Hugging Face hub: pip install transformers",
    "mmengine": f"mmsegmentation configs: {how_to_install('mmseg')}",
    "pydensecrf2": f"the CRF of semples pseudo-masks: {how_to_install('crf')}",
}
_OTHER_NAMES = {"opencv-python": "opencv-python-headless", "mmengine": "onedl-mmengine"}


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "doctor",
        "list installed packages, devices and CLIP's weights, and what a host's run needs",
        "Prints the versions, devices and CLIP that training will use, and what to do about what is missing; cached "
        "weights are loaded and tried. With a host, the same for its packages, checkout, checkpoints, image labels, "
        "lists, images and masks. The exit status is 1 where training could not begin.",
    )
    parser.add_argument("host", nargs="?", choices=tuple(COMMITS), help="code base that will be run, if any")
    parser.add_argument("path", nargs="?", metavar="PATH", help="its git checkout (default: the working folder)")
    parser.add_argument(
        "--data", choices=("voc", "coco"), help="the data to train on (default: voc, and coco is optional)"
    )
    parser.add_argument(
        "--voc", metavar="FOLDER", help="where VOC 2012 is: CLIMS's --voc12_root; the others want a link to it"
    )
    parser.add_argument(
        "--coco", metavar="FOLDER", help="where COCO 2014 is: CLIMS's --mscoco_root; the others want a link to it"
    )
    parser.add_argument("--clip", default="ViT-B-32-quickgelu", help="open_clip name, local-dir:PATH, or demo")
    parser.add_argument("--pretrained", default="openai", help="its tag, or the path of a weights file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples doctor`."""
    if options.host:
        from semples_plugin.compat.needs.check import check_host, print_findings

        findings = check_host(options.host, options.path or ".", options.data, options.voc, options.coco)
        return print_report(options.clip, options.pretrained) | print_findings(findings)
    if options.data or options.voc or options.coco:
        raise ValueError("--data, --voc and --coco belong to a host: semples doctor HOST PATH")
    return print_report(options.clip, options.pretrained)


def print_report(clip: str, pretrained: str) -> int:
    """Prints the report; returns 0 where training can begin, 1 where something that it needs is missing."""
    import platform

    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    missing = [name for name in _NEEDED if _print_version(name, "required: pip install " + name) is None]
    for name, use in _OPTIONAL.items():
        _print_version(name, f"optional, for {use}")
    _print_devices()
    clip_loads = _print_clip(clip, pretrained)
    return int(bool(missing) or not clip_loads)


def _print_clip(clip: str, pretrained: str) -> bool:
    """Prints what CLIP is, once it is loaded, or where its weights come from; returns whether training can begin."""
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.clip.loading import DEMO, LOCAL_DIR, check_download, check_source, find_cached, where_to_get

    try:
        check_source(clip, pretrained)
        is_local = clip == DEMO or clip.startswith(LOCAL_DIR) or Path(pretrained).is_file()
        if not is_local:
            cached = find_cached(clip, pretrained)
            if cached is None:
                check_download(clip, pretrained)
                print("weights   not cached; the first load downloads them")
                print(f"          where there is no network, {where_to_get(clip, pretrained)}")
                return True
            print(f"weights   {cached}")
        print(f"CLIP      {_describe(FrozenClip.load(clip, pretrained))}")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"CLIP      {error}")
        return False
    return True


def _describe(clip: FrozenClip) -> str:
    """Size, precision, text width and activation of a CLIP that encodes an image, a text and a prompt."""
    import torch

    images, vectors = torch.zeros(1, 3, *clip.image_size), torch.zeros(1, 1, clip.text_width)
    features = clip.encode_images(images), clip.encode_texts(["a photo of a cat."]), clip.encode_prompts(vectors)
    if not torch.cat(features).isfinite().all():
        raise ValueError(f"{clip.name}: features that are no numbers; its weights are damaged")
    kinds = {type(module).__name__.removeprefix("Lean") for module in clip.model.modules()}
    return ", ".join([repr(clip), f"text width {clip.text_width}", *sorted(kinds & {"GELU", "QuickGELU"})])


def _print_version(name: str, use: str) -> str | None:
    """Prints and returns the version of a package; where it is missing prints what it is for, and returns None."""
    from importlib.metadata import PackageNotFoundError, version

    for distribution in filter(None, (name, _OTHER_NAMES.get(name))):
        try:
            installed = version(distribution)
        except PackageNotFoundError:
            continue
        print(f"installed {distribution} {installed}")
        return installed
    print(f"missing   {name} ({use})")
    return None


def _print_devices() -> None:
    import torch

    print(f"device    cpu, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"device    cuda:{index}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("device    no CUDA device is visible to torch")
