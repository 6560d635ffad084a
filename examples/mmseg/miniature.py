"""For --with: a DeepLab config at a size that a CPU trains in a minute. Its mIoU says nothing but that it ran.

A number stands for a position in a list, as in --cfg-options.
"""

side = 96
crop, tested = (side, side), (4 * side, side)
small = {"channels": 32, "norm_cfg": {"type": "BN", "requires_grad": True}}

model = {
    "data_preprocessor": {"size": crop},
    "backbone": {"depth": 18, "norm_cfg": small["norm_cfg"], "init_cfg": None},
    "decode_head": {**small, "in_channels": 512},
    "auxiliary_head": {**small, "in_channels": 256},
}
train_dataloader = {
    "num_workers": 0, "persistent_workers": False,
    "dataset": {"pipeline": {"2": {"scale": tested}, "3": {"crop_size": crop}}},
}  # fmt: skip
val_dataloader = {"num_workers": 0, "dataset": {"pipeline": {"1": {"scale": tested}}}}
test_dataloader = val_dataloader
tta_pipeline = {
    "1": {"transforms": {"0": {str(i): {"scale": (4 * size, size)} for i, size in enumerate(range(48, 168, 20))}}}
}
train_cfg = {"max_iters": 20, "val_interval": 20}
param_scheduler = {"0": {"end": 20}}
default_hooks = {"checkpoint": {"interval": 10}, "logger": {"interval": 5}}
