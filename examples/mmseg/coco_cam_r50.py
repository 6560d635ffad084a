"""SemPLeS on COCO 2014 from image labels, 80 classes: the VOC config with COCO's data.

Expects COCO2014/ with train2014 and val2014, masks of classes 1 to 80 under masks/, lists of twelve digits a line, and
the labels that `semples labels instances_train2014.json` writes. Masks with WeakTr's 90 ids: masks=90 below.
"""

_base_ = ["./voc_cam_r50.py"]

root = "data/COCO2014"
num_classes = 80
labels = {"type": "LoadImageLabels", "num_classes": num_classes}
train_labels = {**labels, "source": f"{root}/cls_labels_train.npy"}
val_labels = {**labels, "source": f"{root}/cls_labels_val.npy"}
dataset = {"type": "WsssCoco", "masks": 80, "data_root": root, "_delete_": True}

model = {"num_classes": num_classes, "regularizer": {"preset": "coco", "max_pairs": 64}}
custom_hooks = [{"type": "SemPLeSStages", "baseline": 4, "match": 6, "draw_interval": 2000}]
train_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "RandomResize", "scale": (448, 448), "ratio_range": (0.8, 1.6), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (448, 448)},
    {"type": "RandomFlip", "prob": 0.5},
    train_labels,
    {"type": "PackCamInputs"},
]
val_pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, val_labels, {"type": "PackCamInputs"}]
train_dataloader = {
    "dataset": {**dataset, "split": "train", "ann_file": "lists/train.txt", "pipeline": train_pipeline,
                "data_prefix": {"img_path": "train2014", "seg_map_path": "masks"}},
}  # fmt: skip
val_dataloader = {
    "dataset": {**dataset, "split": "val", "ann_file": "lists/val.txt", "pipeline": val_pipeline,
                "data_prefix": {"img_path": "val2014", "seg_map_path": "masks"}},
}  # fmt: skip
test_dataloader = val_dataloader
train_cfg = {"max_epochs": 16, "val_interval": 4}
