"""Class names in label order, without background, and other spellings of them; pure Python, imported in no time."""

from __future__ import annotations

from types import MappingProxyType

VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
# COCO's category ids run from 1 to 90; these ten were never annotated, and the release's label columns keep them.
_COCO_UNUSED = {
    12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate",
    66: "mirror", 68: "window", 69: "desk", 71: "door", 83: "blender",
}  # fmt: skip
_used = iter(COCO)
RELEASE_COCO = tuple(_COCO_UNUSED.get(identifier) or next(_used) for identifier in range(1, 91))
RELEASE_VOC = tuple("player" if name == "person" else name for name in VOC)

VOC_ALIASES = MappingProxyType(
    {
        "airplane": "aeroplane", "diningtable": "dining table", "motorcycle": "motorbike", "player": "person",
        "pottedplant": "potted plant", "couch": "sofa", "tvmonitor": "tv monitor", "tv/monitor": "tv monitor",
        "tv": "tv monitor",
    }
)  # fmt: skip
COCO_ALIASES = MappingProxyType(
    {
        "aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv", "tv monitor": "tv",
        "pottedplant": "potted plant", "diningtable": "dining table", "hair dryer": "hair drier",
        "hairdrier": "hair drier", "television": "tv",
    }
)  # fmt: skip
RELEASE_VOC_ALIASES = MappingProxyType(
    {**{other: name for other, name in VOC_ALIASES.items() if other != "player"}, "person": "player"}
)
CLASS_NAMES = MappingProxyType({"voc": VOC, "coco": COCO, "release-voc": RELEASE_VOC, "release-coco": RELEASE_COCO})
"""Names of the presets to their class names."""
