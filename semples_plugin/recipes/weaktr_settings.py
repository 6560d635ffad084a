"""What the placeholders of WeakTr's recipes stand for: published numbers, those of a miniature, and what they are."""

from __future__ import annotations

from semples_plugin.recipes.common import HELP, ON_A_CPU, PATHS, SMALL, VALUES

WEAKTR_PATHS = {"runs": PATHS["runs"], "weaktr": "https://github.com/hustvl/WeakTr.git"}
WEAKTR_HELP = {
    **HELP,
    "weaktr": "a clone of WeakTr, or its address",
    "start": "WeakTr's published checkpoint of this data set, or one of your own training's",
    "threshold": "background score [%] of the pseudo masks: WeakTr's for its own CAMs; judge-refine-cams says which is "
    "best for SemPLeS's",
    "epochs": "of stages (a) and (c)",
    "batch": "images of a step of (a) and (c)",
    "prompt_options": "further options of stage (b)",
    "lists": "lists and labels of a miniature",
    "segmenter_size": "epochs, batch and sizes of the segmentation network's training",
    "test_size": "size of the images in its test",
    "coco_masks": "masks of COCO's images, ID.png with 0 for background and its category ids",
}
TRAINING = {**VALUES, "epochs": "60", "prompt_options": "", "lists": ""}
SECOND = {"segmenter_size": "--epochs 100 --batch-size 4", "test_size": ""}
MINIATURE = {
    **ON_A_CPU,
    "clip": "--semples-clip demo",
    "epochs": "1",
    "batch": "2",
    "prompt_options": "--semples-prompt-epochs 2 --semples-prompt-length 4",
    "lists": f"--lists {SMALL}/lists --labels {SMALL}/cls_labels.npy",
    "start": "{shared}/baseline/checkpoint.pth",
}
MINIATURE_SECOND = {
    "segmenter_size": "--epochs 2 --batch-size 2 --im-size 256 --crop-size 240 --window-size 240 --window-stride 160",
    "test_size": "--im-size 128",
}
