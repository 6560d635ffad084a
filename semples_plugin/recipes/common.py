"""Steps that recipes share: the host's checkout, its patch, and the data."""

from __future__ import annotations

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.recipes.recipe import Step

PATHS = {"runs": "runs", "voc": "VOC2012", "coco": "COCO2014"}
VALUES = {"device": "", "workers": "8", "clip": ""}
HELP = {
    "runs": "folder into which everything is written",
    "voc": "PASCAL VOC 2012: JPEGImages, SegmentationClass, SegmentationClassAug, ImageSets",
    "coco": "MS COCO 2014: images of train2014 and val2014, annotations",
    "device": "options of `semples run`, such as --device=cpu",
    "workers": "processes that load images",
    "clip": "options that say where CLIP's weights are, such as --semples-pretrained /weights/ViT-B-32.pt",
}


def checkout(host: str) -> tuple[Step, ...]:
    """A clone of the host at the pinned commit, of this recipe alone, with SemPLeS's patch in it."""
    return (
        Step(
            "clone",
            "the host's code, in a clone of this recipe's own",
            f"git clone --no-checkout {{{host.replace('-', '_')}}} {{checkout}}",
            folder="{shared}",
            makes=("{checkout}/.git",),
            once=True,
        ),
        Step(
            "commit",
            "the commit that patch and corrections fit",
            f"git checkout --detach {COMMITS[host]}",
            needs=("{checkout}/.git",),
            makes=("{checkout}/README.md",),
            once=True,
        ),
        Step(
            "patch",
            "SemPLeS's options into the host",
            f"semples patch {host} .",
            needs=("{checkout}/README.md",),
            once=True,
        ),
    )
