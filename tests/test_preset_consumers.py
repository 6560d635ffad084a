"""Every field of a preset reaches everyone who takes a preset, or stands below with the reason why it can't."""

import logging
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from conftest import build_frozen
from host_heads import ClimsHead, WeakTrHead
from test_adapters import parse

from semples_plugin import BackgroundPrompts, FrozenClip, LossWeights, Preset, load_preset, presets
from semples_plugin.adapters import clims, fma_wsss, weaktr

pytestmark = pytest.mark.filterwarnings("ignore")  # four images, and prompts that two steps don't settle

NAMES = ("train", "boat", "bird")
BASE = load_preset("voc").with_(
    class_names=NAMES, prompt_length=4, prompt_epochs=2, prompt_batch_size=2, prompt_lr=0.05, epochs=1, batch_size=2
)
OTHERS = {
    "class_names": ("cat", "dog", "cow"),
    "weights": LossWeights(2.0, 1.0, 0.5, 0.3, 0.7, 0.4),
    "lr": 1e-2,
    "prompt_lr": 0.02,
    "batch_size": 3,
    "prompt_batch_size": 3,
    "epochs": 2,
    "prompt_epochs": 3,
    "weight_decay": 0.5,
    "clip": ("ViT-B-16", "another"),
    "template": "an image of {}.",
    "prompt_length": 5,
    "prompt_init": "uniform",
    "prompt_std": 0.3,
    "suffix_ids": (13,),
    "text_term": "release",
    "renormalize": False,
    "mask_eps": 0.5,
    "prompt_mask_eps": 0.5,
    "align_corners": True,
    "refine_share": 0.3,
    "prompt_shared": True,
    "prompt_mask_tau": 0.3,
}
"""Another value of each field."""

WORDS = {"name": "for messages", "source": "for people", "aliases": "for `class_index`, which the user calls"}
OWN_LOOP = dict.fromkeys(("lr", "batch_size", "epochs"), "the host's options; its optimiser isn't the paper's AdamW")
UNUSED = {
    "weaktr": {},
    "clims": {**OWN_LOOP, **dict.fromkeys(("mask_eps", "prompt_mask_eps"), "sigmoid CAMs are masks already")},
    "fma": {
        **OWN_LOOP,
        **dict.fromkeys(("mask_eps", "prompt_mask_eps"), "in other units: raw Grad-CAMs reach 5e-4, LossItem has 1e-7"),
        "renormalize": "the images are CLIP-normalised",
    },
    "mmseg": {},
}


@pytest.fixture(scope="module")
def clip():
    return build_frozen()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]])
    return torch.randn(4, 3, 64, 64).clamp(-1, 1), labels


def of_weaktr(batch, folder, output):
    found = []
    for stage in presets.STAGES:
        torch.manual_seed(0)
        args = parse(weaktr.add_arguments, "--semples", stage, "--semples-prompts", str(folder / "p.safetensors"))
        args.nb_classes, args.lr, args.epochs, args.batch_size, args.weight_decay = 3, 7e-4, 7, 7, 0.07
        model = WeakTrHead(3, width=16, blocks=1, heads=1)
        args.reduction, args.semples_start = 4, str(folder / "start.pth")
        torch.save({"model": model.state_dict()}, args.semples_start)
        semples = weaktr.Training(args, model)
        if stage == "prompts":
            semples.learn_prompts([batch])
            continue
        semples.watch()
        model(batch[0])
        found.append(float(semples(torch.zeros(()), *batch).detach()))
    return found, output().out


def of_clims(batch, folder, output):
    found = []
    torch.manual_seed(0)
    model = ClimsHead(3)
    torch.save(model.state_dict(), folder / "start.pth")
    for stage in presets.STAGES:
        paths = ["--semples-prompts", str(folder / "p.safetensors"), "--semples-start", str(folder / "start.pth")]
        args = parse(clims.add_arguments, "--semples", stage, "--semples-terms", "all", *paths)
        semples = clims.Training(args, model.eval())
        if stage == "prompts":
            semples.learn_prompts(model, [{"img": batch[0], "label": batch[1]}])
        else:
            found.append(float(semples(batch[0], model(batch[0]), batch[1]).detach()))
    return found


def of_fma(batch, folder, output):
    torch.manual_seed(0)
    found, cams = [], (5e-4 * torch.randn(6, 8, 8)).requires_grad_()
    for stage in presets.STAGES:
        item = fma_wsss.LossItem(stage, prompts=folder / "p.safetensors", batches=1)
        if stage == "prompts":
            with pytest.raises(SystemExit):
                item(batch[0], cams, batch[1])
        else:
            found.append(float(item(batch[0], cams, batch[1]).detach()))
    return found


class Log(list):
    """Takes lines as a logger does."""

    def info(self, message, *values):
        self.append(message % values)

    warning = info


def of_mmseg(batch, folder, output):
    pytest.importorskip("mmseg", reason="needs semples-plugin[mmseg]")
    from mmengine.dataset import pseudo_collate
    from mmengine.runner import EpochBasedTrainLoop
    from mmengine.structures import LabelData
    from mmseg.registry import HOOKS, MODELS
    from mmseg.structures import SegDataSample

    import semples_plugin.adapters.mmseg  # noqa: F401, registers

    torch.manual_seed(0)
    model = MODELS.build({
        "type": "mmseg.CamSegmentor", "in_channels": 8, "num_classes": 3, "regularizer": {"preset": "voc"},
        "data_preprocessor": {"type": "mmseg.SegDataPreProcessor", "mean": [120.0] * 3, "std": [60.0] * 3,
                              "bgr_to_rgb": True, "size": (64, 64)},
        "backbone": {"type": "mmseg.ResNet", "depth": 18, "base_channels": 8, "stem_channels": 8, "num_stages": 1,
                     "strides": (1,), "dilations": (1,), "out_indices": (0,)},
    }).eval()  # fmt: skip
    model.classifier.weight.data.mul_(30)  # as if trained
    samples = []
    for i, label in enumerate(batch[1]):
        sample = SegDataSample(metainfo={"img_path": str(i)}, gt_image_labels=LabelData(data=label))
        samples.append({"inputs": (60 * batch[0][i] + 120).byte(), "data_samples": sample})
    log = Log()
    runner = SimpleNamespace(
        model=model, work_dir=str(folder), _resume=False, logger=log, hooks=[], max_epochs=3,
        train_loop=object.__new__(EpochBasedTrainLoop),
        train_dataloader=torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=pseudo_collate),
        optim_wrapper=SimpleNamespace(optimizer=torch.optim.AdamW(model.parameters(), lr=7e-4, weight_decay=0.07)),
    )  # fmt: skip
    hook = HOOKS.build({"type": "SemPLeSStages", "match": 7, "learning": {"progress": False}})
    hook.before_train(runner)
    data = model.data_preprocessor(pseudo_collate(samples), training=True)

    def losses():
        return {n: float(v) for n, v in model.loss(data["inputs"], data["data_samples"]).items()}

    found = [losses()]
    hook._learn_prompts(runner)
    (folder / "semples/prompts.safetensors").rename(folder / "p.safetensors")
    return [*found, losses()], [line for line in log if "trained by" in line]


CONSUMERS = {"weaktr": of_weaktr, "clims": of_clims, "fma": of_fma, "mmseg": of_mmseg}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_each_field_changes_what_a_consumer_of_presets_does(consumer, clip, batch, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(FrozenClip, "load", lambda *a, **_: asked.append(a) or clip)
    logging.getLogger("mmengine").setLevel(logging.ERROR)

    def run(preset: Preset, folder):
        folder.mkdir()
        monkeypatch.setitem(presets.PRESETS, "voc", preset)
        asked.clear()
        done = CONSUMERS[consumer](batch, folder, capsys.readouterr)
        prompts = BackgroundPrompts.load(folder / "p.safetensors")
        about = prompts.vectors.tolist(), prompts.suffix_ids, prompts.class_names
        return repr((done, about, set(asked))).replace(str(folder), "")

    assert set(OTHERS) | set(WORDS) == {each.name for each in fields(Preset)}
    before = run(BASE, tmp_path / "base")
    assert before == run(BASE, tmp_path / "again")  # nothing else makes a difference
    unchanged = {name for name, value in OTHERS.items() if run(BASE.with_(**{name: value}), tmp_path / name) == before}
    assert unchanged == set(UNUSED[consumer])
