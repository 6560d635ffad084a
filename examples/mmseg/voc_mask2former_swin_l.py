"""Stage two on VOC 2012: Mask2Former on Swin-L, trained on pseudo masks; see base/mask2former_swin_l.py."""

_base_ = ["./base/voc.py", "./base/mask2former_swin_l.py", "./base/runtime.py"]

val_evaluator = test_evaluator = {"scores": "probabilities"}
