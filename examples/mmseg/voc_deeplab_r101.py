"""Stage two on VOC 2012: DeepLab on ResNet-101, trained on pseudo masks (the paper's Table 2 has DeepLab v2).

    semples pseudo-masks CAMS data/VOC2012/PseudoMasks --threshold 0.43 --crf 10 --images data/VOC2012/JPEGImages

mmsegmentation's atrous pyramid is DeepLab v3's; with the rates of v2 and an output stride of 8 it comes close.
"""

custom_imports = {"imports": ["semples_plugin.adapters.mmseg"]}
default_scope = "mmseg"

root, lists, num_classes = "data/VOC2012", "ImageSets/Segmentation", 21
crop = (512, 512)
norm = {"type": "SyncBN", "requires_grad": True}
head = {"num_classes": num_classes, "norm_cfg": norm, "align_corners": False}

model = {
    "type": "EncoderDecoder",
    "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53],
                          "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True, "size": crop},
    "backbone": {"type": "ResNetV1c", "depth": 101, "num_stages": 4, "out_indices": (0, 1, 2, 3), "style": "pytorch",
                 "dilations": (1, 1, 2, 4), "strides": (1, 2, 1, 1), "norm_cfg": norm, "contract_dilation": True,
                 "init_cfg": {"type": "Pretrained", "checkpoint": "open-mmlab://resnet101_v1c"}},
    "decode_head": {"type": "ASPPHead", "in_channels": 2048, "in_index": 3, "channels": 512, **head,
                    "dilations": (6, 12, 18, 24), "dropout_ratio": 0.1,
                    "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0}},
    "auxiliary_head": {"type": "FCNHead", "in_channels": 1024, "in_index": 2, "channels": 256, "num_convs": 1,
                       "concat_input": False, **head, "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4}},
    "test_cfg": {"mode": "whole"},
}  # fmt: skip
dataset = {"type": "WsssVoc", "data_root": root}
train_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "RandomResize", "scale": (2048, 512), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    {"type": "PackSegInputs"},
]
test_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": (2048, 512), "keep_ratio": True},
    {"type": "LoadAnnotations"},
    {"type": "PackSegInputs"},
]
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
val_evaluator = test_evaluator = {"type": "IoUMetric", "iou_metrics": ["mIoU"]}

train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 40000, "val_interval": 4000}
val_cfg, test_cfg = {"type": "ValLoop"}, {"type": "TestLoop"}
optim_wrapper = {"type": "OptimWrapper",
                 "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}}  # fmt: skip
param_scheduler = [{"type": "PolyLR", "eta_min": 1e-4, "power": 0.9, "begin": 0, "end": 40000, "by_epoch": False}]
default_hooks = {
    "timer": {"type": "IterTimerHook"},
    "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 4000, "max_keep_ckpts": 2},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
}
visualizer = {"type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"}
env_cfg = {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}}
log_processor = {"by_epoch": False}
log_level = "INFO"
