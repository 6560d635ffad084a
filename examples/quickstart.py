"""The three stages of SemPLeS around your own CAM model; `python examples/quickstart.py` runs in a minute.

Replace what stands under "Yours", and load a CLIP that was trained on real images:
sp.FrozenClip.load("ViT-B-32-quickgelu", pretrained="openai", device="cuda")."""

import copy

import torch
import torch.nn.functional as F

import semples_plugin as sp
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.network import CamNet, normalize_images
from semples_plugin.demo.table import judge

# Yours: images, multi-hot labels [N, K], a model that returns CAMs [N, K, h, w], and its classification training.
torch.manual_seed(0)
scenes, test = make_scenes(600, seed=0), make_scenes(200, seed=10_000)
data = torch.utils.data.TensorDataset(normalize_images(scenes.images), torch.from_numpy(scenes.labels).float())
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
baseline = CamNet(len(OBJECTS))
optimizer = torch.optim.AdamW(baseline.parameters(), lr=2e-3)
for _ in range(4):
    for images, labels in loader:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(baseline(images).mean((2, 3)), labels).backward()
        optimizer.step()
baseline.eval()

# SemPLeS: a frozen CLIP, the class names, the weights. The paper's (for ViT-B/32) are in load_preset("voc").
clip = sp.FrozenClip.load("demo")
regularizer = sp.SemPLeSRegularizer(clip, OBJECTS, weights=sp.LossWeights(background=0.4, text=0.02, refine=0.2))


def masks_of(model, images, labels):
    return sp.ClassMasks.from_dense(model(images), labels).max_normalized()


def train(model, epochs):
    torch.manual_seed(0)  # (a) and (c) see the same batches
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(epochs):
        for images, labels in loader:
            losses = regularizer(images, masks_of(model, images, labels))  # add them to your own loss
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return model


matched = train(copy.deepcopy(baseline), epochs=3)  # (a) segment-label matching
regularizer.prompts = sp.BackgroundPrompts.for_clip(clip, OBJECTS, length=16)
with torch.no_grad():  # (b) prompts from the matched model's backgrounds, the model staying as it is
    batches = ((images, masks_of(matched, images, labels)) for images, labels in loader)
    sp.learn_background_prompts(regularizer, batches, epochs=40, lr=2e-2, work_dir="prompt-learning")
regularizer.prompts.save("prompts.safetensors")
refined = train(copy.deepcopy(baseline), epochs=3)  # (c) matching and refinement, from the start again
for name, model in {"baseline": baseline, "matched": matched, "refined": refined}.items():
    print(name, judge(lambda part: model(normalize_images(test.images[part])), test))  # noqa: B023, called at once
