"""PASCAL VOC 2012 with pseudo masks, in the folder `PseudoMasks` that `semples pseudo-masks` writes."""

root, lists = "data/VOC2012", "ImageSets/Segmentation"
crop, tested = (512, 512), (2048, 512)  # images are tested at 512 pixels on the shorter side
scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of test-time augmentation, times that; mmsegmentation's

dataset = {"type": "WsssVoc", "data_root": root}
train_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "RandomResize", "scale": tested, "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    {"type": "PackSegInputs"},
]
test_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": tested, "keep_ratio": True},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]
tta_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "TestTimeAug", "transforms": [
        [{"type": "Resize", "scale": tuple(round(scale * side) for side in tested), "keep_ratio": True}
         for scale in scales],
        [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0, "direction": "horizontal"}],
        [{"type": "LoadAnnotations"}],
        [{"type": "PackSegInputs"}]]},
]  # fmt: skip
train_dataloader = {
    "batch_size": 4, "num_workers": 4, "persistent_workers": True,
    "sampler": {"type": "InfiniteSampler", "shuffle": True},
    "dataset": {**dataset, "ann_file": f"{lists}/train_aug.txt", "pipeline": train_pipeline,
                "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "PseudoMasks"}},
}  # fmt: skip
val_dataloader = {
    "batch_size": 1, "num_workers": 4, "sampler": {"type": "DefaultSampler", "shuffle": False},
    "dataset": {**dataset, "ann_file": f"{lists}/val.txt", "pipeline": test_pipeline,
                "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"}},
}  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = {"type": "SegmentationMetric"}
test_evaluator = {"type": "SegmentationMetric"}
