"""SemPLeS around a ResNet-50 CAM network on a data set in PASCAL VOC's layout, with any CLIP.

    python examples/train_voc.py --data VOC2012 --labels cls_labels.npy --backbone resnet50.pth

Expects JPEGImages/ and ImageSets/Segmentation/train.txt under --data; --classes names.txt replaces the
classes. Schedules and weights are the preset's; the script prints which of them its options replace. The
paper's are for WeakTr's head, from its checkpoint: for a first trial with a whole ResNet-50 take --batch-size
16 --epochs 4 --lr 1e-4.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from semples_plugin import (
    ClassMasks,
    Preset,
    PromptHistory,
    SemPLeSRegularizer,
    learn_background_prompts,
    load_preset,
    write_cams_of,
)
from semples_plugin.data.image_labels import load_image_labels, read_class_names
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, sum_of
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checkpoint_files import load_weights, read_checkpoint, weights_of

LossOf = Callable[[Tensor, Tensor], Tensor]
"""The loss of a batch of images and labels."""

BACKGROUNDS = (
    "sky clouds sea river grass field road street railroad platform sand snow tree forest "
    "wall floor carpet table window curtain building fence mountain kitchen room"
).split()
"""Words, beside the class names, that the learned prompts are compared with."""

REPLACEABLE = {
    "batch_size": int,
    "epochs": int,
    "lr": float,
    "weight_decay": float,
    "prompt_batch_size": int,
    "prompt_epochs": int,
    "prompt_lr": float,
    "prompt_length": int,
}
"""Fields of the preset that an option of that name replaces; epochs, lr and batch_size are of (a) and (c)."""


class Images(Dataset):
    """Images `[3, size, size]`, squeezed to a square and ImageNet-normalised, and their multi-hot labels `[K]`."""

    def __init__(self, folder: Path, labels: Path, image_list: str, size: int) -> None:
        self.folder, self.size, self.labels = folder, size, load_image_labels(labels)
        self.names = (folder / "ImageSets" / "Segmentation" / f"{image_list}.txt").read_text(encoding="utf-8").split()
        missing = [name for name in self.names if name not in self.labels]
        if missing:
            raise ValueError(f"{labels} has no labels of {len(missing)} images, {missing[0]} the first")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        bgr = cv2.imread(str(self.folder / "JPEGImages" / f"{name}.jpg"))
        if bgr is None:
            raise FileNotFoundError(f"{self.folder}/JPEGImages/{name}.jpg is missing or damaged")
        bgr = cv2.resize(bgr, (self.size, self.size), interpolation=cv2.INTER_AREA)
        rgb = torch.from_numpy(bgr[:, :, ::-1].copy()).permute(2, 0, 1) / 255
        mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
        return (rgb - mean) / std, torch.from_numpy(self.labels[name])


class ResNetCam(nn.Module):
    """ResNet-50 with stride 16 and a 1 x 1 classifier: raw CAMs [N, K, H/16, W/16]."""

    def __init__(self, num_classes: int, weights: Path | None) -> None:
        super().__init__()
        net = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
        if weights is not None:
            load_weights(net, weights, weights_of(weights, read_checkpoint(weights)))
        self.features = nn.Sequential(*list(net.children())[:-2])
        self.classifier = nn.Conv2d(2048, num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Stages:
    """The stages of SemPLeS with one data set and one CLIP; `figures` says how each of them went."""

    def __init__(
        self, loader: DataLoader, preset: Preset, regularizer: SemPLeSRegularizer, options: argparse.Namespace
    ):
        self.loader, self.preset, self.regularizer = loader, preset, regularizer
        self.device, self.seed, self.out = options.device, options.seed, options.out
        self.figures: dict[str, dict[str, float]] = {}

    def train_baseline(self, network: ResNetCam, epochs: int) -> ResNetCam:
        """Classification from image labels alone."""

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            return F.multilabel_soft_margin_loss(network(images).mean((2, 3)), labels)

        return self._train(network, loss_of, epochs, "baseline", "baseline.pt")

    def match(self, baseline: ResNetCam) -> ResNetCam:
        """(a): segment-label matching."""
        self.regularizer.prompts = None
        return self._train_with_semples(baseline, "(a) matching", "matched.pt")

    def learn_prompts(self, matched: ResNetCam) -> PromptHistory:
        """(b): prompts that describe the backgrounds of the matched network's masks."""
        prompts = self.preset.new_prompts(self.regularizer.clip.text_width, self.seed)
        self.regularizer.prompts = prompts

        def batches() -> Iterator[tuple[Tensor, ClassMasks]]:
            for images, labels in self.loader:
                images = images.to(self.device)
                yield images, self._masks_of(matched(images), labels, "prompts")

        start_memory(self.device)
        begun = time.perf_counter()
        with torch.no_grad():
            history = learn_background_prompts(
                self.regularizer,
                batches(),
                seed=self.seed,
                work_dir=self.out / "prompt-learning",
                origin=matched,
                **self.preset.learning_options(),
            )
        self.figures["(b) prompts"] = {
            "loss, first third": history.loss[0],
            "loss, last third": history.loss[-1],
            "seconds in all": time.perf_counter() - begun,
            "peak memory [GiB]": peak_memory(self.device),
        }
        prompts.save(self.out / "prompts.safetensors")
        return history

    def refine(self, baseline: ResNetCam) -> ResNetCam:
        """(c): matching, and refinement with the learned prompts, from the same start as (a)."""
        return self._train_with_semples(baseline, "(c) refinement", "refined.pt")

    def _train_with_semples(self, baseline: ResNetCam, stage: str, file: str) -> ResNetCam:
        network = copy.deepcopy(baseline)

        def loss_of(images: Tensor, labels: Tensor) -> Tensor:
            masks = self._masks_of(network(images), labels, "match")
            return sum_of(self.regularizer(images, masks))

        return self._train(network, loss_of, self.preset.epochs, stage, file)

    def _masks_of(self, cams: Tensor, labels: Tensor, stage: str) -> ClassMasks:
        return ClassMasks.from_dense(cams, labels).max_normalized(self.preset.stage_eps(stage))

    def _train(self, network: ResNetCam, loss_of: LossOf, epochs: int, stage: str, file: str) -> ResNetCam:
        """Trains a network in place, saves it, and notes losses, time and memory."""
        network.eval()  # batch norm keeps the statistics that it has
        optimizer = torch.optim.AdamW(network.parameters(), **self.preset.optimizer_options())
        steps = max(epochs * len(self.loader), 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses, seconds = [], []
        start_memory(self.device)
        for epoch in range(epochs):
            for images, labels in tqdm(self.loader, f"{stage}, epoch {epoch + 1} of {epochs}"):
                begun = time.perf_counter()
                loss = loss_of(images.to(self.device), labels.to(self.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                seconds.append(time.perf_counter() - begun)
        third = max(len(losses) // 3, 1)
        self.figures[stage] = {
            "loss, first third": sum(losses[:third]) / third,
            "loss, last third": sum(losses[-third:]) / third,
            "seconds per step (median)": sorted(seconds)[len(seconds) // 2],
            "peak memory [GiB]": peak_memory(self.device),
        }
        with replacing(self.out / file) as temporary:
            torch.save(network.state_dict(), temporary)
        return network


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    preset = preset_of(options)
    images = Images(options.data, options.labels, options.image_list, options.size)
    order = torch.Generator().manual_seed(options.seed)
    loader = DataLoader(images, preset.batch_size, shuffle=True, generator=order)
    clip = preset.load_clip(options.clip, options.pretrained, device=options.device, precision=options.precision)
    stages = Stages(loader, preset, preset.build_regularizer(clip), options)

    network = ResNetCam(len(preset.class_names), options.backbone).to(options.device)
    baseline = stages.train_baseline(network, options.baseline_epochs)
    matched = stages.match(baseline)
    history = stages.learn_prompts(matched)
    refined = stages.refine(baseline)
    write_cams_of(refined, options.data / "JPEGImages", options.out / "cams", images.labels, images.names)

    print_figures(stages.figures)
    print_nearest_words(stages.regularizer, history)
    with replacing(options.out / "figures.json") as temporary:
        temporary.write_text(
            json.dumps({"figures": stages.figures, "prompts": history.to_dict()}, indent=2), encoding="utf-8"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder in VOC's layout")
    add("--labels", type=Path, required=True, help="cls_labels.npy of CLIMS, IRNet or WeakTr")
    add("--image-list", default="train", help="name of the list in ImageSets/Segmentation")
    add("--preset", default="voc", help="class names, weights and schedules")
    add("--classes", type=Path, help="text file with one class name a line, instead of the preset's")
    add("--clip", help="open_clip name, or local-dir:PATH (default: the preset's)")
    add("--pretrained", help="its tag, or the path of a weights file (default: the preset's)")
    add("--precision", default="fp32", help="of CLIP: fp32, bf16 or fp16")
    add("--backbone", type=Path, help="torchvision's ImageNet weights of ResNet-50, a file")
    add("--size", type=int, default=224, help="of the images, in pixels")
    add("--baseline-epochs", type=int, default=8)
    for name, kind in REPLACEABLE.items():
        add(f"--{name.replace('_', '-')}", type=kind, help="instead of the preset's")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0, help="of the network's start, the batches and the prompts")
    files = "baseline.pt, matched.pt, refined.pt, prompts.safetensors, cams/ and figures.json"
    add("--out", type=Path, default=Path("voc-out"), help=f"folder for {files}")
    return parser.parse_args()


def preset_of(options: argparse.Namespace) -> Preset:
    """The preset with what the options replace in it, which is printed."""
    preset = load_preset(options.preset)
    values = {name: getattr(options, name) for name in REPLACEABLE}
    replaced = {name: value for name, value in values.items() if value is not None}
    departures = preset.departures(**replaced)
    if departures:
        print(f"instead of the preset's: {departures}")
    if options.classes:
        replaced["class_names"] = read_class_names(options.classes)
    return preset.with_(**replaced)


def print_figures(figures: dict[str, dict[str, float]]) -> None:
    for stage, values in figures.items():
        print(f"{stage:15}" + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))


def print_nearest_words(regularizer: SemPLeSRegularizer, history: PromptHistory) -> None:
    """Prints which words each class's prompt is nearest to: backgrounds, not the class, where (b) went well."""
    words = [*regularizer.class_names, *BACKGROUNDS]
    texts = regularizer.clip.encode_texts([f"a photo of {word}." for word in words])
    similarities = regularizer.prompt_features() @ texts.T
    for name, row in zip(regularizer.class_names, similarities, strict=True):
        if name in history.unseen:
            print(f"{name:15} is in no image")
            continue
        nearest = ", ".join(f"{words[i]} {row[i]:.2f}" for i in row.topk(4).indices)
        print(f"{name:15} prompt is nearest to {nearest}")


def start_memory(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> float:
    """GiB: of the device's tensors, or, on the CPU, of the whole process, without a reset between stages."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
