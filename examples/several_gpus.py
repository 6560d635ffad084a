"""A plain loop on as many GPUs as there are, with a progress bar; without GPUs, on as many CPU processes.

    torchrun --standalone --nproc-per-node 2 examples/several_gpus.py

DDP needs no flag: CLIP has nothing to train, and ranks may have different numbers of pairs, also none."""

import copy

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.network import CamNet, normalize_images
from semples_plugin.viz.training_log import TrainingLog

cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
rank = dist.get_rank()
device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")

# Yours: a data set that says which image is which, and a model.
scenes = make_scenes(101, seed=0)
labels = torch.from_numpy(scenes.labels).float()
data = TensorDataset(normalize_images(scenes.images), labels, torch.arange(len(labels)))
sampler = DistributedSampler(data)  # repeats an image where the ranks' shares would differ
loader = DataLoader(data, batch_size=8, sampler=sampler)
torch.manual_seed(0)
model = DistributedDataParallel(CamNet(len(OBJECTS)).to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

# SemPLeS: the same on every rank.
clip = FrozenClip.load("demo", device=device)
regularizer = SemPLeSRegularizer(clip, OBJECTS, weights=LossWeights(background=0.4, text=0.02, refine=0.2))


def masks_of(cams: torch.Tensor, labels: torch.Tensor) -> ClassMasks:
    return ClassMasks.from_dense(cams, labels.to(device)).max_normalized()


def train(epochs: int, title: str) -> None:
    with TrainingLog(epochs * len(loader), every=10, title=title, progress=rank == 0) as log:  # or with SummaryWriter()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for images, labels, _ in loader:
                masks = masks_of(model(images.to(device)), labels)
                losses = regularizer(images.to(device), masks)  # each rank's part of the mean over all ranks' pairs
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                log(losses, masks, regularizer.figures)


start = copy.deepcopy(model.state_dict())
train(3, "(a)")
model.eval()
regularizer.prompts = BackgroundPrompts.for_clip(clip, OBJECTS, length=8)
with torch.no_grad():  # (b): all ranks learn the same prompts, from every image once, by its number
    own = model.module
    batches = ((x.to(device), masks_of(own(x.to(device)), y), number.tolist()) for x, y, number in loader)
    history = learn_background_prompts(regularizer, batches, epochs=10, lr=2e-2)
model.load_state_dict(start)  # (c) starts from the same weights as (a)
optimizer.state.clear()
model.train()
train(3, "(c)")
if rank == 0:
    regularizer.prompts.save("prompts.safetensors")
    print(f"prompts of {sum(history.pairs)} pairs, L_prompt {history.loss[0]:.3f} to {history.loss[-1]:.3f}")
dist.destroy_process_group()
