"""Breaks the library on purpose, one line at a time, and says which test notices: `python tests/mutations.py [WORD ...]`.

Each mutation is made in a copy of the checkout. A mutation that no test catches makes the exit status 1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("functional", "masks", "clip", "prompts", "regularizer", "prompt_learning", "image_names", "labels",
         "make_labels", "cams", "cam_folders", "cam_files", "pseudo_masks", "distributed")  # fmt: skip

MUTATIONS = [
    ("sign of -log sim(v_f, u_f)", "regularizer", "= functional.attract(", "= -functional.attract("),
    ("sign of -log(1 - sim(v_b, u_f))", "regularizer", "= functional.repel(", "= -functional.repel("),
    ("sign of L_refine", "regularizer", "= functional.refinement_loss(", "= -functional.refinement_loss("),
    ("sign of L_prompt^I", "functional", "return attract(prompt_background), repel", "return -attract(prompt_background), repel"),
    ("sign of L_prompt^T", "functional", "repel(prompt_label)", "-repel(prompt_label)"),
    ("text term left out", "regularizer", "terms = functional.prompt_loss(", "terms = functional.prompt_loss(0 * "),
    ("CLIP thawed", "clip", "self.model.eval().requires_grad_(False)", "self.model.eval().requires_grad_(True)"),
    ("CLIP left in training mode", "clip", "self.model.eval().requires", "self.model.requires"),
    ("masks detached", "regularizer", "masks.resized(*self", "masks.detach().resized(*self"),
    ("min and max detached", "masks", "maps.amin((1, 2), keepdim=True), maps.amax", "maps.detach().amin((1, 2), keepdim=True), maps.detach().amax"),
    ("prompts not learned", "prompt_learning", "                optimizer.step()\n", ""),
    ("prompts learned on the foreground", "regularizer", "self._features(prepared, part, False, True)[1]", "self._features(prepared, part, True, False)[0]"),
    ("prompts learned by refinement", "regularizer", "            with torch.no_grad():\n                self._kept", "            if True:\n                self._kept"),
    ("prompts kept when they changed", "regularizer", "or not torch.equal(self._kept[0], vectors)", ""),
    ("wrong class index", "masks", "cls(cams[image_index, class_index], image_index, class_index", "cls(cams[image_index, class_index], image_index, class_index.roll(1)"),
    ("wrong image index", "masks", "cls(cams[image_index, class_index], image_index,", "cls(cams[image_index, class_index], image_index.roll(1),"),
    ("foreground and background swapped", "masks", "torch.cat([fill + difference, pairs - difference])", "torch.cat([pairs - difference, fill + difference])"),
    ("no clamp", "functional", ".clamp(*SIMILARITY_RANGE)", ""),
    ("sum instead of mean over the pairs", "functional", "values.sum() / max(values.numel(), 1)", "values.sum()"),
    ("no pair gives NaN", "functional", "values.sum() / max(values.numel(), 1)", "values.mean()"),
    ("images not brought to CLIP's statistics", "regularizer", "images * host_std + host_mean - clip_mean) / clip_std", "images * 1.0)"),
    ("autocast reaches the similarities", "functional", "torch.autocast(a.device.type, enabled=False)", "torch.no_grad()"),
    ("autocast reaches CLIP", "clip", "return torch.autocast(self.device.type, enabled=False)", "return torch.no_grad()"),
    ("prompt vectors one place too late", "clip", "embedded[:, : layout.start], prompts, embedded[:, end:]", "embedded[:, : layout.start + 1], prompts, embedded[:, end + 1 :]"),
    ("prompt cropped before the end of text", "clip", "ids[: end + 1], start", "ids[:end], start"),
    ("prompts after an interrupt begin anew", "prompt_learning", "        if state is not None:", "        if False:"),
    ("every epoch in the same order", "prompt_learning", "_generator(seed, epoch)", "_generator(seed, 0)"),
    ("no cosine schedule", "prompt_learning", "                schedule.step()\n", ""),
    ("another CLIP's prompts accepted", "prompts", ">= _SAME_CLIP", ">= -2"),
    ("code in a prompts file is run", "prompts", "weights_only=True", "weights_only=False"),
    ("parts all weighed alike", "parts", "if bool((factors == factors[0]).all()):", "if True:"),
    ("ranks averaged whatever their pairs", "distributed", "return world_size() * count / max(float(total), 1.0)", "return 1.0"),
    ("a repeated image counted twice", "prompt_learning", "first.setdefault(pair, i)", "first[i] = i"),
    ("scores on a threshold counted above it", "cams/evaluation", "values > cv2.LUT", "values >= cv2.LUT"),
    ("the later of two equal CAMs wins", "cams/evaluation", "(plane > highest)", "(plane >= highest)"),
    ("files of older CAMs are kept", "files", "return 0 <= there - made < step", "return there <= made"),
    ("masks of other settings are kept", "cams/pseudo_masks", " and read_note(path) == note", ""),
    ("a verdict on few images", "cams/tables", "comparison.images < ENOUGH", "comparison.images < 1"),
    ("a pickle sets any state", "pickled", "if not isinstance(self.stack[-2], (_Array, _Dtype)):", "if False:"),
    ("code in a CAM file is run", "pickled", "raise pickle.UnpicklingError(f\"it asks for {module}.{name}, which is no array\")", "return super().find_class(module, name)"),
    ("the second order is lost in parts", "parts", "differentiable = torch.is_grad_enabled()", "differentiable = False"),
    ("parts scaled in half precision", "parts", "(factors[0] * gradient).to(x.dtype)", "factors[0].to(x.dtype) * gradient.to(x.dtype)"),
    ("parts see later prompts", "regularizer", "self._terms(images, some, wanted, prompts)", "self._terms(images, some, wanted, self.prompt_features() if prompts is not None else None)"),
    ("fused attention differentiated twice", "towers", "if ctx.fused and torch.is_grad_enabled():", "if False:"),
    ("clamped pairs not counted", "functional", "(similarities <= low) | ", ""),
    ("values are looked at in every step", "checks", "return not waits(device) or self._calls <= 3", "return True or self._calls <= 3"),
    ("values are looked at no more", "checks", "return not waits(device) or", "return"),
    ("two images share a name", "image_names", "        if first != path:", "        if False:"),
    ("an integer key loses COCO's zeros", "image_names", "else digits.zfill(12)", "else digits"),
    ("classes that differ in a hyphen become one", "checks", "None if _plain(name) in plain else k", "k"),
    ("a quote takes other rows along", "make_labels", "csv.reader([line], strict=True)", "csv.reader([line])"),
]  # fmt: skip


def main() -> int:
    """Tries every mutation, or those whose name holds a word that was given, and prints a line for each."""
    missed, chosen = 0, [m for m in MUTATIONS if not sys.argv[1:] or any(word in m[0] for word in sys.argv[1:])]
    for what, module, old, new in chosen:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
            path = copy / "semples_plugin" / f"{module}.py"
            source = path.read_text()
            if old not in source:
                raise SystemExit(f"{what}: {module}.py no longer holds {old!r}")
            path.write_text(source.replace(old, new))
            tests = [f"tests/test_{name}.py" for name in TESTS]
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
            # The copy must win over an editable install of the checkout.
            environment = {"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "HOME": folder}
            result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        caught = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", result.stdout, re.MULTILINE)
        missed += caught is None
        print(f"{what:42} {caught.group(1) if caught else 'NOT CAUGHT'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} mutations caught")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
