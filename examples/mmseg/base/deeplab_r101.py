"""DeepLab on ResNet-101, as the paper's Table 2 has it for CLIMS and others, for 21 classes.

mmsegmentation's atrous pyramid is DeepLab v3's; with the rates of v2 and an output stride of 8 it comes close.
"""

custom_imports = {"imports": ["semples_plugin.adapters.mmseg"]}

norm = {"type": "SyncBN", "requires_grad": True}
head = {"num_classes": 21, "norm_cfg": norm, "align_corners": False}

model = {
    "type": "EncoderDecoder",
    "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53],
                          "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True, "size": (512, 512)},
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
tta_model = {"type": "MergedScores", "scores": "logits"}
optim_wrapper = {"type": "OptimWrapper",
                 "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}}  # fmt: skip
param_scheduler = [{"type": "PolyLR", "eta_min": 1e-4, "power": 0.9, "begin": 0, "end": 40000, "by_epoch": False}]
