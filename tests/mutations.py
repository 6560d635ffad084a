"""Breaks the library on purpose, one line at a time, and says which test notices: `python tests/mutations.py [WORD ...]`.

Each mutation is made in a copy of the checkout. A mutation that no test catches makes the exit status 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("functional", "masks", "write_cams", "clip", "fast_towers", "prompts", "regularizer", "refine_strength", "prompt_learning", "work_dir", "waits", "open_clip", "presets", "class_names",
         "image_names", "image_labels", "make_labels", "safe_pickle", "atomic_files", "cams", "cam_files", "cam_folders", "pseudo_masks",
         "strata", "report", "patching", "clip_loading", "doctor", "adapters", "weaktr_checkpoints", "preset_consumers", "distributed", "compiled", "part_size", "prompt_gains")  # fmt: skip

OWN = {  # modules whose tests are called otherwise
    "compat/needs/check": "doctor",
    "compat/needs/data_check": "doctor",
    "utils/git": "run",
    "demo/training": "demo",
    "prompt_learning/learn": "prompt_learning",
    "prompt_learning/epochs": "prompt_learning",
    "prompt_learning/walk": "prompt_learning",
    "prompt_learning/work_dir": "work_dir",
    "prompt_learning/parts": "work_dir",
    "prompt_learning/feature_store": "work_dir",
    "clip/frozen": "clip",
    "clip/loading": "clip_loading",
    "clip/fast_towers": "open_clip",
    "clip/part_size": "part_size",
    "utils/chunked": "regularizer",
    "prompt_quality": "prompt_learning",
    "utils/checks": "regularizer",
    "evaluation/iou": "cams",
    "data/cam_files": "cam_files",
    "evaluation/folders": "cam_folders",
    "viz/tables": "cam_folders",
    "data/images": "cam_files",
    "adapters/host_options": "adapters",
    "adapters/weaktr_checkpoints": "weaktr_checkpoints",
    "adapters/mmseg_stages": "preset_consumers",
    "pair_encoder": "regularizer",
    "pair_terms": "regularizer",
    "diagnostics": "regularizer",
    "evaluation/pixel_counts": "cams",
    "evaluation/stored_counts": "cam_folders",
    "evaluation/comparison": "cam_folders",
    "evaluation/regions": "strata",
    "adapters/cam_inference": "write_cams",
    "data/new_cam_files": "write_cams",
    "data/dense_crf": "pseudo_masks",
    "adapters/mmseg_segments": "mmseg_configs",
    "adapters/mmseg_testing": "mmseg_configs",
    "mmseg_configs/train": "mmseg_configs",
    "recipes/jobs": "recipes",
    "recipes/run": "recipes",
    "bench/hosts": "bench",
    "bench/run": "bench",
    "bench/steps": "bench",
    "bench/tasks": "bench",
    "bench/whole": "bench",
    "bench/worker": "bench",
}

MUTATIONS = [
    ("sign of -log sim(v_f, u_f)", "pair_terms", "= functional.attract(", "= -functional.attract("),
    ("sign of -log(1 - sim(v_b, u_f))", "pair_terms", "= functional.repel(", "= -functional.repel("),
    ("sign of L_refine", "pair_terms", "= functional.refinement_loss(", "= -functional.refinement_loss("),
    ("sign of L_prompt^I", "functional", "return attract(prompt_background), repel", "return -attract(prompt_background), repel"),
    ("sign of L_prompt^T", "functional", "repel(prompt_label)", "-repel(prompt_label)"),
    ("text term left out", "regularizer", "text_term = functional.prompt_loss(", "text_term = functional.prompt_loss(0 * "),
    ("sign of the foreground in prompts", "regularizer", "= functional.repel(similarities[\"prompt_foreground\"])", "= -functional.repel(similarities[\"prompt_foreground\"])"),
    ("prompts kept from their backgrounds", "regularizer", "functional.similarity(u_b, foregrounds)", "functional.similarity(u_b, backgrounds)"),
    ("foregrounds of other pairs in (b)", "prompt_learning/feature_store", "self.foregrounds[rows] if", "self.foregrounds[: len(rows)] if"),
    ("hardened masks above 1", "masks", "(self._as_float32() / tau).clamp(max=1)", "self._as_float32() / tau"),
    ("each pair's class looked for on the device", "prompt_learning/feature_store", "foregrounds, class_index.cpu()", "foregrounds, class_index.to(backgrounds.device)"),
    ("a prompt's tokens copied in every step", "clip/frozen", "        if key not in self._layouts:\n            layout", "        if True:\n            layout"),
    ("statistics copied for every step in parts", "regularizer", "        snapshot._cached_statistics = {snapshot._statistics_key(images): self._statistics(images)}\n", ""),
    ("prompts compared on the device", "prompts", "torch.compiler.is_compiling() or not waits(vectors.device)", "True"),
    ("sums of parts begin on the CPU", "utils/chunked", "torch.zeros((), device=x.device)", "torch.zeros(())"),
    ("kinds that take turns are checked in every step", "utils/checks", "        self._calls[kind] += 1\n", "        self._calls = Counter({kind: self._calls[kind] + 1})\n"),
    ("texts count as looked-at images in fp16", "clip/frozen", "is_due(values.device, what)", "is_due(values.device)"),
    ("CLIP is looked at when the caller said never", "pair_encoder", "        clip._checks.every = check_every\n", ""),
    ("labels waited for behind the model", "adapters/base", "            labels = labels.cpu()  # a device", "            labels = labels  # a device"),
    ("a path used where it doesn't pay", "clip/fast_towers", "in PATHS[path] and path not in _left_out", "in PATHS[path] or path not in _left_out"),
    ("a path that can't be taken away", "clip/fast_towers", " and path not in _left_out", ""),
    ("the last block computed for all tokens", "clip/fast_towers", "for block in blocks[:-1] if reads_one else blocks:", "reads_one = False\n    for block in blocks:"),
    ("attention as torch does it", "clip/fast_towers", "if not is_plain or not uses", "if True or not uses"),
    ("patches by a convolution", "clip/fast_towers", "if type(conv) is not nn.Conv2d or not", "if True or not"),
    ("other settings pass for a change", "clip/fast_towers", "    if kinds != {\"ResidualAttentionBlock\"} or not transformer.batch_first:\n        return False", "    if kinds != {\"ResidualAttentionBlock\"} or not transformer.batch_first:\n        _warn_of_change(blocks[0], \"of another kind\")\n        return False"),
    ("a changed tower isn't named", "clip/fast_towers", "    if missing:\n        _warn_of_change", "    if False:\n        _warn_of_change"),
    ("raw maps hardened", "masks", " and _unit_checks.is_due(self.maps.device, kind)", " and False"),
    ("lambda measured upside down", "diagnostics", "return refining.flatten(1).norm(dim=1) / matching.flatten(1).norm(dim=1)", "return matching.flatten(1).norm(dim=1) / refining.flatten(1).norm(dim=1)"),
    ("lambda measured by the weights of before", "regularizer", "{**match, \"loss_refine\": 1.0}, prompts)", "{**match, \"loss_refine\": 1.0}, prompts); terms[\"loss_refine\"] = self.weights.refine * terms[\"loss_refine\"]"),
    ("lambda measured by an unweighted L_match", "regularizer", "sum_of({name: weight * terms[name] for name, weight in match.items()})", "sum_of({name: terms[name] for name in match})"),
    ("lambda never fixed", "refine_strength", "return self._calls < MEASURED_CALLS", "return True"),
    ("lambda of other prompts kept", "refine_strength", "        return self._version == version_of(prompts.vectors)", "        return True"),
    ("each rank has a lambda of its own", "refine_strength", "for of_rank in gather(useful.tolist())", "for of_rank in [useful.tolist()]"),
    ("lambda of the last call alone", "refine_strength", "self._ratios += found", "self._ratios = found"),
    ("clamped pairs measured", "refine_strength", "ratios[(ratios > 0) & ratios.isfinite()]", "ratios.nan_to_num(1e-30).clamp(1e-30)"),
    ("lambda measured in validation", "regularizer", "self._prompts is not None and torch.is_grad_enabled():", "self._prompts is not None:"),
    ("CLIP thawed", "clip/frozen", "self.model.eval().requires_grad_(False)", "self.model.eval().requires_grad_(True)"),
    ("CLIP left in training mode", "clip/frozen", "self.model.eval().requires", "self.model.requires"),
    ("masks detached", "pair_encoder", "masks.resized(*self", "masks.detach().resized(*self"),
    ("min and max detached", "masks", "maps.amin((1, 2), keepdim=True), maps.amax", "maps.detach().amin((1, 2), keepdim=True), maps.detach().amax"),
    ("prompts not learned", "prompt_learning/epochs", "        self.optimizer.step()\n", ""),
    ("prompts learned on the foreground", "pair_encoder", "return torch.cat(foregrounds), torch.cat(backgrounds)", "return torch.cat(backgrounds), torch.cat(foregrounds)"),
    ("prompts learned by refinement", "prompts", "        with torch.no_grad():\n            parts =", "        if True:\n            parts ="),
    ("prompts kept when they changed", "prompts", "return not (compares_values and not torch.equal(self.vectors, vectors.detach()))", "return True"),
    ("wrong class index", "masks", "cls(cams[image_index, class_index], image_index, class_index", "cls(cams[image_index, class_index], image_index, class_index.roll(1)"),
    ("wrong image index", "masks", "cls(cams[image_index, class_index], image_index,", "cls(cams[image_index, class_index], image_index.roll(1),"),
    ("foreground and background swapped", "masks", "torch.cat([fill + difference, pairs - difference])", "torch.cat([pairs - difference, fill + difference])"),
    ("no clamp", "functional", ".clamp(*SIMILARITY_RANGE)", ""),
    ("sum instead of mean over the pairs", "functional", "values.sum() / max(values.numel(), 1)", "values.sum()"),
    ("no pair gives NaN", "functional", "values.sum() / max(values.numel(), 1)", "values.mean()"),
    ("images not brought to CLIP's statistics", "pair_encoder", "images * host_std + host_mean - clip_mean) / clip_std", "images * 1.0)"),
    ("autocast reaches the similarities", "functional", "torch.autocast(a.device.type, enabled=False)", "torch.no_grad()"),
    ("autocast reaches CLIP", "clip/frozen", "return torch.autocast(self.device.type, enabled=False)", "return torch.no_grad()"),
    ("prompt vectors one place too late", "clip/frozen", "embedded[:, : layout.start], prompts, embedded[:, end:]", "embedded[:, : layout.start + 1], prompts, embedded[:, end + 1 :]"),
    ("prompt cropped before the end of text", "clip/frozen", "ids[: end + 1], start", "ids[:end], start"),
    ("prompts after an interrupt begin anew", "prompt_learning/epochs", "        if state is not None:", "        if False:"),
    ("every epoch in the same order", "prompt_learning/epochs", "_generator(self.options.seed, epoch)", "_generator(self.options.seed, 0)"),
    ("no cosine schedule", "prompt_learning/epochs", "        self.schedule.step()\n", ""),
    ("another CLIP's prompts accepted", "prompts", ">= _SAME_CLIP", ">= -2"),
    ("parts all weighed alike", "utils/chunked", "if not differentiable and bool((factors == factors[0]).all()):", "if not differentiable:"),
    ("ranks averaged whatever their pairs", "utils/distributed", "return world_size() * count / total.clamp(min=1.0)", "return 1.0"),
    ("a repeated image counted twice", "prompt_learning/walk", "return torch.from_numpy(first if are_ordered else np.sort(first))", "return torch.arange(len(names))"),
    ("scores on a threshold counted above it", "evaluation/pixel_counts", "values > cv2.LUT", "values >= cv2.LUT"),
    ("the later of two equal CAMs wins", "evaluation/pixel_counts", "(plane > highest)", "(plane >= highest)"),
    ("files of older CAMs are kept", "utils/atomic_files", "return 0 <= source_time - target_time < resolution", "return source_time <= target_time"),
    ("a verdict on few images", "viz/tables", "comparison.images < MIN_IMAGES_FOR_BOOTSTRAP", "comparison.images < 1"),
    ("an old run's epochs go on with other features", "prompt_learning/learn", 'settings["features"] = features.digest', 'settings["features"] = ""'),
    ("prompts of all classes encoded at once", "prompts", "device=vectors.device).split(TEXTS_AT_ONCE)", "device=vectors.device).split(2**40)"),
    ("texts of all classes encoded at once", "clip/frozen", "ids.split(TEXTS_AT_ONCE)", "ids.split(2**40)"),
    ("flipped bits in features are read", "prompt_learning/parts", 'is_whole = written["digest"] == _digest_of(content, data) and', "is_whole ="),
    ("damage in the middle passes for a kill", "prompt_learning/parts", "        if lost:\n", "        if False:\n"),
    ("batches that a kill cut short pass for whole", "prompt_learning/parts", "            lost += 1\n            continue", "            block = json.loads(line)['content']"),
    ("a journal's line before its rows", "prompt_learning/parts", "            self._data.flush()\n", ""),
    ("rows of another part", "prompt_learning/parts", "start = len(self._names) * PART_STRIDE", "start = 0"),
    ("rows of another rank's parts", "prompt_learning/parts", "numbers.get(name, -1) for name in names", "0 for name in names"),
    ("features at any length", "prompt_learning/parts", "F.normalize(half.detach().float(), dim=1)", "half.detach().float()"),
    ("NaN on disk is read", "prompt_learning/parts", " or not np.isfinite(np.frombuffer(data, _ROW_TYPE)).all()", ""),
    ("parts that nobody needs stay", "prompt_learning/work_dir", "        parts.remove(keep={name for name, _ in features.parts})\n", ""),
    ("older parts are overlooked", "prompt_learning/work_dir", 'if any(path.is_file() for path in self.path.glob(f"{PART_PREFIX}*.pt")):', "if False:"),
    ("features of a shortened part are used", "prompt_learning/work_dir", ' or any(whole.get(name, 0) < rows for name, rows in index["parts"])', ""),
    ("foregrounds on disk for backgrounds", "prompt_learning/feature_store", "return Pairs(features[:, 0], v_f,", "return Pairs(features[:, -1], v_f,"),
    ("all features on disk at once", "prompt_learning/feature_store", "torch.arange(len(self)).split(CHUNK):\n            yield", "torch.arange(len(self)).split(2**40):\n            yield"),
    ("features stay in memory beside the folder", "prompt_learning/walk", "    if folder.parts is None and features is not None:", "    if features is not None:\n        walked.kept = [*getattr(walked, 'kept', []), features]\n    if folder.parts is None and features is not None:"),
    ("chunks of one rank for another's", "utils/distributed", "        start += count\n", ""),
    ("ranks on machines of their own get nothing", "prompt_learning/parts", "write = self.leads and sizes[name] < size", "write = False"),
    ("diverged prompts are saved", "prompt_learning/epochs", " and bool(self.prompts.vectors.isfinite().all())", ""),
    ("seed lost in the state dict", "prompts", '            "seed": self.seed,\n', ""),
    ("separation upside down", "prompt_quality", "near > far", "near < far"),
    ("the second order is lost in parts", "utils/chunked", "differentiable = torch.is_grad_enabled()", "differentiable = False"),
    ("parts scaled in half precision", "utils/chunked", "(factors[0] * gradient).to(x.dtype)", "factors[0].to(x.dtype) * gradient.to(x.dtype)"),
    ("padding counted in the sum", "functional", "torch.where(counted, values, 0.0).sum()", "values.sum()"),
    ("padding counted in the number", "functional", "counted.sum().clamp(min=1)", "len(counted)"),
    ("padding taken for pairs", "compiled", "torch.arange(size, device=maps.device) < count", "torch.arange(size, device=maps.device) < size"),
    ("a third of a graph is padding", "compiled", "_STEPS = (4, 5, 6)", "_STEPS = (4, 6)"),
    ("images of other pairs compiled", "compiled", "images[image_index]", "images[image_index.roll(1)]"),
    ("graphs of all sizes share torch's limit", "compiled", "torch.compile(copied,", "torch.compile(terms,"),
    ("graphs break", "compiled", '{"fullgraph": True, "dynamic": False,', '{"dynamic": False,'),
    ("a compiled CLIP thawed", "compiled", "        clip.freeze()\n", ""),
    ("overflow compiled away", "compiled", "            clip.check_finite(values, \"images\")\n", "            pass\n"),
    ("graphs differentiated twice", "regularizer", "        snapshot._compiled = None", "        snapshot._compiled"),
    ("parts padded beyond max_pairs", "compiled", "return padded if most is None or count > most else min(padded, most)", "return padded"),
    ("weights counted as kept by a pair", "clip/part_size", " if place not in weights", ""),
    ("auto fills a GPU to the brim", "clip/part_size", "GPU_SHARE * free_bytes(clip.device)", "free_bytes(clip.device)"),
    ("auto looks at a GPU's memory once", "clip/part_size", "if not self._looks.is_due(clip.device, (clip.device, kind)):", "if self._measured is not None:"),
    ("auto isn't for (b)", "pair_encoder", "size = self._most_pairs(images, masks)\n        foregrounds", "size = len(masks)\n        foregrounds"),
    ("parts see later prompts", "regularizer", "snapshot._terms(images, part, weights, prompts)", "snapshot._terms(images, part, weights, self.prompt_features() if prompts is not None else None)"),
    ("folded batch norms are not compared", "clip/fast_towers", "if pairs and torch.allclose(folded(image), visual.eval()(image), rtol=1e-4, atol=1e-5):", "if pairs:"),
    ("fused attention differentiated twice", "clip/fast_towers", "if ctx.fused and torch.is_grad_enabled():", "if False:"),
    ("clamped pairs not counted", "functional", "(similarities <= low) | ", ""),
    ("values are looked at in every step", "utils/checks", "return not waits(device) or calls <= 3", "return True or calls <= 3"),
    ("values are looked at no more", "utils/checks", "return not waits(device) or", "return"),
    ("two images share a name", "data/image_names", "        if first != path:", "        if False:"),
    ("an integer key loses COCO's zeros", "data/image_names", "else digits.zfill(12)", "else digits"),
    ("classes that differ in a hyphen become one", "utils/checks", "None if key in simplified else k", "k"),
    ("a quote takes other rows along", "data/make_labels", "csv.reader([line], strict=True)", "csv.reader([line])"),
    ("code in a file is run", "utils/safe_pickle", "raise pickle.UnpicklingError(f\"it asks for {shown(f'{module}.{name}')}, which is no array\")", "return super().find_class(module, name)"),
    ("a pickle sets any state", "utils/safe_pickle", "if not isinstance(self.stack[-2], (_Array, _Dtype, _State)):", "if False:"),
    ("references in a pickle aren't counted", "utils/safe_pickle", "        self.left -= size\n", ""),
    ("a tensor larger than its storage", "utils/safe_pickle", "if array.nbytes > len(record.data):", "if False:"),
    ("an npz is unpacked at any size", "data/cam_files", "        _check_size(path, maps, itemsize)\n", ""),
    ("pictures of any format", "data/images", "Image.open(path, formats=formats)", "Image.open(path)"),
    ("torch's words for a full disk", "utils/atomic_files", "except (OSError, RuntimeError, SafetensorError)", "except OSError"),
    ("masks of other settings are kept", "data/pseudo_masks", " or read_note(path) != note", ""),
    ("names of classes bring torch", "data/image_labels", "from semples_plugin.data.class_names import CLASS_NAMES", "from semples_plugin.presets import PRESETS; CLASS_NAMES = {n: p.class_names for n, p in PRESETS.items()}"),
    ("CAMs of another class list pass unnoticed", "evaluation/folders", "if 2 * annotated < winning:", "if 2 * annotated < 0 * winning:"),
    ("a gain of 0.02 points is praised", "viz/tables", "abs(gain) < MIN_GAIN", "abs(gain) < 0"),
    ("files left half patched", "adapters/patching", "if not _put_back(file, *old)]", "if False]"),
    ("pixels beside the patches seen", "clip/fast_towers", "images[..., : images.shape[2] // high * high, : images.shape[3] // wide * wide]", "images"),
    ("a folder without weights filled at random", "clip/loading", "if not any(file.suffix in (\".safetensors\", \".bin\", \".pth\") for file in folder.iterdir()):", "if False:"),
    ("doctor takes links that lead nowhere for images", "compat/needs/data_check", "if not e.is_symlink() or Path(e.path).exists()", "if e.name"),
    ("doctor takes labels of any number of columns", "compat/needs/data_check", "if columns != expected:", "if False:"),
    ("doctor takes the page of a download for weights", "compat/needs/check", "if not file.read(2).startswith(_MAGIC):", "if not file.read(2):"),
    ("a folder within another repository is a checkout", "utils/git", "if Path(root).resolve() != Path(folder).resolve():", "if False:"),
    ("doctor takes CLIP as it is", "cli/doctor", "print(f\"CLIP      {_describe(FrozenClip.load(clip, pretrained))}\")", "print(clip)"),
    ("the preset's schedule of (b) dropped in mmseg", "adapters/mmseg_stages", "return {**preset.learning_options(), **self.learning}", "return self.learning"),
    ("(b) makes its masks with the eps of (a)", "presets", 'return self.prompt_mask_eps if stage == "prompts" else self.mask_eps', "return self.mask_eps"),
    ("corners never aligned", "presets", '"align_corners": self.align_corners,', '"align_corners": False,'),
    ("processes that nobody averages accepted", "adapters/host_options", "if world_size() > 1 and not isinstance(model, DistributedDataParallel):", "if False:"),
    ("weights of another pooling accepted", "adapters/weaktr_checkpoints", "(pooling is not None and pooling != args.pool_type)", "False"),
    ("weights of another reduction left to torch", "adapters/weaktr_checkpoints", "hidden != int(channels / args.reduction)", "False"),
    ("prompts that are not learned pass for learned", "adapters/host_options", "and not unlearned and not Path(", "and not Path("),
    ("a shared prompt learns from one class", "prompt_learning/epochs", "gradient.copy_(gradient.sum(dim=0).expand_as(gradient))", "gradient.copy_(gradient[:1].expand_as(gradient))"),
    ("masks of (b) are never hardened", "prompt_learning/walk", "if mask_tau == 1:", "if True:"),
    ("shared prompts start apart", "prompt_learning/epochs", "        if options.shared:\n            _assign", "        if False:\n            _assign"),
    ("a batch taken for another one", "prompt_learning/work_dir", "return digest(images, masks.maps,", "return digest(images[:, :, ::2, ::2], masks.maps,"),
    ("flipped bits are read", "prompt_learning/work_dir", "if written_digest != digest(content) or not", "if not"),
    ("another image tower's features", "prompt_learning/learn", "[prompts.signature, image_signature(regularizer.clip)]", "[prompts.signature]"),
    ("foreign quality on unlearned vectors", "prompts", "and vectors.shape == self.vectors.shape:", "or True:"),
    ("a share of classes", "prompt_quality", "sum(separation * weight for", "sum(separation for"),
    ("removes what is being written", "utils/atomic_files", "temporary.stat().st_ctime > _LEFT_AFTER", "temporary.stat().st_ctime > -1"),
    ("a flipped view left flipped", "adapters/cam_inference", "maps = maps.flip(2) if flipped else maps", "maps = maps"),
    ("a model in training mode makes the CAMs", "adapters/cam_inference", "with evaluating(module) as device:", "with torch.no_grad(), __import__('contextlib').nullcontext(torch.device('cpu')) as device:"),
    ("CAMs of two checkpoints in one folder", "data/new_cam_files", "if earlier.get(key) != settings[key]", "if key != 'model' and earlier.get(key) != settings[key]"),
    ("a class left out of the CRF shifts the others", "data/dense_crf", "return classes[_marginals(unary, image, iterations, kernels).argmax(0)].astype(np.uint8)", "return _marginals(unary, image, iterations, kernels).argmax(0).astype(np.uint8)"),
    ("the scores of one view", "adapters/mmseg_segments", "mean += (scores.softmax(0)", "mean = (scores.softmax(0)"),
    ("masks counted before the CRF", "adapters/mmseg_segments", '{**sample, "pred_sem_seg": {"data": labels[None]}}', "sample"),
    ("the last weights of a copied folder are the first one's", "mmseg_configs/train", "return str(here) if here.is_file() else noted", "return noted"),
    ("ground truth asked of the test server's images", "adapters/mmseg_testing", "data.pipeline = without_annotations(data.pipeline)", "pass"),
    ("splits every line", "data/image_names", "all(map(_ENDINGS.search, parts))", "True"),
    ("empty CAMs: those that never win", "evaluation/iou", "empty += bool(cam.max(initial=-np.inf) <= self.thresholds.astype(cam.dtype)[0])", "empty += 1"),
    ("strata: background is an object", "evaluation/regions", "(counts.classes > 0) & (counts.annotated > 0)", "counts.annotated > 0"),
    ("strata: classes of CAMs alone are objects", "evaluation/regions", "(counts.classes > 0) & (counts.annotated > 0)", "counts.classes > 0"),
    ("strata: area in all images' pixels", "evaluation/regions", "areas[i] / measured[i].pixels", "areas[i] / measured[0].pixels"),
    ("strata: the left border forgotten", "evaluation/regions", "mask[::-1], mask.T, mask.T", "mask[::-1], mask.T[::-1], mask.T"),
    ("strata: ignored pixels surround", "evaluation/regions", " & (mask[window] != IGNORED)", ""),
    ("strata: lightness in bytes", "evaluation/regions", "distances[0] * 100 / 255", "distances[0]"),
    ("strata: image and mask of two sizes", "evaluation/regions", "if image.shape[:2] != mask.shape:", "if False:"),
    ("strata: the best setting, not the chosen", "evaluation/regions", "    t = evaluation.chosen\n", "    t = evaluation.sweep.best\n"),
    ("strata: quartiles from the largest", "evaluation/strata", "np.searchsorted(edges, values), -1)", "3 - np.searchsorted(edges, values), -1)"),
    ("strata: a sample of objects, not of images", "evaluation/strata", "drawn[:, :-1] / drawn[:, -1:]", "drawn[:, :-1] / sums.sum(0)[:, -1:]"),
    ("strata: gains of two draws", "evaluation/strata", "_interval(means[e] - means[0])", "_interval(means[e] - means[0][::-1])"),
    ("strata: pooled IoU without false positives", "evaluation/strata", "hits / (annotated + predicted - hits)", "hits / annotated"),
    ("strata: few images not marked", "evaluation/strata", "self.images < MIN_IMAGES_FOR_BOOTSTRAP", "self.objects < 0"),
    ("percent as thresholds", "evaluation/iou", "scores[0] >= 0 and scores[-1] <= 1 and ", ""),
    ("one statistic without the other", "pair_encoder", "(input_mean is None, input_mean is IMAGENET_MEAN) != (input_std is None, input_std is IMAGENET_STD)", "(input_mean is None) != (input_std is None)"),
    ("parts have later settings", "regularizer", "snapshot = copy.copy(self)", "snapshot = self"),
    ("a moved folder is made anew", "recipes/jobs", "path.sub(lambda _: job.settings.texts[\"runs\"], old) == new", "old == new"),
    ("a part of a path moves", "recipes/jobs", "(?![\\w.-])", ""),
    ("links of a moved folder are kept", "recipes/jobs", "if job.step.placed and record.folder != str(job.folder) and not newer:", "if False:"),
    ("all that builds on moved links is made anew", "recipes/run", "moved_from.ended if moved_from and record.status == DONE else _now()", "_now()"),
    ("an interrupted start leaves its command behind", "recipes/run", "with _interrupts_wait():", "if True:"),
    ("an interrupt of a start is forgotten", "recipes/run", "    if waiting:\n", "    if False:\n"),
    ("a queue's signal between two commands kills", "recipes/run", "with _signals_interrupt(), _only_one(folder) as lock:", "with _only_one(folder) as lock:"),
    ("another model's features", "prompt_learning/work_dir", "return from_first(f\"weights {digest(*weights)}\")", "return \"weights\""),
    ("bench: CLIMS's own CLIP frozen", "bench/hosts", "clip.model.requires_grad_()", "clip.model.requires_grad_(False)"),
    ("bench: a host's step without SemPLeS's loss", "bench/hosts", "return loss + adapter.loss(images, fine(), labels)", "return loss + 0 * fine().sum()"),
    ("bench: a fast path that stays", "bench/steps", "with fast_towers.without(path):", "with fast_towers.without():"),
    ("bench: values checked all the same", "bench/steps", "CheckSchedule.is_due = lambda *_: checks", "CheckSchedule.is_due = lambda *_: True"),
    ("bench: a profile of the forward pass alone", "bench/whole", "{**spec, \"step\": \"refinement\"}", "{**spec, \"step\": \"walk\"}"),
    ("bench: steps one after the other", "bench/worker", "        for step in steps.values():\n            step.seconds", "        for step in [*steps.values()][:1]:\n            step.seconds"),
    ("bench: a compiled step that isn't", "bench/steps", "        regularizer.compile(**spec[\"compile\"])\n", "        pass\n"),
    ("bench: --pairs for refinement alone", "bench/tasks", "list(pairs or usual.get(kind, usual[\"cpu\"]))", "list((pairs if part == \"refinement\" else None) or usual.get(kind, usual[\"cpu\"]))"),
    ("bench: a bar that waits for its group", "bench/run", "                advance(float(", "                bool(float("),
    ("Ctrl-C says nothing of what is kept", "prompt_learning/learn", "(kept := folder.describe_kept()) and is_first()", "(kept := folder.describe_kept()) and False"),
    ("a work_dir that takes no file is walked for", "prompt_learning/work_dir", "            check_writable(\"work_dir\", self.path / STATE_FILE)", "            self.path.mkdir(parents=True, exist_ok=True)"),
    ("numpy's numbers in a run's settings", "prompt_learning/epochs", "            object.__setattr__(self, name, int(value))\n", ""),
    ("a shared prompt judged class by class", "prompt_learning/epochs", "describe_quality(history.quality, options.shared)", "describe_quality(history.quality)"),
    ("bench: a process that died ends the rest", "bench/run", "waiting.pop(0)", "waiting.clear()"),
    ("words taken for learned prompts", "prompts", 'if state.get("words"):', "if False:"),
    ("counts of all images in memory", "evaluation/folders", "counts = StoredCounts(judged())", "counts = dict(judged())"),
    ("counts of chosen images in memory", "evaluation/folders", "ChosenCounts(self.counts, names)", "{name: self.counts[name] for name in names}"),
    ("counts of images that weren't chosen", "evaluation/stored_counts", "        if name not in self._names:\n            raise KeyError(name)\n", ""),
    ("an image's counts read from the one before", "evaluation/stored_counts", "self._starts[name] = end", "self._starts.setdefault(name, end)"),
    ("a worker's death taken for a full disk", "evaluation/stored_counts", "if error.errno is None or error.filename is not None:", "if error.filename is not None:"),
    ("a file of counts with a name", "evaluation/stored_counts", "tempfile.TemporaryFile()", "tempfile.NamedTemporaryFile(delete=False)"),
    ("bootstrap: images drawn once at most", "evaluation/comparison", "draws[self._image] * self._pixels", "(draws[self._image] > 0) * self._pixels"),
    ("names of pairs copied", "prompt_learning/walk", "        return self.names\n", "        return [*self.names]\n"),
    ("names of pairs kept after the walk", "prompt_learning/walk", "        walked.names = None  #", "        #"),
    ("pairs after named ones without names of their own", "prompt_learning/walk", "range(len(self.names), len(self.class_index))]\n", "range(len(self.names), len(self.class_index)) if not self.names]\n"),
    ("chart: ties ranked as they come", "viz/prompt_gains", "return ((2 * last - counts + 1) / 2)[position]", "return last[position].astype(float)"),
    ("chart: orders on one side alone", "viz/prompt_gains", "np.abs(orders @ ranks_a) >= abs(ranks_b @ ranks_a)", "orders @ ranks_a >= ranks_b @ ranks_a"),
    ("report: refined over the first", "viz/report", "evaluations[k] for k in refined", "evaluations[k] for k in (0, -1)"),
    ("separation of classes, not of pairs", "prompt_learning/epochs", "sum(share * count for share, count in counted) / pairs", "sum(share for share, _ in counted) / len(counted)"),
    ("demo: labels' loss in no row", "demo/training", "            if ROWS[name].labels:\n", "            if False:\n"),
    ("demo: one prompt for all in no row", "demo/training", "shared=row.shared", "shared=False"),
]  # fmt: skip


def main() -> int:
    """Tries every mutation, or those whose name holds a word that was given, and prints a line for each."""
    chosen = [m for m in MUTATIONS if not sys.argv[1:] or any(word in m[0] for word in sys.argv[1:])]
    if not chosen:
        print(f"no mutation's name holds {' or '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = []
        for mutation, test in zip(chosen, pool.map(noticed_by, chosen), strict=True):
            print(f"{mutation[0]:46} {test or 'NOT CAUGHT'}", flush=True)
            caught.append(test)
    print(f"{len(chosen) - caught.count('')} of {len(chosen)} mutations caught")
    return int("" in caught)


def noticed_by(mutation: tuple[str, str, str, str]) -> str:
    """The first test that fails with a mutation in place; those of the mutated module go first."""
    what, module, old, new = mutation
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        path = copy / "semples_plugin" / f"{module}.py"
        source = path.read_text()
        if old not in source:
            raise SystemExit(f"{what}: {module}.py no longer holds {old!r}")
        path.write_text(source.replace(old, new))
        own = OWN.get(module, Path(module).name)
        names = sorted({*TESTS, own}, key=lambda name: (name != own, TESTS.index(name) if name in TESTS else -1))
        tests = [f"tests/test_{name}.py" for name in names]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        # The copy must win over an editable install of the checkout.
        environment = {"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "HOME": folder}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", result.stdout, re.MULTILINE)
    return found.group(1) if found else ""


if __name__ == "__main__":
    raise SystemExit(main())
