"""SemPLeS around any module that returns CAMs [N, K, h, w], by `wrap`: python examples/wrap_your_model.py

It takes a small network, the demo's scenes and its tiny CLIP. With real images, use FrozenClip.load and
load_preset("voc").
"""

import copy

import torch
import torch.nn.functional as F

from semples_plugin import BackgroundPrompts, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.adapters.base import wrap
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.network import CamNet, normalize_images

torch.manual_seed(0)
scenes, clip, model = make_scenes(256, seed=0), FrozenClip.load("demo"), CamNet(len(OBJECTS))
data = torch.utils.data.TensorDataset(normalize_images(scenes.images), torch.from_numpy(scenes.labels).float())
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
weights = LossWeights(background=0.4, text=0.02, refine=0.2)  # for the tiny CLIP; the presets have ViT-B/32's
semples = wrap(model, SemPLeSRegularizer(clip, OBJECTS, weights=weights), kind="relu")
start = copy.deepcopy(model.state_dict())  # yours: the baseline's checkpoint

for stage in ("match", "refine"):
    model.load_state_dict(start)  # (a) and (c) begin with the same weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for images, labels in loader:
        cams, loss = semples(images, labels)  # (1), and with prompts (3)
        loss = loss + F.binary_cross_entropy_with_logits(cams.mean((2, 3)), labels)  # your own loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(stage, {name: round(value.item(), 3) for name, value in semples.losses.items()})
    if stage == "match":  # (b): prompts from the matched model's backgrounds
        semples.regularizer.prompts = BackgroundPrompts.for_clip(clip, OBJECTS, length=16)
        semples.learn_prompts(loader, "prompts.safetensors", epochs=20, lr=2e-2)
