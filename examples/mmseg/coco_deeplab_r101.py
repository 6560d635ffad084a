"""Stage two on COCO 2014: DeepLab on ResNet-101, trained on pseudo masks of 80 classes.

    semples pseudo-masks CAMS data/COCO2014/PseudoMasks --threshold 0.43

WeakTr's CAMs of 90 classes: masks=90 in the training set, too.
"""

_base_ = ["./base/coco.py", "./base/deeplab_r101.py", "./base/runtime.py"]

model = {"decode_head": {"num_classes": 81}, "auxiliary_head": {"num_classes": 81}}
