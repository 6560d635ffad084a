"""SemPLeS on PASCAL VOC 2012 from image labels: CAMs of a ResNet-50, 8 epochs alone, 20 of (a), (b), 20 of (c).

Expects VOC2012/ with JPEGImages, SegmentationClassAug, ImageSets/Segmentation/train_aug.txt and train.txt, and
cls_labels.npy (CLIMS's, WeakTr's, or made by `semples labels`). Lengths and rates are a start, not the paper's, which
trains WeakTr.
"""

custom_imports = {"imports": ["semples_plugin.adapters.mmseg"]}
default_scope = "mmseg"

root, lists = "data/VOC2012", "ImageSets/Segmentation"
num_classes, preset = 20, "voc"
dataset = {"type": "WsssVoc", "data_root": root,
           "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClassAug"}}  # fmt: skip
labels = {"type": "LoadImageLabels", "source": f"{root}/cls_labels.npy", "num_classes": num_classes}
crop = (448, 448)
statistics = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

model = {
    "type": "CamSegmentor",
    "data_preprocessor": {"type": "SegDataPreProcessor", **statistics, "bgr_to_rgb": True, "size": crop},
    "backbone": {"type": "ResNet", "depth": 50, "num_stages": 4, "out_indices": (3,), "strides": (1, 2, 2, 1),
                 "dilations": (1, 1, 1, 1), "norm_eval": True, "style": "pytorch",
                 "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"}},
    "in_channels": 2048,
    "num_classes": num_classes,
    "regularizer": {"preset": preset, "clip": {"name": "ViT-B-32-quickgelu", "pretrained": "openai"}},
}  # fmt: skip
custom_hooks = [{"type": "SemPLeSStages", "baseline": 8, "match": 20, "draw_interval": 500}]

train_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "RandomResize", "scale": (448, 448), "ratio_range": (0.8, 1.6), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": crop},
    {"type": "RandomFlip", "prob": 0.5},
    labels,
    {"type": "PackCamInputs"},
]
val_pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, labels, {"type": "PackCamInputs"}]
test_pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackCamInputs"}]  # of mmseg.apis, without labels
train_dataloader = {
    "batch_size": 16, "num_workers": 4, "persistent_workers": True,
    "sampler": {"type": "DefaultSampler", "shuffle": True},
    "dataset": {**dataset, "ann_file": f"{lists}/train_aug.txt", "pipeline": train_pipeline},
}  # fmt: skip
val_dataloader = {
    "batch_size": 1, "num_workers": 4, "sampler": {"type": "DefaultSampler", "shuffle": False},
    "dataset": {**dataset, "ann_file": f"{lists}/train.txt", "pipeline": val_pipeline},
}  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = test_evaluator = {"type": "CamMetric"}

train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 48, "val_interval": 8}
val_cfg, test_cfg = {"type": "ValLoop"}, {"type": "TestLoop"}
optim_wrapper = {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 5e-5, "weight_decay": 0.01}}
default_hooks = {
    "timer": {"type": "IterTimerHook"},
    "logger": {"type": "LoggerHook", "interval": 50},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
}
visualizer = {"type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"}
env_cfg = {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}}
randomness = {"seed": 0}
log_level = "INFO"
