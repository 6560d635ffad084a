"""Stage two on VOC 2012: DeepLab on ResNet-101, trained on pseudo masks.

    semples pseudo-masks CAMS data/VOC2012/PseudoMasks --threshold 0.43 --crf 10 --images data/VOC2012/JPEGImages

From COCO-pretrained weights: --with coco_weights.
"""

_base_ = ["./base/voc.py", "./base/deeplab_r101.py", "./base/runtime.py"]
