"""What the placeholders of FMA-WSSS's recipes stand for: published numbers, those of a miniature, and what they are."""

from __future__ import annotations

from semples_plugin.recipes.common import HELP, ON_A_CPU, VALUES

NUMBERS = {**VALUES, "workers": "12", "host_clip": "ViT-B/16", "batch": "16", "prompt_options": "", "images": "",
            "network_size": "", "precision": ""}  # fmt: skip
MINIATURE = {
    **ON_A_CPU, "clip": "--cfg semples.clip=demo",
    "host_clip": "pretrains/CLIP/16.pt", "batch": "4", "warm": "1", "images": "--images=8",
    "prompt_options": "--cfg semples.learning.epochs=2",
    "cls_steps": "2", "cls_saved": "2", "seg_steps": "2", "seg_saved": "2",
    # Without a GPU nothing scales FMA-WSSS's loss, and in half precision its second context gets gradients of 0.
    "precision": "--cfg amp.enabled=False --cfg model.ini.fp32=True",
    "network": "voc_deeplab_r101", "network_size": "--with miniature", "network_steps": "",
}  # fmt: skip
HELP_OF_FMA = {
    **HELP,
    "fma_wsss": "FMA-WSSS's repository: a URL, or the folder of a clone",
    "clip": "options that say where SemPLeS's CLIP is: --set clip='--cfg semples.pretrained=/weights/ViT-B-32.pt'",
    "host_clip": "FMA-WSSS's CLIP: ViT-B/16, which it downloads, or OpenAI's file ViT-B-16.pt under the name 16.pt",
    "batch": "images in a step of FMA-WSSS's",
    "warm": "steps of FMA-WSSS's before its rate is at full height",
    "cls_steps": "steps of the first context",
    **dict.fromkeys(["cls_saved", "seg_saved"], "steps between its checkpoints"),
    **dict.fromkeys(["cls_checkpoint", "seg_checkpoint"], "the one whose CAMs are taken"),
    "seg_steps": "steps of the second context",
    "prompt_options": "of stage (b), such as --cfg semples.learning.epochs=2",
    "precision": "entries that replace FMA-WSSS's half precision; SemPLeS's stages are in float32 anyhow",
    "images": "of a miniature: images in each list, such as --images=8",
    "coco_masks": "ground truth of COCO, 000000000009.png with values 0 to 80, of both splits in one folder; "
                  "FMA-WSSS's datasets.tar holds it (coco2014/annotations)",
    "network": "config of the segmentation network",
    "network_size": "options of it, such as --with miniature",
    "network_steps": "its steps",
}  # fmt: skip


def help_without(*others: str) -> dict[str, str]:
    """Of a recipe that has none of the `others`."""
    return {name: text for name, text in HELP_OF_FMA.items() if name not in others}
