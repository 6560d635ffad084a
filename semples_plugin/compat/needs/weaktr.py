"""What a run of WeakTr needs; the comments name the line that reads it."""

from __future__ import annotations

from semples_plugin.compat.needs import items
from semples_plugin.compat.needs.items import Checkpoint, DataSet, Folder, ImageList, Labels, Needs, Package

_DRIVE = "https://drive.google.com/file/d"
_LABELS = "it comes with WeakTr: git checkout {}, or, for data of your own, semples labels"
_VOC_LABELS = Labels(  # datasets.py:104, whose keys are names, with or without .jpg, since :25
    "voc12/cls_labels.npy", 20, "name or file", how=_LABELS.format("voc12/cls_labels.npy")
)
_COCO_LABELS = Labels(
    "coco/cls_labels.npy", 90, "name or file", how=_LABELS.format("coco/cls_labels.npy")
)  # datasets.py:36
_VOC_IMAGE, _VOC_MASK = "{voc}/JPEGImages/{name}.jpg", "{voc}/SegmentationClassAug/{name}.png"  # datasets.py:115, :133
_COCO_IMAGE, _COCO_MASK = "{coco}/images/{name}.jpg", "{coco}/voc_format/class_labels/{name}.png"  # datasets.py:48, :65


def _published(data: str, identifier: str) -> Checkpoint:
    return Checkpoint(  # README.md, where SemPLeS starts; main.py has no such default
        f"WeakTr_results{data}/WeakTr/checkpoint_best_mIoU.pth",  # docs/Training.md
        "WeakTr's published network, of --reduction 8 --pool-type max, for --semples-start without a training of it",
        f"{_DRIVE}/{identifier}",
        optional=True,
    )


NEEDS = Needs(
    checkpoints=(
        Checkpoint(
            "{hub}/deit_small_patch16_224-cd65a155.pth",  # main.py:130, :303
            "DeiT-S of ImageNet",
            "https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
            fetched=True,
            digest="cd65a155",
        ),
    ),
    packages=(
        Package("pydensecrf", "evaluation.py --out-crf", "pip install pydensecrf2", optional=True),  # tool/imutils.py:5
    ),
    data={
        "voc": DataSet(
            "VOC 2012",
            root="data/voc12/VOCdevkit/VOC2012",  # datasets.py:109, with --data-path data
            option="",
            folders=(
                Folder("{voc}/JPEGImages", 17125, items.VOC_IMAGES),
                Folder("{voc}/SegmentationClassAug", 12031, items.VOC_MASKS),  # docs/prepare_dataset.md
            ),
            lists=(
                ImageList("voc12/train_aug_id.txt", "training", _VOC_IMAGE, labels=_VOC_LABELS),  # datasets.py:105
                ImageList("voc12/val_id.txt", "mAP after each epoch", _VOC_IMAGE, labels=_VOC_LABELS),
                ImageList(  # --img-ms-list of docs/Training.md, main.py:418, :420
                    "voc12/train_id.txt", "mIoU after each epoch", _VOC_IMAGE, _VOC_MASK, _VOC_LABELS
                ),
            ),
            judged=(ImageList("voc12/val_id.txt", "the segmentation network's mIoU", _VOC_IMAGE, _VOC_MASK),),
            checkpoints=(_published("", "1uUHGLIDFm49Gh41Ddc8_T93-bRWnJzeF"),),
        ),
        "coco": DataSet(
            "COCO 2014",
            root="data/coco",  # datasets.py:40
            option="",
            folders=(
                Folder("{coco}/images", 123287, f"{items.COCO_IMAGES}, and val2014.zip"),
                Folder(  # docs/prepare_dataset.md
                    "{coco}/voc_format/class_labels", 123287, f"{_DRIVE}/1JIvfoBwkxp2_DlEeszlXbe6L8qROjPSX"
                ),
            ),
            lists=(
                ImageList("coco/train_id.txt", "training", _COCO_IMAGE, labels=_COCO_LABELS),  # datasets.py:37
                ImageList("coco/val_id.txt", "mAP after each epoch", _COCO_IMAGE, labels=_COCO_LABELS),
                ImageList("coco/train_1250_id.txt", "mIoU after each epoch", _COCO_IMAGE, _COCO_MASK, _COCO_LABELS),
            ),
            judged=(ImageList("coco/val_id.txt", "the segmentation network's mIoU", _COCO_IMAGE, _COCO_MASK),),
            # data/download_and_convert_coco.sh unpacks them otherwise
            hint="WeakTr wants the images of train2014 and val2014 in one folder, called by twelve digits alone, "
            "without COCO_train2014_",
            checkpoints=(_published("_coco", "1Q5UdcGCHFitSJXljZmTA4USKPpyZIVDw"),),
        ),
    },
)
