"""What a refinement step takes in parts of several sizes, with `max_pairs="auto"`, and compiled.

    OMP_NUM_THREADS=1 python examples/step_choices.py --pairs 6 16 --parts whole 2 4 8 auto --compiled

Weights are random, those of CLIP's shape moved so that no cosine is clamped. The choices take turns, so that what else
the machine does meets all of them alike; a cell is the median of `--repeats` steps, forward and back. Compiled, the
first step, which makes the graph, is told as well, and how far the gradient is off: the norm of the difference over
the norm. Memory is what a step adds to the process (on Linux) or to the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import open_clip
import torch
from torch import Tensor

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.bench.worker import _memory
from semples_plugin.clip.fast_towers import lean_activations

CLASSES = 20


@torch.no_grad()
def build_clip(name: str, device: str, precision: str) -> FrozenClip:
    """A CLIP with random weights whose features lie in a cone, as a trained one's do."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    lean_activations(model)  # as FrozenClip.load does
    for norm, projection in (
        (model.visual.ln_post, model.visual.proj),
        (model.ln_final, model.text_projection),
    ):
        shift = torch.linspace(-1, 2, projection.shape[1])
        norm.bias.add_(torch.linalg.lstsq(projection.T.double(), shift.double()).solution)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    return FrozenClip(model, open_clip.get_tokenizer(name), name).to(device)


def build(clip: FrozenClip, max_pairs: int | str | None) -> SemPLeSRegularizer:
    """With VOC's weights, and prompts that count as learned."""
    names = [f"class {k}" for k in range(CLASSES)]
    prompts = BackgroundPrompts(CLASSES, 30, clip.text_width)
    prompts.learned = True
    weights = LossWeights()
    return SemPLeSRegularizer(
        clip, names, weights=weights, prompts=prompts, input_mean=None, input_std=None, max_pairs=max_pairs
    )


def batch(clip: FrozenClip, pairs: int) -> tuple[Tensor, ClassMasks]:
    """Random images and masks, one pair of each image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pairs, 3, *clip.image_size, generator=generator).to(clip.device)
    maps = torch.rand(pairs, 14, 14, generator=generator).to(clip.device).requires_grad_()
    return images, ClassMasks.from_pairs(maps, torch.arange(pairs), torch.arange(pairs) % CLASSES)


def step(regularizer: SemPLeSRegularizer, images: Tensor, masks: ClassMasks) -> tuple[float, Tensor]:
    """Seconds of a step, and its gradient."""
    begun = time.perf_counter()
    (gradient,) = torch.autograd.grad(sum(regularizer(images, masks).values()), masks.maps)
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun, gradient


def compare(regularizers: dict[str, SemPLeSRegularizer], pairs: int, repeats: int) -> Iterator[str]:
    """A line of the table for each of the regularizers; the first is what the others are compared with."""
    clip = next(iter(regularizers.values())).clip
    images, masks = batch(clip, pairs)
    first = {name: step(regularizer, images, masks) for name, regularizer in regularizers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in regularizers}
    memory: dict[str, str] = {}
    for _ in range(repeats):
        for name, regularizer in regularizers.items():
            before = _memory(clip.device, restart=True)
            seconds[name].append(step(regularizer, images, masks)[0])
            after = _memory(clip.device)
            memory[name] = "-" if before is None or after is None else f"{(after - before) / 1e9:.2f}"
    expected = next(iter(first.values()))[1]
    for name, times in seconds.items():
        off = float((first[name][1] - expected).norm() / expected.norm())
        made = f"{first[name][0]:.1f}" if name == "compiled" else ""
        yield f"| {pairs} | {name} | {statistics.median(times):.3f} | {memory[name]} | {off:.1e} | {made} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clip", default="ViT-B-32-quickgelu", help="open_clip name of a vision transformer (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of CLIP (default: %(default)s)")
    add("--pairs", type=int, nargs="+", default=[6, 16, 96], help="default: 6 16 96")
    add("--parts", nargs="+", default=["whole", "auto"], help="pairs of a part, `auto` and `whole` (default: both)")
    add("--compiled", action="store_true", help="as a whole, by torch.compile as well")
    add("--mode", help="of torch.compile, such as reduce-overhead")
    add("--repeats", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    options = parse()
    clip = build_clip(options.clip, options.device, options.precision)
    numbers = {"whole": None, "auto": "auto"}
    regularizers = {part: build(clip, numbers[part] if part in numbers else int(part)) for part in options.parts}
    if options.compiled:
        regularizers["compiled"] = build(clip, None).compile(mode=options.mode)
    print("| pairs | parts | seconds | memory [GB] | gradient off by | first step [s] |\n|---|---|---|---|---|---|")
    for pairs in options.pairs:
        for line in compare(regularizers, pairs, options.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
