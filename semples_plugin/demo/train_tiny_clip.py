"""Trains the demo's tiny CLIP and measures it: `python -m semples_plugin.demo.train_tiny_clip --out DIR`.

Its images are scenes in which objects and contexts are paired only partly, many with segments cut out, so that
each word is learned by itself. One thing is learned wrong on purpose, as by a CLIP trained on the web: some
images of a context alone are captioned with its object (rails as "train"). Background prompts are there to
correct this bias.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from tqdm import tqdm

from semples_plugin.clip.tiny import CONTEXT_LENGTH, FOLDER, VOCABULARY, TinyTokenizer
from semples_plugin.demo.data import CONTEXTS, IMAGE_SIZE, OBJECTS, Scenes, make_scenes

if TYPE_CHECKING:
    import open_clip

CUT = 255  # number of a cut-out segment
MODEL_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": len(VOCABULARY),
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}


def _setting(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """How the tiny CLIP is trained; each setting is an option of the command line."""

    seed: int = _setting(0, "seed of the weights, the scenes and the captions")
    steps: int = _setting(260, "optimiser steps")
    batch: int = _setting(96, "images per step")
    scenes: int = _setting(10_000, "number of training scenes")
    learning_rate: float = _setting(2e-3, "peak learning rate of AdamW")
    pairing: float = _setting(0.2, "probability that an object of the training scenes stands in its own context")
    masked: float = _setting(0.6, "share of the images with segments cut out")
    short: float = _setting(0.3, "share of the captions that leave out the context of an object")
    bias: float = _setting(0.06, "share of the contexts without their object that are captioned as that object")
    floor: float = _setting(
        0.1, "cosines of images and captions that don't match are pushed above it, CLIP's narrow cone"
    )
    temperature: float = _setting(0.125, "of the contrastive loss, fixed; a high one keeps the cosines apart")


def train(recipe: Recipe) -> open_clip.CLIP:
    """A tiny CLIP trained by the recipe, in eval mode."""
    import open_clip

    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    scenes = make_scenes(recipe.scenes, recipe.seed, own_context=recipe.pairing)
    model = open_clip.CLIP(**MODEL_CONFIG, init_logit_scale=-np.log(recipe.temperature)).train()
    model.logit_scale.requires_grad_(False)
    tokenizer = TinyTokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    progress = tqdm(range(recipe.steps), desc="tiny CLIP", unit="step")
    for _ in progress:
        images, captions, topics = draw_batch(scenes, recipe, rng)
        image_features = model.encode_image(images, normalize=True)
        text_features = model.encode_text(tokenizer(captions), normalize=True)
        matches = torch.as_tensor(topics[:, None] == topics[None, :])
        loss = contrastive_loss(image_features @ text_features.T, matches, model.logit_scale.exp(), recipe.floor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}")
    return model.eval()


def contrastive_loss(cosines: Tensor, matches: Tensor, scale: Tensor, floor: float) -> Tensor:
    """CLIP's loss with several positives per row, and a hinge that keeps the other cosines above the floor.

    Args:
        cosines: [B, B], images by captions.
        matches: bool [B, B], where a caption says the same as the image's own.
        scale: inverse temperature.
        floor: cosine in [0, 1).
    """
    targets = matches / matches.sum(1, keepdim=True)
    images = F.cross_entropy(scale * cosines, targets)
    texts = F.cross_entropy(scale * cosines.T, targets)
    return 0.5 * (images + texts) + 10 * F.relu(floor - cosines).square().mean()


def draw_batch(scenes: Scenes, recipe: Recipe, rng: Generator) -> tuple[Tensor, list[str], NDArray[np.str_]]:
    """Images [B, 3, 64, 64] in CLIP's statistics, their captions, and the words of each caption [B]."""
    images, captions, topics = [], [], []
    for i in rng.integers(len(scenes), size=recipe.batch):
        image = normalise(scenes.images[i])
        segments = segment_map(scenes.objects[i], scenes.contexts[i])
        if rng.random() < recipe.masked:
            image, segments = cut_segments(image, segments, rng)
        objects, others = name_segments(segments, recipe, rng)
        images.append(image)
        captions.append(write_caption(objects, others, rng))
        topics.append(" ".join([*sorted(objects), *sorted(others)]))
    return torch.as_tensor(np.stack(images)), captions, np.array(topics)


def normalise(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An RGB image [64, 64, 3] in CLIP's statistics, as [3, 64, 64]."""
    mean, std = np.array(OPENAI_DATASET_MEAN, np.float32), np.array(OPENAI_DATASET_STD, np.float32)
    scaled = (image.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def segment_map(objects: NDArray[np.uint8], contexts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Both maps in one: 0 for the generic background, then the objects' numbers, then the contexts'."""
    return np.where(contexts > 0, contexts + len(OBJECTS), objects).astype(np.uint8)


def cut_segments(
    image: NDArray[np.float32], segments: NDArray[np.uint8], rng: Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Cuts each segment out with probability one half, to mean colour or black; it is `CUT` in the map.

    Half of the cuts leave a trace and half of what stays is faded, for the masks of a CAM network are soft.
    """
    present = np.unique(segments)
    cut = rng.random(len(present)) < 0.5
    visible = np.where(cut, rng.uniform(0, 0.3, len(present)), rng.uniform(0.4, 1, len(present)))
    visible = np.where(rng.random(len(present)) < 0.5, visible, ~cut)
    mask = visible.astype(np.float32)[np.searchsorted(present, segments)]
    fill = np.float32(0) if rng.random() < 0.7 else normalise(np.zeros((1, 1, 3), np.uint8))
    remaining = np.where(np.isin(segments, present[cut]), np.uint8(CUT), segments)
    return mask * image + (1 - mask) * fill, remaining


def name_segments(segments: NDArray[np.uint8], recipe: Recipe, rng: Generator) -> tuple[list[str], list[str]]:
    """The objects and the contexts that a caption names; "background" or "nothing" where there is neither."""
    present = np.unique(segments[segments != CUT])
    objects = {OBJECTS[k - 1] for k in present if 0 < k <= len(OBJECTS)}
    contexts = {CONTEXTS[k - 1 - len(OBJECTS)] for k in present if k > len(OBJECTS)}
    for context in sorted(contexts):
        owner = OBJECTS[CONTEXTS.index(context)]
        if owner not in objects and rng.random() < recipe.bias:
            objects.add(owner)
            contexts.discard(context)
    if objects and rng.random() < recipe.short:
        contexts.clear()
    if not objects and not contexts:
        contexts = {"background" if len(present) else "nothing"}
    return list(objects), list(contexts)


def write_caption(objects: list[str], others: list[str], rng: Generator) -> str:
    """A sentence such as "a photo of a train on rails."; names come in any order, articles or not."""
    names = [rng.choice(("", "a ", "the ")) + name for name in rng.permutation(sorted(objects))]
    subject = " and ".join(names)
    place = " and ".join(rng.permutation(sorted(others)))
    link = rng.choice((" on ", " and ", " in ", " with ")) if subject and place else ""
    return f"a {rng.choice(('photo', 'photo', 'picture', 'image'))} of {subject}{link}{place}."


@torch.no_grad()
def measure(model: open_clip.CLIP, seed: int, count: int = 1000) -> dict[str, float]:
    """Zero-shot accuracy and mean cosines on single-object scenes of an unseen seed."""
    scenes = make_scenes(count, seed)
    single = np.flatnonzero(scenes.labels.sum(1) == 1)
    classes = torch.as_tensor(scenes.labels[single].argmax(1))
    images = torch.as_tensor(np.stack([normalise(scenes.images[i]) for i in single]))
    objects = torch.as_tensor(scenes.objects[single]).unsqueeze(1) > 0
    own_context = torch.as_tensor(scenes.contexts[single]) == (classes + 1)[:, None, None]
    with_context = own_context.sum((1, 2)) > 0.05 * IMAGE_SIZE**2
    object_texts, context_texts = (_encode(model, names) for names in (OBJECTS, CONTEXTS))

    def cosines(views: Tensor, texts: Tensor) -> Tensor:
        features: Tensor = model.encode_image(views, normalize=True)
        return features @ texts.T

    own = F.one_hot(classes, len(OBJECTS)).bool()
    seen = with_context.nonzero().squeeze(1)
    object_only = cosines(images * objects, object_texts)
    context_only = images[seen] * own_context[seen].unsqueeze(1)
    context_to_object = cosines(context_only, object_texts)
    cut_out = cosines(images[seen] * ~objects[seen], object_texts)
    whole = cosines(images, object_texts)
    return {
        "zero_shot_accuracy": (object_only.argmax(1) == classes).float().mean().item(),
        "object_to_own_label": object_only[own].mean().item(),
        "object_to_other_labels": object_only[~own].mean().item(),
        "whole_image_to_own_label": whole[own].mean().item(),
        "whole_image_to_other_labels": whole[~own].mean().item(),
        "context_to_label_of_its_object": context_to_object[own[seen]].mean().item(),
        "context_to_labels_of_other_objects": context_to_object[~own[seen]].mean().item(),
        "context_to_own_name": cosines(context_only, context_texts)[own[seen]].mean().item(),
        "object_cut_out_to_its_label": cut_out[own[seen]].mean().item(),
        "object_cut_out_to_other_labels": cut_out[~own[seen]].mean().item(),
        "object_to_name_of_its_context": cosines(images * objects, context_texts)[own].mean().item(),
    }


def _encode(model: open_clip.CLIP, names: tuple[str, ...]) -> Tensor:
    tokens = TinyTokenizer()([f"a photo of {name}." for name in names])
    features: Tensor = model.encode_text(tokens, normalize=True)
    return features


def save(model: open_clip.CLIP, folder: Path) -> None:
    """Writes the `local-dir:` layout of open_clip: the configuration, and the weights in float16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    shutil.copy(FOLDER / "vocabulary.txt", folder)
    save_file(weights, folder / "open_clip_model.safetensors")


def main() -> None:
    """Trains, saves and measures; the command line's entry."""
    parser = argparse.ArgumentParser(description="Train the demo's tiny CLIP and measure it.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights and of metrics.json")
    parser.add_argument("--test-seed", type=int, default=900, help="seed of the scenes that it is measured on")
    for setting in fields(Recipe):
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            default=setting.default,
            help=f"{setting.metadata['help']} (default: {setting.default})",
        )
    arguments = vars(parser.parse_args())
    out, test_seed = arguments.pop("out"), arguments.pop("test_seed")
    recipe = Recipe(**arguments)
    model = train(recipe)
    save(model, out)
    metrics = measure(model, test_seed)
    report = {
        "recipe": asdict(recipe),
        "test_seed": test_seed,
        "metrics": {k: round(v, 4) for k, v in metrics.items()},
    }
    (out / "metrics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):40} {value:.3f}")


if __name__ == "__main__":
    main()
