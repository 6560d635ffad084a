"""What a run of CLIMS needs; the comments name the line that reads it."""

from __future__ import annotations

from semples_plugin.compat.needs import items
from semples_plugin.compat.needs.items import Checkpoint, DataSet, Folder, ImageList, Labels, Needs, Package

_VOC_LABELS = Labels(
    "voc12/cls_labels.npy",  # voc12/dataloader.py:26, whose keys are integers since :51
    20,
    "integer",
    columns_in=("step/train_clims.py", r"n_classes=(\d+)"),  # :62
    how="it comes with CLIMS: git checkout voc12/cls_labels.npy, or, for your own data, semples labels --keys integer",
)
_COCO_LABELS = Labels(
    "mscoco/train_labels.npy",  # step_coco/train_clims.py:63, mscoco/dataloader.py:82
    80,
    "row",
    made=True,  # mscoco/dataloader.py:92
    how="CLIMS makes it of the annotations where it is missing",
)

_VOC_JUDGED = ("{voc}/JPEGImages/{name}.jpg", "{voc}/SegmentationClassAug/{name}.png")

NEEDS = Needs(
    checkpoints=(
        Checkpoint(
            "{clip}/ViT-B-32.pt",  # step/train_clims.py:97, and clip.load's own download
            "CLIP of CLIMS's own losses",
            f"{items.OPENAI}/{items.VIT_B_32}/ViT-B-32.pt",
            fetched=True,
            digest=items.VIT_B_32,
        ),
    ),
    data={
        "voc": DataSet(
            "VOC 2012",
            root="",
            option="run_sample.py --voc12_root",
            folders=(
                Folder("{voc}/JPEGImages", 17125, items.VOC_IMAGES),  # voc12/dataloader.py:58
                # step/eval_cam.py:17, --eval_cam_pass alone
                Folder("{voc}/SegmentationClass", 2913, items.VOC_IMAGES, optional=True),
            ),
            lists=(
                ImageList(  # --train_list, step/train_clims.py:66
                    "voc12/train_aug.txt", "training", "{voc}/JPEGImages/{name}.jpg", labels=_VOC_LABELS
                ),
                # --val_list, step/train_clims.py:73; its images are never read, for :189 is a comment
                ImageList("voc12/val.txt", "validation", labels=_VOC_LABELS),
            ),
            judged=(
                ImageList("voc12/train.txt", "mIoU of CAMs and pseudo masks", *_VOC_JUDGED),
                ImageList("voc12/val.txt", "the segmentation network's mIoU", *_VOC_JUDGED),
            ),
            checkpoints=(
                Checkpoint(
                    "cam-baseline-voc12/res50_cam.pth",  # step/train_clims.py:65
                    "the CAM network that CLIMS starts from",
                    "https://drive.google.com/drive/folders/1CCYduc2L_V_s7MtXEuA_LzIscdlFFJag (CLIMS's README), or "
                    "run_sample.py --train_cam_pass True --work_space cam-baseline-voc12",
                ),
            ),
        ),
        "coco": DataSet(
            "COCO 2014",
            root="",
            option="run_sample_coco.py --mscoco_root",
            folders=(
                Folder("{coco}/train2014", 82783, items.COCO_IMAGES),  # step_coco/train_clims.py:61
                Folder(  # step_coco/eval_cam.py:20, --eval_cam_pass alone
                    "{coco}/mask/train2014",
                    82783,
                    "https://drive.google.com/drive/folders/18l3aAs64Ld_uvAJm57O3EiHuhEXkdwUy",  # README.md
                    optional=True,
                ),
            ),
            lists=(
                ImageList(  # step_coco/train_clims.py:62
                    "{coco}/annotations/instances_train2014.json",
                    "training",
                    "{coco}/train2014/{first}",
                    labels=_COCO_LABELS,
                ),
            ),
            packages=(Package("pycocotools", "mscoco/dataloader.py", "pip install pycocotools"),),  # :67
            checkpoints=(
                Checkpoint(
                    "cam-baseline-coco/res50_cam.pth",  # step_coco/train_clims.py:58
                    "the CAM network that CLIMS starts from",
                    "https://drive.google.com/drive/folders/18l3aAs64Ld_uvAJm57O3EiHuhEXkdwUy",  # README.md
                ),
            ),
        ),
    },
)
