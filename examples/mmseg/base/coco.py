"""COCO 2014, 80 classes, with pseudo masks in the folder `PseudoMasks`; ground truth of classes 1 to 80 in `masks`.

Masks with WeakTr's 90 ids: masks=90 in the data sets below, where the folder holds such.
"""

_base_ = ["./voc.py"]

root = "data/COCO2014"
dataset = {"type": "WsssCoco", "data_root": root}
train_dataloader = {
    "dataset": {**dataset, "split": "train", "ann_file": "lists/train.txt",
                "data_prefix": {"img_path": "train2014", "seg_map_path": "PseudoMasks"}},
}  # fmt: skip
val_dataloader = {
    "dataset": {**dataset, "split": "val", "masks": 80, "ann_file": "lists/val.txt",
                "data_prefix": {"img_path": "val2014", "seg_map_path": "masks"}},
}  # fmt: skip
test_dataloader = val_dataloader
