"""SemPLeS in mmsegmentation on the embedded world: a few minutes on two cores, nothing to download.

    python -m semples_plugin.demo.export demo-world
    python examples/mmseg/train.py examples/mmseg/tiny_demo.py

150 iterations of a classifier, 100 of (a), (b), 100 of (c) from where (a) ended. Without SemPLeS:
--cfg-options model.regularizer=None custom_hooks=[]
"""

custom_imports = {"imports": ["semples_plugin.adapters.mmseg"]}
default_scope = "mmseg"

root = "demo-world"
classes = ("train", "boat", "aeroplane", "sheep", "car", "bird", "camel", "butterfly")
metainfo = {"classes": ("background", *classes)}
statistics = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

model = {
    "type": "CamSegmentor",
    "data_preprocessor": {"type": "SegDataPreProcessor", **statistics, "bgr_to_rgb": True, "size": (64, 64)},
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "num_stages": 2, "strides": (1, 2),
                 "dilations": (1, 1), "out_indices": (1,), "norm_eval": False, "stem_channels": 16},
    "in_channels": 32,
    "num_classes": len(classes),
    "eps": 1e-5,  # of this tiny world's masks
    "regularizer": {"clip": "demo", "class_names": classes,
                    "weights": {"background": 0.4, "text": 0.02, "refine": 0.2}},
}  # fmt: skip
custom_hooks = [
    {"type": "SemPLeSStages", "baseline": 150, "match": 100, "restart": "matched",
     "prompt_length": 16, "prompt_std": None,
     "learning": {"epochs": 20, "lr": 2e-2, "batch_size": 128}, "draw_interval": 50},
]  # fmt: skip

load = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
labels = {"type": "LoadImageLabels", "num_classes": len(classes)}


def data(part: str) -> dict:
    """Scenes of one part, with their image labels."""
    pipeline = [*load, {**labels, "source": f"{root}/{part}/cls_labels.npy"}, {"type": "PackCamInputs"}]
    return {"type": "WsssDataset", "data_root": f"{root}/{part}", "ann_file": "list.txt", "metainfo": metainfo,
            "img_suffix": ".png", "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
            "pipeline": pipeline}  # fmt: skip


test_pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackCamInputs"}]  # of mmseg.apis, without labels
train_dataloader = {"batch_size": 16, "num_workers": 0, "dataset": data("train"),
                    "sampler": {"type": "InfiniteSampler", "shuffle": True}}  # fmt: skip
val_dataloader = {"batch_size": 1, "num_workers": 0, "dataset": data("test"),
                  "sampler": {"type": "DefaultSampler", "shuffle": False}}  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = test_evaluator = {"type": "CamMetric"}

train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 350, "val_interval": 1000}
val_cfg, test_cfg = {"type": "ValLoop"}, {"type": "TestLoop"}
optim_wrapper = {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-3}}
randomness = {"seed": 0}
default_hooks = {
    "timer": {"type": "IterTimerHook"},
    "logger": {"type": "LoggerHook", "interval": 25, "log_metric_by_epoch": False},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 50, "max_keep_ckpts": 2},
    "sampler_seed": {"type": "DistSamplerSeedHook"},
}
visualizer = {"type": "SegLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "visualizer"}
log_processor = {"by_epoch": False}
log_level = "INFO"
