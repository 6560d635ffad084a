"""Stage two on COCO 2014: Mask2Former on Swin-L, trained on pseudo masks of 80 classes."""

_base_ = ["./base/coco.py", "./base/mask2former_swin_l.py", "./base/runtime.py"]

model = {"decode_head": {"num_classes": 81, "loss_cls": {"class_weight": [1.0] * 81 + [0.1]}}}
val_evaluator = test_evaluator = {"scores": "probabilities"}
