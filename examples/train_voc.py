"""SemPLeS around a ResNet-50 CAM network on a data set in PASCAL VOC's layout, with real photographs and any CLIP.

    python examples/train_voc.py --data VOC2012 --labels cls_labels.npy --backbone resnet50.pth

Expects JPEGImages/ and ImageSets/Segmentation/train.txt under --data; with --classes names.txt the classes are yours.
Schedules and weights are the preset's; the script says which of them its options replace. The paper's are for WeakTr's
head, from its checkpoint: for a first look at a whole ResNet-50 take --batch-size 16 --epochs 4 --lr 1e-4.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from semples_plugin import ClassMasks, Preset, learn_background_prompts, load_preset
from semples_plugin.data.image_labels import load_image_labels, read_class_names
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, sum_of
from semples_plugin.utils.atomic_files import replacing

BACKGROUNDS = (
    "sky", "clouds", "sea", "river", "grass", "field", "road", "street", "railroad", "platform", "sand", "snow",
    "tree", "forest", "wall", "floor", "carpet", "table", "window", "curtain", "building", "fence", "mountain",
    "kitchen", "room",
)  # fmt: skip


REPLACED = {
    "batch_size": int, "epochs": int, "lr": float, "weight_decay": float,
    "prompt_batch_size": int, "prompt_epochs": int, "prompt_lr": float, "prompt_length": int,
}  # fmt: skip
"""Fields of the preset that an option of that name replaces; epochs, lr and batch_size are of (a) and (c)."""


class Photographs(Dataset):
    """Photographs squeezed to a square, ImageNet-normalised, and their multi-hot labels."""

    def __init__(self, folder: Path, labels: Path, image_list: str, size: int) -> None:
        self.folder, self.size, self.labels = folder, size, load_image_labels(labels)
        self.names = (folder / "ImageSets" / "Segmentation" / f"{image_list}.txt").read_text().split()
        if missing := [name for name in self.names if name not in self.labels]:
            raise ValueError(f"{labels} has no labels of {len(missing)} images, {missing[0]} the first")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        image = cv2.imread(str(self.folder / "JPEGImages" / f"{name}.jpg"))
        if image is None:
            raise FileNotFoundError(f"{self.folder}/JPEGImages/{name}.jpg is missing or damaged")
        image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)[:, :, ::-1].copy()
        mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 3, 1, 1)
        return (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std, torch.from_numpy(self.labels[name])


class ResNetCam(nn.Module):
    """ResNet-50 with stride 16 and a 1 x 1 classifier: raw CAMs [N, K, H/16, W/16]."""

    def __init__(self, num_classes: int, weights: Path | None) -> None:
        super().__init__()
        net = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
        if weights is not None:
            net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.features = nn.Sequential(*list(net.children())[:-2])
        self.classifier = nn.Conv2d(2048, num_classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in VOC's layout")
    parser.add_argument("--labels", type=Path, required=True, help="cls_labels.npy of CLIMS, IRNet or WeakTr")
    parser.add_argument("--image-list", default="train", help="name of the list in ImageSets/Segmentation")
    parser.add_argument("--preset", default="voc", help="class names, weights and schedules")
    parser.add_argument("--classes", type=Path, help="text file with one class name a line, instead of the preset's")
    parser.add_argument("--clip", help="open_clip name, or local-dir:PATH (default: the preset's)")
    parser.add_argument("--pretrained", help="its tag, or the path of a weights file (default: the preset's)")
    parser.add_argument("--precision", default="fp32", help="of CLIP: fp32, bf16 or fp16")
    parser.add_argument("--backbone", type=Path, help="torchvision's ImageNet weights of ResNet-50, a file")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--baseline-epochs", type=int, default=8)
    for name, kind in REPLACED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the preset's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the network's start, the batches and the prompts")
    parser.add_argument(
        "--out", type=Path, default=Path("voc-out"),
        help="folder for baseline.pt, matched.pt, refined.pt, prompts.safetensors and figures.json",
    )  # fmt: skip
    return parser.parse_args()


def preset_of(options: argparse.Namespace) -> Preset:
    """The preset with what the options replace in it, said in a line."""
    preset = load_preset(options.preset)
    given = {name: value for name in REPLACED if (value := getattr(options, name)) is not None}
    if departures := preset.departures(**given):
        print(f"instead of the preset's: {departures}")
    if options.classes:
        given["class_names"] = read_class_names(options.classes)
    return preset.with_(**given)


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    device, preset = options.device, preset_of(options)
    data = Photographs(options.data, options.labels, options.image_list, options.size)
    loader = DataLoader(data, preset.batch_size, shuffle=True, generator=torch.Generator().manual_seed(options.seed))
    clip = preset.load_clip(options.clip, options.pretrained, device=device, precision=options.precision)
    regularizer = preset.build_regularizer(clip)
    figures: dict[str, dict[str, float]] = {}

    def masks_of(cams: Tensor, labels: Tensor, stage: str) -> ClassMasks:
        return ClassMasks.from_dense(cams, labels).max_normalized(preset.stage_eps(stage))

    def train(net: ResNetCam, epochs: int, stage: str, name: str) -> ResNetCam:
        net.eval()  # batch norm keeps the statistics that it has
        optimizer = torch.optim.AdamW(net.parameters(), **preset.optimizer_options())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * len(loader), 1))
        losses, seconds = [], []
        start_memory(device)
        for epoch in range(epochs):
            for images, labels in tqdm(loader, f"{stage}, epoch {epoch + 1} of {epochs}"):
                begun = time.perf_counter()
                images, labels = images.to(device), labels.to(device)
                cams = net(images)
                loss = F.multilabel_soft_margin_loss(cams.mean((2, 3)), labels)
                if stage != "baseline":
                    loss = sum_of(regularizer(images, masks_of(cams, labels, "match")))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                seconds.append(time.perf_counter() - begun)
        third = max(len(losses) // 3, 1)
        figures[stage] = {
            "loss, first third": sum(losses[:third]) / third,
            "loss, last third": sum(losses[-third:]) / third,
            "seconds per step (median)": sorted(seconds)[len(seconds) // 2],
            "peak memory [GiB]": peak_memory(device),
        }
        with replacing(options.out / f"{name}.pt") as temporary:
            torch.save(net.state_dict(), temporary)
        return net

    baseline = ResNetCam(len(preset.class_names), options.backbone).to(device)
    baseline = train(baseline, options.baseline_epochs, "baseline", "baseline")
    matched = train(copy.deepcopy(baseline), preset.epochs, "(a) matching", "matched")

    regularizer.prompts = preset.new_prompts(clip.text_width, options.seed)
    start_memory(device)
    begun = time.perf_counter()
    with torch.no_grad():
        batches = (
            (images.to(device), masks_of(matched(images.to(device)), labels, "prompts")) for images, labels in loader
        )
        history = learn_background_prompts(
            regularizer,
            batches,
            seed=options.seed,
            work_dir=options.out / "prompt-learning",
            origin=matched,
            **preset.learning_options(),
        )
    figures["(b) prompts"] = {
        "loss, first third": history.loss[0],
        "loss, last third": history.loss[-1],
        "seconds in all": time.perf_counter() - begun,
        "peak memory [GiB]": peak_memory(device),
    }
    regularizer.prompts.save(options.out / "prompts.safetensors")
    train(copy.deepcopy(baseline), preset.epochs, "(c) refinement", "refined")

    for stage, values in figures.items():
        print(f"{stage:15}" + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    names = [*preset.class_names, *BACKGROUNDS]
    near = regularizer.prompt_features() @ clip.encode_texts([f"a photo of {name}." for name in names]).T
    for name, row in zip(preset.class_names, near, strict=True):
        near_names = ", ".join(f"{names[i]} {row[i]:.2f}" for i in row.topk(4).indices)
        print(f"{name:15} " + ("is in no image" if name in history.unseen else f"prompt is nearest to {near_names}"))
    with replacing(options.out / "figures.json") as temporary:
        temporary.write_text(json.dumps({"figures": figures, "prompts": history.to_dict()}, indent=2))


def start_memory(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> float:
    """GiB: of the device's tensors, or of the whole process on the CPU (where it can't be reset between stages)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
