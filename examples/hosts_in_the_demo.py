"""What the hosts' CAM heads gain from the three stages in the demo's world, through their own adapters.

    python examples/hosts_in_the_demo.py --seeds 100 101 102

So far CLIMS's: sigmoid CAMs, trained with the weights that CLIMS gives its terms and with its area term, the mean of
all maps. Matching with sigmoid masks alone lets the maps grow over the whole image; the area term keeps them small.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from semples_plugin import BackgroundPrompts, LossWeights, SemPLeSRegularizer
from semples_plugin.adapters.clims import ClimsAdapter
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.generator import CamNet
from semples_plugin.demo.run import judge, load_tiny_clip, normalize_images

SCALE, AREA = 10.0, 2.0  # CLIMS weighs its foreground term with 10 and its area term with 0.2 on VOC
WEIGHTS = LossWeights(background=0.4, text=0.02, refine=0.2)  # for the tiny CLIP, as in `semples demo`


def run(seed: int) -> dict[str, tuple[float, float]]:
    """mIoU and context activation of each stage's CAMs on test scenes."""
    torch.manual_seed(seed)
    scenes, test = make_scenes(1000, seed), make_scenes(300, seed + 10_000)
    images, labels = normalize_images(scenes.images), torch.from_numpy(scenes.labels).float()
    clip = load_tiny_clip()
    adapter = ClimsAdapter(SemPLeSRegularizer(clip, OBJECTS, weights=WEIGHTS), scale=SCALE)

    def train(model: nn.Module, steps: int, lr: float, matching: bool) -> nn.Module:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        order = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            index = torch.randint(len(images), (16,), generator=order)
            logits = model(images[index])
            loss = F.binary_cross_entropy_with_logits(logits.mean((2, 3)), labels[index])
            if matching:
                cams = logits.sigmoid()
                loss = adapter.loss(images[index], cams, labels[index]) + AREA * cams.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    baseline = train(CamNet(len(OBJECTS)).train(), 150, 2e-3, matching=False).eval()
    matched = train(copy.deepcopy(baseline), 100, 5e-4, matching=True)
    start = BackgroundPrompts(len(OBJECTS), 16, clip.text_width, std=clip.token_std, seed=seed)
    adapter.regularizer.prompts = copy.deepcopy(start)
    unlearned = train(copy.deepcopy(baseline), 100, 5e-4, matching=True)
    adapter.regularizer.prompts = start
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        batches = ((x, matched(x).sigmoid(), y) for x, y in zip(images.split(100), labels.split(100)))
        adapter.learn_prompts(batches, Path(folder) / "prompts.safetensors", epochs=20, lr=2e-2, progress=False)
    refined = train(copy.deepcopy(baseline), 100, 5e-4, matching=True)
    stages = {"baseline": baseline, "(a) match": matched, "(c) unlearned": unlearned, "(c) learned": refined}
    judged = {name: judge(model, test, "cpu") for name, model in stages.items()}
    return {name: (found.miou, found.context) for name, found in judged.items()}


def main() -> None:
    """Prints the mean over the seeds and every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    runs = [run(seed) for seed in parser.parse_args().seeds]
    for name in runs[0]:
        miou, context = np.array([found[name] for found in runs]).T
        seeds = " ".join(f"{value:.1f}" for value in miou)
        print(f"CLIMS {name:14} mIoU {miou.mean():5.1f} ({seeds})  context activation {context.mean():.2f}")


if __name__ == "__main__":
    main()
