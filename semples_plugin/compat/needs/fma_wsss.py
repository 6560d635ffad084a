"""What a run of FMA-WSSS needs; the comments name the line that reads it."""

from __future__ import annotations

from semples_plugin.compat.needs import items
from semples_plugin.compat.needs.items import Checkpoint, DataSet, Folder, ImageList, Labels, Needs, Package

_PUBLISHED = "https://pan.baidu.com/s/1jLHxyW5Hwv9YBmusazGGxg?pwd=2333"  # README.md
_DATASETS, _PRETRAINS = f"datasets.tar of {_PUBLISHED}", f"pretrains.tar of {_PUBLISHED}"
_VOC_LABELS = Labels(  # src/libs/data/voc_dt.py:40; columns: src/tasks/gen_cls_lb.py:20, background first
    "{voc}/third_party/seg_cls_labels.pkl",
    21,
    "name",
    how=f"of {_DATASETS}, or python src/tasks/gen_cls_lb.py makes it",
)
_COCO_LABELS = Labels(  # src/libs/data/coco_dt.py:162
    "{coco}/third_party/seg_cls_labels.pkl", 81, "name", how=f"of {_DATASETS}"
)
_COCO_IMAGE, _COCO_MASK = "{coco}/images/train2014/{name}.jpg", "{coco}/annotations/train2014/{name}.png"

NEEDS = Needs(
    checkpoints=(
        Checkpoint(
            "pretrains/CLIP/ViT-B-16.pt",  # src/libs/clip/clip.py:37, :124; configs/clip_cam/base.py:89
            "CLIP of FMA-WSSS",
            f"{items.OPENAI}/{items.VIT_B_16}/ViT-B-16.pt",
            fetched=True,
            digest=items.VIT_B_16,
        ),
        Checkpoint(  # configs/clip_cam/_patches/ref/coop_ctx-·125初/base.py:20, of configs/VOC/seg; VOC/cls has none
            "pretrains/rand_ref",
            "first context of the segmentation task",
            _PRETRAINS,
            optional=True,
        ),
        Checkpoint(  # configs/sam_auto_seg/base.py:32
            "pretrains/SAM/sam_vit_h_4b8939.pth",
            "SAM, for seeds",
            "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
            optional=True,
        ),
    ),
    packages=(
        Package(  # src/libs/sam/custom_sam/sam_auto.py:19
            "segment_anything",
            "seeds from SAM",
            "git submodule update --init others/segment-anything; pip install -e others/segment-anything",
            optional=True,
        ),
    ),
    data={
        "voc": DataSet(
            "VOC 2012",
            root="datasets/VOC2012",  # configs/clip_cam/base.py:37
            option="",
            folders=(
                Folder("{voc}/JPEGImages", 17125, items.VOC_IMAGES),
                Folder("{voc}/SegmentationClassAug", 12031, _DATASETS),
            ),
            lists=(
                ImageList(  # VOCAug of alchemy_cat/contrib/voc/voc2012seg.py:143, :162, :172: training opens the masks
                    "{voc}/ImageSets/SegmentationAug/train_aug.txt",
                    "training",
                    "{voc}/{first}",
                    "{voc}/{second}",
                    _VOC_LABELS,
                ),
            ),
            judged=(
                ImageList(
                    "{voc}/ImageSets/SegmentationAug/val.txt",
                    "the segmentation network's mIoU",
                    "{voc}/{first}",
                    "{voc}/{second}",
                ),
            ),
        ),
        "coco": DataSet(
            "COCO 2014",
            root="datasets/coco2014",  # src/libs/data/coco_dt.py:190
            option="",
            folders=(
                Folder("{coco}/images/train2014", 82783, items.COCO_IMAGES),
                Folder("{coco}/annotations/train2014", 82783, _DATASETS),  # src/libs/data/coco_dt.py:224
            ),
            lists=(
                ImageList(  # src/libs/data/coco_dt.py:195
                    "{coco}/imagesLists/train.txt", "training", _COCO_IMAGE, _COCO_MASK, _COCO_LABELS
                ),
                ImageList(  # configs/infer_voc/patch_val_coco.py:16
                    "{coco}/imagesLists/train_1250.txt", "validation", _COCO_IMAGE, _COCO_MASK, _COCO_LABELS
                ),
            ),
            judged=(
                ImageList(
                    "{coco}/imagesLists/val.txt",
                    "the segmentation network's mIoU",
                    "{coco}/images/val2014/{name}.jpg",
                    "{coco}/annotations/val2014/{name}.png",
                ),
            ),
            hint="FMA-WSSS wants images that are called by the numbers of its lists, without COCO_train2014_",
        ),
    },
)
