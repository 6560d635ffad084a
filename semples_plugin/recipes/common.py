"""Steps that recipes share: the host's checkout, its patch, and the data."""

from __future__ import annotations

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.recipes.recipe import Step

PATHS = {"runs": "runs", "voc": "VOC2012", "coco": "COCO2014"}
VALUES = {"device": "", "workers": "8", "clip": ""}
ON_A_CPU = {"device": "--device=cpu", "workers": "1"}
SMALL = "{shared}/small"
"""Where a miniature's lists and labels are."""
HELP = {
    "runs": "folder into which everything is written",
    "voc": "PASCAL VOC 2012: JPEGImages, SegmentationClass, SegmentationClassAug, ImageSets",
    "coco": "MS COCO 2014: images of train2014 and val2014, annotations",
    "device": "options of `semples run`: --set device=--device=cpu maps CUDA calls to the CPU, for a trial",
    "workers": "processes that load images",
    "clip": "options that say where CLIP's weights are: --set clip='--semples-pretrained /weights/ViT-B-32.pt'",
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


CHECK_DATA = "check-data"


def data_check(host: str, data: str, needs: str, options: str = "") -> Step:
    """The check of `semples doctor` on the data, of a full run; `needs` is made by the step that lays the data out."""
    return Step(
        CHECK_DATA,
        "whether all images, masks and labels are there",
        f"python -m semples_plugin.recipes.check_data {host} {{checkout}} {data} {options}",
        needs=(needs,),
        once=True,
        only="full",
    )


def by_hand(name: str, about: str, path: str, source: str) -> Step:
    """A file that only the user can get, for a full run."""
    return Step(name, about, makes=(path,), source=source, once=True, only="full")


def small_voc(images: int, options: str = "") -> tuple[Step, Step]:
    """A miniature's lists of a few images of VOC, and the labels of whatever images are there."""
    return (
        Step(
            "lists",
            "lists of a few images",
            "python -m semples_plugin.recipes.small_lists {voc}/ImageSets/Segmentation "
            f"{SMALL}/lists --images {images}",
            "{shared}",
            needs=("{voc}/ImageSets/Segmentation/train.txt",),
            makes=(f"{SMALL}/lists/train.txt", f"{SMALL}/lists/val.txt"),
            once=True,
            only="miniature",
        ),
        Step(
            "labels",
            "image labels of whatever images are there",
            f"semples labels {{voc}}/SegmentationClassAug --classes voc --out {SMALL}/cls_labels.npy {options}",
            "{shared}",
            needs=("{voc}/SegmentationClassAug",),
            makes=(f"{SMALL}/cls_labels.npy",),
            once=True,
            only="miniature",
        ),
    )
