"""VOC 2012 and COCO 2014 as they are published, before a host's layout is made of them."""

from __future__ import annotations

from semples_plugin.compat.needs import items
from semples_plugin.compat.needs.items import DataSet, Folder, ImageList

_VOC = ("{voc}/JPEGImages/{name}.jpg", "{voc}/SegmentationClassAug/{name}.png")

PUBLISHED = {
    "voc": DataSet(
        "VOC 2012",
        root="",
        option="",
        folders=(
            Folder("{voc}/JPEGImages", 17125, items.VOC_IMAGES),
            Folder("{voc}/SegmentationClassAug", 12031, items.VOC_MASKS),
        ),
        lists=(
            ImageList("{voc}/ImageSets/Segmentation/train.txt", "training", *_VOC),
            ImageList("{voc}/ImageSets/Segmentation/val.txt", "validation", *_VOC),
        ),
    ),
    "coco": DataSet(
        "COCO 2014",
        root="",
        option="",
        folders=(
            Folder("{coco}/train2014", 82783, items.COCO_IMAGES),
            Folder("{coco}/val2014", 40504, "val2014.zip of https://cocodataset.org/#download"),
        ),
        lists=(
            ImageList("{coco}/annotations/instances_train2014.json", "training", "{coco}/train2014/{first}"),
            ImageList("{coco}/annotations/instances_val2014.json", "validation", "{coco}/val2014/{first}"),
        ),
    ),
}
