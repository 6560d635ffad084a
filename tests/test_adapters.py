import argparse
import re
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_heads import ClimsHead, FmaHead, WeakTrHead

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, SemPLeSRegularizer
from semples_plugin.adapters import clims, fma_wsss, host_options, weaktr
from semples_plugin.adapters.base import CamAdapter, evaluating, wrap
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.network import normalize_images
from semples_plugin.presets import load_preset
from semples_plugin.regularizer import sum_of

PATCHES = Path(__file__).resolve().parent.parent / "examples" / "patches"
# Six images don't show every class, and two epochs don't settle a prompt.
pytestmark = pytest.mark.filterwarnings(
    "ignore:no image shows",
    "ignore:after . of 2 epochs",
    "ignore:.b. did not go well",
    "ignore:the CAMs span",
    "ignore:refinement with prompts",
    "ignore:the masks carry no gradient",
)
SHORT = {"epochs": 2, "progress": False}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def batch():
    scenes = make_scenes(6, seed=3)
    return normalize_images(scenes.images), torch.from_numpy(scenes.labels).float()


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("demo")


def clims_head() -> ClimsHead:
    return ClimsHead(8).freeze_stem()


def regularizer_with_prompts(clip, **settings) -> SemPLeSRegularizer:
    prompts = BackgroundPrompts(8, 4, clip.text_width, std=clip.token_std)
    return SemPLeSRegularizer(clip, OBJECTS, prompts=prompts, **settings)


def moved(model, loss) -> set[str]:
    """Names of the parameters that a backward pass reaches."""
    model.zero_grad()
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("kind", ["logits", "sigmoid", "relu", "min-max"])
def test_a_kind_of_cams_becomes_masks(clip, batch, kind):
    images, labels = batch
    cams = torch.randn(6, 8, 16, 16)
    cams = {"sigmoid": cams.sigmoid(), "min-max": cams.abs()}.get(kind, cams).requires_grad_()
    pairs = cams[labels == 1]
    low, high = pairs.amin((1, 2), keepdim=True), pairs.amax((1, 2), keepdim=True)
    expected = {
        "logits": pairs.sigmoid(),
        "sigmoid": pairs,
        "relu": pairs.relu() / (high + 1e-5),
        "min-max": (pairs - low) / (high - low + 0.1),  # the default of ClassMasks.normalized
    }
    adapter = CamAdapter(regularizer_with_prompts(clip), kind, scale=3.0)
    masks = adapter.masks(cams, labels)
    torch.testing.assert_close(masks.maps, expected[kind], atol=1e-6, rtol=0)
    loss = adapter.loss(images, cams, labels)
    torch.testing.assert_close(loss, 3 * sum_of(adapter.regularizer(images, masks)))
    assert set(adapter.losses) == {"loss_match_foreground", "loss_match_background", "loss_refine"}
    assert sum(adapter.losses.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    assert not any(value.requires_grad for value in adapter.losses.values())


def test_wrap_serves_a_model_of_ones_own(clip, batch, tmp_path):
    images, labels = batch
    model = clims_head()
    model.features[0].eval()  # a user may have frozen a part: every mode comes back
    modes = [module.training for module in model.modules()]
    semples = wrap(model, regularizer_with_prompts(clip), "sigmoid")
    cams, loss = semples(images, labels)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert cams.shape == (6, 8, 16, 16) and moved(model, loss) == trained != set(dict(model.named_parameters()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = semples.learn_prompts([(images, labels)], tmp_path / "prompts.safetensors", **SHORT)
    assert sum(history.pairs) == labels.sum() and [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.safetensors"]
    BackgroundPrompts.load(tmp_path / "prompts.safetensors").check_belongs_to(clip, OBJECTS)
    with pytest.raises(ValueError, match="expected one of logits, sigmoid, relu, min-max"):
        wrap(model, semples.regularizer, "softmax")


def test_cams_of_another_kind_are_told_at_the_first_batch(clip, batch):
    _, labels = batch
    for kind, cams in {"logits": torch.rand(6, 8, 4, 4), "min-max": torch.randn(6, 8, 4, 4)}.items():
        adapter = CamAdapter(regularizer_with_prompts(clip), kind)
        with pytest.warns(UserWarning, match=f'kind="{kind}" got CAMs with.* is it "relu"'):
            adapter.masks(cams, labels)
        adapter.masks(cams, labels)  # once is enough


def test_a_loader_of_another_kind_is_named(clip, batch, tmp_path):
    images, labels = batch
    semples = wrap(clims_head(), regularizer_with_prompts(clip), "sigmoid")
    for wrong in ({"image": images, "label": labels}, (images, labels, labels, labels)):
        with pytest.raises(TypeError, match=r"expected pairs \(images, labels\), or .* got (dict|tuple); a loader"):
            semples.learn_prompts([wrong], tmp_path / "prompts.safetensors", **SHORT)
    assert list(tmp_path.iterdir()) == []  # no folder of a run that never began


def test_an_exception_gives_the_modes_and_gradients_back():
    model = clims_head().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


class TestClims:
    def test_the_mask_is_the_hosts_cam(self, clip, batch):
        images, labels = batch
        cams = clims_head()(images)
        masks = clims.ClimsAdapter(regularizer_with_prompts(clip)).masks(cams, labels)
        assert torch.equal(masks.maps, cams[labels == 1])

    def test_padding_is_in_neither_view_and_teaches_nothing(self, clip, batch):
        images, labels = batch
        images = images.clone()
        images[:, :, :, 40:] = 0  # CLIMS pads after it has normalised
        adapter = clims.ClimsAdapter(regularizer_with_prompts(clip, fill="black"))
        cams = torch.rand(6, 8, 64, 64)
        other = cams.clone()
        other[:, :, :, 40:] = torch.rand(6, 8, 64, 24)
        cams.requires_grad_()
        loss = adapter.loss(images, cams, labels)
        loss.backward()
        assert cams.grad[labels == 1][:, :, 40:].abs().max() < 1e-7 < cams.grad[labels == 1][:, :, :40].abs().max()
        torch.testing.assert_close(loss, adapter.loss(images, other, labels))
        plain = CamAdapter(adapter.regularizer, "sigmoid")
        assert (plain.loss(images, cams, labels) - plain.loss(images, other, labels)).abs() > 1e-4

    def test_it_reaches_what_the_host_trains(self, clip, batch):
        images, labels = batch
        model = clims_head()
        reached = moved(model, clims.ClimsAdapter(regularizer_with_prompts(clip)).loss(images, model(images), labels))
        assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestWeakTr:
    def test_the_hooked_cam_is_the_hosts(self, batch):
        model = WeakTrHead(8).eval()
        with weaktr.FineCam(model) as fine:
            _, cams, attention = model(batch[0], return_att=True)
            found = fine()
        expected = (attention[0][:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_in_training_it_is_the_same_pass(self, batch):
        model = WeakTrHead(8).train()
        with weaktr.FineCam(model) as fine:
            _, _, logits = model(batch[0])
            torch.testing.assert_close(fine().mean((2, 3)), logits, atol=1e-6, rtol=0)
            assert not torch.allclose(model(batch[0])[2], logits, atol=1e-6)  # another pass drops other paths

    @pytest.mark.parametrize("reach", weaktr.REACH)
    def test_gradients_reach_what_was_asked_for(self, clip, batch, reach):
        images, labels = batch
        model = WeakTrHead(8).train()
        adapter = weaktr.WeakTrAdapter(regularizer_with_prompts(clip), eps=1e-4)
        with weaktr.FineCam(model, reach) as fine:
            model(images)
            reached = moved(model, adapter.loss(images, fine(), labels))
        parts = {name.split(".")[0] for name in reached}
        assert parts == ({"head", "adaptive_attention_fusion"} if "head" in reach else {"adaptive_attention_fusion"})

    def test_nothing_is_left_behind(self, batch):
        model = WeakTrHead(8)
        with pytest.raises(KeyError), weaktr.FineCam(model) as fine:
            model(batch[0])
            raise KeyError
        assert not any(module._forward_hooks for module in model.modules()) and fine._attention is None
        with weaktr.FineCam(torch.nn.DataParallel(model)) as fine:
            with pytest.raises(RuntimeError, match="no forward pass"):
                fine()
            model(batch[0])
            fine()
            with pytest.raises(RuntimeError, match="no forward pass"):
                fine()

    def test_other_models_are_refused(self):
        with pytest.raises(TypeError, match="expected WeakTr's, with head; got ReLU"):
            weaktr.FineCam(torch.nn.ReLU())
        with pytest.raises(ValueError, match=r"head\+fusion, fusion"):
            weaktr.FineCam(WeakTrHead(8), "all")

    def test_masks_are_upsampled_before_they_are_normalised(self, clip, batch):
        cams = torch.rand(6, 8, 8, 8)
        masks = weaktr.WeakTrAdapter(regularizer_with_prompts(clip), eps=0.1).masks(cams, batch[1])
        pairs = torch.nn.functional.interpolate(
            cams[batch[1] == 1][:, None], (64, 64), mode="bilinear", align_corners=True
        )[:, 0]
        low, high = pairs.amin((1, 2), keepdim=True), pairs.amax((1, 2), keepdim=True)
        torch.testing.assert_close(masks.maps, (pairs - low) / (high - low + 0.1))


class TestFma:
    def test_second_order_gradients_reach_the_context_alone(self, clip, batch):
        images, labels = batch
        model = FmaHead(FrozenClip.load("demo"), OBJECTS)
        adapter = fma_wsss.FmaAdapter(regularizer_with_prompts(clip, input_mean=None, input_std=None))
        cams = model(images, labels)[0]
        assert cams.min() < 0 and cams.abs().max() < 0.1
        masks = adapter.masks(cams, labels)
        positive = cams.relu()
        low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
        torch.testing.assert_close(masks.maps, (positive - low) / (high - low + 1e-7), atol=1e-6, rtol=0)
        assert masks.maps.max() > 0.99 and masks.class_index.tolist() == labels.nonzero()[:, 1].tolist()
        assert moved(model, adapter.loss(images, cams, labels)) == {"ctx"}

    def test_half_precision_keeps_the_small_ones(self, clip, batch):
        labels = batch[1]
        cams = 5e-4 * torch.rand(int(labels.sum()), 8, 8)
        adapter = fma_wsss.FmaAdapter(regularizer_with_prompts(clip, input_mean=None, input_std=None))
        half, full = adapter.masks(cams.half(), labels).maps, adapter.masks(cams, labels).maps
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, atol=2e-3, rtol=0)
        with pytest.raises(ValueError, match="one map for each of the"):
            adapter.masks(cams[1:], labels)
        wide = torch.cat([labels, torch.zeros(len(labels), 2)], 1)  # another data set's: its classes come elsewhere
        with pytest.raises(ValueError, match="made from 10 label columns, but there are 8 class names"):
            adapter.loss(batch[0], cams, wide)
        with pytest.raises(ValueError, match="CLIP-normalised; give input_mean=None"):
            fma_wsss.FmaAdapter(regularizer_with_prompts(clip))

    def test_the_loss_item_goes_through_the_stages(self, clip, batch, tmp_path, monkeypatch, capsys):
        model, path = FmaHead(FrozenClip.load("demo"), OBJECTS), tmp_path / "prompts.safetensors"
        monkeypatch.setattr("semples_plugin.FrozenClip.load", lambda *a, **k: clip)
        images, labels = batch
        common = {"class_names": OBJECTS, "prompts": path, "learning": {"epochs": 2}}
        item = fma_wsss.LossItem("match", **common)
        assert moved(model, item(images, model(images, labels)[0], labels)) == {"ctx"}
        assert item.get_named_param_groups() == {}
        with pytest.raises(FileNotFoundError, match=r"needs the prompts of stage \(b\)"):
            fma_wsss.LossItem("refine", **common)
        with pytest.raises(ValueError, match="number of calls"):
            fma_wsss.LossItem("prompts", **common)
        for wrong in (2.5, "2"):
            with pytest.raises(TypeError, match="batches: expected an integer"):
                fma_wsss.LossItem("prompts", batches=wrong, **common)
        item = fma_wsss.LossItem("prompts", batches=2, **{**common, "prompts": tmp_path})
        with pytest.raises(IsADirectoryError, match="save_to: expected a file's path"):  # in its first call
            item(images, model(images, labels)[0], labels)
        item = fma_wsss.LossItem("prompts", batches=2, **common)
        assert moved(model, item(images, model(images, labels)[0], labels)) == set()
        with pytest.raises(SystemExit) as end:
            item(images, model(images, labels)[0], labels)
        assert end.value.code == 0 and f"wrote {path}" in capsys.readouterr().out

        class Writer(dict):
            def add_scalar(self, name, value, step):
                self[name] = value

        item, writer = fma_wsss.LossItem("refine", **common), Writer()
        item(images, model(images, labels)[0], labels)
        item.display(0, writer)
        assert set(writer) == {f"semples/loss_{n}" for n in ("match_foreground", "match_background", "refine")}

    def test_mistakes_in_its_options_are_named_before_the_run(self):
        for wrong, words in (
            ({"learning": {"epoch": 3}}, "learning: expected some of epochs, lr,.* got epoch; did you mean epochs"),
            ({"learning": {"epochs": 0}}, "epochs and batch_size of at least 1"),
            ({"mask_esp": 1}, "did you mean mask_eps"),
            ({"lr": 0.1}, "is prompt_lr"),
        ):
            with pytest.raises(ValueError, match=words):
                fma_wsss.LossItem("match", **wrong)
        item = fma_wsss.LossItem("match", weights={"refine": 0.5}, mask_eps=1e-5)
        assert item.preset.weights.refine == 0.5 and item.preset.stage_eps("match") == 1e-5
        assert item.preset.stage_eps("prompts") == 1e-7
        with pytest.raises(ValueError, match='"unlearned" stands for no file'):
            fma_wsss.LossItem("prompts", batches=1, prompts="unlearned")

    def test_its_weights_are_those_of_the_terms(self, clip, batch, tmp_path, monkeypatch):
        """Each of them, by name: without its weight a term has no part in the loss, or in what prompts learn."""
        monkeypatch.setattr("semples_plugin.FrozenClip.load", lambda *a, **k: clip)
        images, labels = batch
        cams = FmaHead(FrozenClip.load("demo"), OBJECTS)(images, labels)[0].detach()
        common = {"class_names": OBJECTS, "learning": SHORT, "prompt_length": 4}

        def terms(stage: str, **weights: float) -> dict[str, float]:
            item = fma_wsss.LossItem(stage, prompts="unlearned", weights=weights, **common)
            total = item(images, cams, labels)
            losses = {name: float(value) for name, value in item.adapter.losses.items()}
            assert float(total) == pytest.approx(sum(losses.values()))
            return losses

        plain = terms("refine")
        for name, term in {
            "foreground": "match_foreground",
            "background": "match_background",
            "refine": "refine",
        }.items():
            assert set(plain) - set(terms("refine", **{name: 0.0})) == {f"loss_{term}"}
            double = 2 * load_preset("voc").weights.__dict__[name]
            assert terms("refine", **{name: double})[f"loss_{term}"] == pytest.approx(2 * plain[f"loss_{term}"])

        def learned(**weights: float) -> torch.Tensor:
            path = tmp_path / "prompts.safetensors"
            item = fma_wsss.LossItem("prompts", batches=1, prompts=path, weights=weights, **common)
            with pytest.raises(SystemExit):
                item(images, cams, labels)
            return BackgroundPrompts.load(path).vectors

        both, image, text = learned(), learned(text=0.0), learned(image=0.0)
        assert not (torch.equal(both, image) or torch.equal(both, text) or torch.equal(image, text))
        torch.testing.assert_close(learned(image=1.0, text=0.02), both, atol=0, rtol=0)  # the preset's
        assert not torch.equal(learned(prompt_foreground=0.5), both)
        with pytest.raises(ValueError, match="weights: expected some of foreground, background, refine, image, text"):
            fma_wsss.LossItem("match", weights={"images": 0.0})

    def test_unlearned_prompts_are_random_fixed_and_warn_of_nothing(self, clip, batch, monkeypatch):
        monkeypatch.setattr("semples_plugin.FrozenClip.load", lambda *a, **k: clip)
        model = FmaHead(FrozenClip.load("demo"), OBJECTS)
        images, labels = batch
        losses = []
        for seed in (0, 0, 1):
            item = fma_wsss.LossItem("refine", prompts="unlearned", class_names=OBJECTS, prompt_length=4, seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                loss = item(images, model(images, labels)[0], labels)
            assert moved(model, loss) == {"ctx"} and item.adapter.regularizer.prompts.vectors.grad is None
            losses.append(float(item.adapter.losses["loss_refine"]))
        assert losses[0] == losses[1] != losses[2]


class GradCam(torch.nn.Module):
    """Second-order Grad-CAMs [P, h, w] of 5e-4, whose texts' context learns, in whatever precision they are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 4, 4).requires_grad_(False)
        self.text = torch.nn.Linear(16, 16).requires_grad_(False)
        self.ctx = torch.nn.Parameter(torch.randn(8, 16))

    def forward(self, images, labels):
        image_index, class_index = labels.nonzero(as_tuple=True)
        features = self.stem(images[image_index].to(self.stem.weight.dtype)).relu().detach().requires_grad_()
        logits = self.text(features.mean((2, 3))) @ self.text(self.ctx).T
        own = logits.softmax(1).gather(1, class_index[:, None]).sum()
        (gradient,) = torch.autograd.grad(own, features, create_graph=True)
        return (features * gradient.mean((2, 3), keepdim=True)).sum(1)


class _Tree(dict):
    """A config whose branches grow where they are asked for, as alchemy_cat's do."""

    def __init__(self, *_):
        super().__init__()

    def __getattr__(self, name):
        return self.setdefault(name, _Tree())

    __setattr__ = dict.__setitem__


def test_the_shipped_fma_config_trains_where_half_precision_overflows(clip, batch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "alchemy_cat", SimpleNamespace())
    tools = SimpleNamespace(Config=_Tree, IL=lambda make, priority=1: make)
    monkeypatch.setitem(sys.modules, "alchemy_cat.py_tools", tools)
    path = tmp_path / "voc/match/cfg.py"
    path.parent.mkdir(parents=True)
    path.write_text((PATCHES / "fma_wsss.py").read_text())
    shipped = runpy.run_path(str(path))["cfg"]
    assert shipped.model.ini.fp32 is True  # else CLIP itself is half precision
    images, labels = batch
    for amp in (shipped.amp.enabled, True):  # True: FMA-WSSS's own
        torch.manual_seed(0)
        model = GradCam()
        adapter = fma_wsss.FmaAdapter(SemPLeSRegularizer(clip, OBJECTS, input_mean=None, input_std=None))
        optimizer = torch.optim.SGD([model.ctx], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=amp)
        before = model.ctx.detach().clone()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.autocast("cpu", torch.float16, enabled=amp):
                cams = model(images, labels)
                loss = adapter.loss(images, cams, labels)
        assert 2e-4 < cams.detach().amax((1, 2)).median() < 2e-3  # as large as FMA-WSSS's
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert any("pos_cam is float16" in str(warning.message) for warning in caught) == amp
        assert bool((model.ctx - before).abs().max() > 1e-3) != amp  # a skipped step moves nothing


def parse(add, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    parser.add_argument("--hyper", default="10,24,1,0.2")
    for name in ("resume", "aa"):  # of WeakTr
        parser.add_argument(f"--{name}", default="")
    for name, value in {"color-jitter": 0.0, "reprob": 0.0, "lr": 5e-4, "weight-decay": 0.01}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    for name in ("batch-size", "epochs"):
        parser.add_argument(f"--{name}", type=int, default=60)
    return parser.parse_args(arguments)


@pytest.fixture
def names(tmp_path, clip, monkeypatch):
    """Options for the demo's classes and its tiny CLIP."""
    monkeypatch.setattr("semples_plugin.FrozenClip.load", lambda *a, **k: clip)
    (tmp_path / "names.txt").write_text("\n".join(OBJECTS) + "\n\n")
    return ["--semples-classes", str(tmp_path / "names.txt"), "--semples-prompts", str(tmp_path / "p.safetensors"),
            "--semples-prompt-length", "4", "--semples-prompt-epochs", "2"]  # fmt: skip


def test_clims_trains_through_its_patch(names, batch, tmp_path, monkeypatch):
    images, labels = batch
    model = clims_head()
    semples = clims.Training(parse(clims.add_arguments), model)
    assert semples(images, model(images), labels) == 0.0 and not semples.learns_prompts
    with pytest.raises(ValueError, match="CLIMS's own training"):
        clims.Training(parse(clims.add_arguments, *names, "--semples", "match"), model)
    with pytest.raises(FileNotFoundError, match=r"stage \(c\) needs the prompts"):
        clims.Training(parse(clims.add_arguments, *names, "--semples", "refine"), model)
    with pytest.raises(ValueError, match="looks through a trained network: give --semples-start"):
        clims.Training(parse(clims.add_arguments, *names, "--semples", "prompts"), model)
    torch.save(clims_head().state_dict(), tmp_path / "start.pth")
    start = ["--semples-start", str(tmp_path / "start.pth")]
    semples = clims.Training(parse(clims.add_arguments, *names, *start, "--semples", "prompts"), model)
    assert semples.learns_prompts and torch.equal(
        model.classifier.weight, torch.load(tmp_path / "start.pth", weights_only=True)["classifier.weight"]
    )
    semples.learn_prompts(model, [{"img": images, "label": labels}])
    for terms, parts in {"refine": {"loss_refine"}, "all": None}.items():
        arguments = parse(clims.add_arguments, *names, "--semples", "refine", "--semples-terms", terms)
        semples = clims.Training(arguments, model)
        loss = semples(images, model(images), labels.double())
        assert loss.requires_grad and (parts is None or set(semples.adapter.losses) == parts)
        assert semples.adapter.scale == 10.0
    monkeypatch.setitem(sys.modules, "clip_utils", SimpleNamespace(category_dict={"voc": ["cat"] * 8}))
    with pytest.warns(UserWarning, match="differs from category_dict in CLIMS's clip_utils.py"):
        clims.Training(arguments, model)
    alike = {"voc": ["cat"] * 8, "ours": [name.upper() for name in OBJECTS]}
    monkeypatch.setitem(sys.modules, "clip_utils", SimpleNamespace(category_dict=alike))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clims.Training(arguments, model)
    monkeypatch.delitem(sys.modules, "clip_utils")
    arguments = parse(clims.add_arguments, *names, "--semples", "refine", "--semples-scale", "3", "--hyper", "0,0,1,1")
    assert clims.Training(arguments, model).adapter.scale == 3.0


def test_weaktr_trains_through_its_patch(names, batch, tmp_path):
    images, labels = batch
    model = WeakTrHead(8).train()
    host = torch.ones((), requires_grad=True)

    def training(*arguments: str) -> weaktr.Training:
        args = parse(weaktr.add_arguments, *arguments)
        args.nb_classes = 8
        return weaktr.Training(args, model)

    semples = training()
    semples.watch()
    assert semples(host, images, labels) is host
    import numpy as np

    torch.save({"model": WeakTrHead(8).state_dict(), "miou": np.float64(70.1), "epoch": 3}, tmp_path / "start.pth")
    start = ["--semples-start", str(tmp_path / "start.pth")]
    for wrong, words in {
        (): "give --semples-start",
        (*start, "--aa", "rand-m9", "--reprob", "0.25"): "would paint over them: give --aa= --reprob 0",
    }.items():
        with pytest.raises(ValueError, match=words):
            training(*names, "--semples", "prompts", *wrong)
    with pytest.raises(ValueError, match="must have been trained"):
        training(*names, "--semples", "match", "--semples-alone")
    with pytest.raises(ValueError, match=r"give --semples-start .* reads --resume for --gen_attention_maps alone"):
        training(*names, "--semples", "prompts", "--resume", str(tmp_path / "start.pth"))
    semples = training(*names, "--semples", "prompts", *start)
    semples.learn_prompts([(images, labels)])
    assert model.training and not any(module._forward_hooks for module in model.modules())
    for alone in ([], ["--semples-alone", *start]):
        semples = training(*names, "--semples", "refine", *alone)
        semples.watch()
        logits = model(images)[2]
        loss = semples(host + logits.sum(), images, labels)
        added = sum(semples.adapter.losses.values())
        torch.testing.assert_close(loss.detach(), added if alone else added + (host + logits.sum()).detach())
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("columns", "hint"), [(80, "preset coco"), (90, "release-coco"), (7, "--semples-classes FILE")]
)
def test_labels_of_another_width_are_named(columns, hint):
    with pytest.raises(ValueError, match=f"the labels have {columns} columns.*{hint}"):
        host_options.build_regularizer(parse(clims.add_arguments, "--semples", "match"), columns, "cpu")


def test_the_command_line_replaces_the_presets_settings(tmp_path):
    given = ["--semples-refine-weight", "0.3", "--semples-prompt-lr", "0.1", "--semples-prompt-epochs", "7"]
    preset = host_options.preset_of(parse(clims.add_arguments, *given))
    assert (preset.weights.refine, preset.weights.background, preset.prompt_lr, preset.prompt_epochs) == (
        0.3, 2.4, 0.1, 7,
    )  # fmt: skip
    (tmp_path / "names.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match=r"names\.txt: class_names: expected different names"):
        read_class_names(tmp_path / "names.txt")


def test_any_other_field_is_set_by_its_name(capsys):
    given = ["--semples-set", "prompt_batch_size=7", "template=an image of {}.", "weights={'refine': 0.3, 'text': 0.4}"]
    more = ["--semples-set", "suffix_ids=(13,)", "align_corners=True", "--semples-text-weight", "0.5"]
    preset = host_options.preset_of(parse(clims.add_arguments, *given, *more))
    assert (preset.prompt_batch_size, preset.template, preset.suffix_ids) == (7, "an image of {}.", (13,))
    assert (preset.weights.refine, preset.weights.text, preset.align_corners) == (0.3, 0.5, True)
    for wrong, words in {"mask_esp=1": "did you mean mask_eps", "lr=1": "that of stage .b. is prompt_lr"}.items():
        with pytest.raises(ValueError, match=words):
            host_options.preset_of(parse(clims.add_arguments, "--semples-set", wrong))
    with pytest.raises(SystemExit):
        parse(clims.add_arguments, "--semples-set", "mask_eps")
    assert "expected FIELD=VALUE, got 'mask_eps'" in capsys.readouterr().err


def test_weaktrs_own_options_are_compared_with_the_presets(names, capsys):
    def run(*arguments: str) -> str:
        args = parse(weaktr.add_arguments, *names, *arguments)
        args.nb_classes = 8
        training = weaktr.Training(args, WeakTrHead(8))
        return f"{training.adapter.eps} {capsys.readouterr().out}"

    assert run("--semples", "match", "--batch-size", "64") == "0.1 "
    release = run("--semples", "match", "--semples-preset", "release-voc", "--batch-size", "64")
    assert "by WeakTr's options: lr 0.0005 (release-voc: 0.000512), weight_decay 0.01 (release-voc: 0.03)" in release
    assert run("--semples", "match", "--batch-size", "64", "--semples-mask-eps", "0.0") == "0.0 "  # then refused


class TestSeveralProcesses:
    @pytest.fixture(autouse=True)
    def _two(self, monkeypatch, tmp_path):
        """As far as the adapters can tell."""
        monkeypatch.setattr(host_options, "world_size", lambda: 2)
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    def test_a_model_that_nobody_averages_is_refused(self, names):
        args = parse(weaktr.add_arguments, *names, "--semples", "match")
        args.nb_classes = 8
        with pytest.raises(ValueError, match="2 processes train, but WeakTrHead is not in DistributedDataParallel"):
            weaktr.Training(args, WeakTrHead(8))
        wrapped = torch.nn.parallel.DistributedDataParallel(WeakTrHead(8))
        assert weaktr.Training(args, wrapped).adapter is not None
        clims_args = parse(clims.add_arguments, *names, "--semples", "match", "--semples-terms", "all")
        with pytest.raises(ValueError, match="but DataParallel is not in DistributedDataParallel"):
            clims.Training(clims_args, torch.nn.DataParallel(clims_head()))
        assert clims.Training(clims_args, torch.nn.parallel.DistributedDataParallel(clims_head())).adapter is not None

    def test_the_host_alone_and_stage_b_are_left_to_themselves(self, names, tmp_path):
        args = parse(weaktr.add_arguments, *names)
        assert weaktr.Training(args, WeakTrHead(8)).adapter is None
        torch.save({"model": WeakTrHead(8).state_dict()}, tmp_path / "start.pth")
        args = parse(weaktr.add_arguments, *names, "--semples=prompts", f"--semples-start={tmp_path / 'start.pth'}")
        args.nb_classes = 8
        assert weaktr.Training(args, WeakTrHead(8)).learns_prompts


def test_patches_only_insert_and_carry_no_line_of_the_hosts():
    for path in PATCHES.glob("*.patch"):
        body = [line for line in path.read_text().splitlines() if not re.match(r"(diff|index|---|\+\+\+) ", line)]
        assert body and all(line.startswith("+") or re.fullmatch(r"@@ -\d+,0 \+\d+(,\d+)? @@", line) for line in body)
    assert len(list(PATCHES.glob("*.patch"))) == 2


def test_a_nan_or_a_batch_without_labels_is_handled(clip, batch):
    images, labels = batch
    cams = torch.rand(6, 8, 8, 8, requires_grad=True)
    adapter = CamAdapter(regularizer_with_prompts(clip), "sigmoid")
    with pytest.raises(ValueError, match="NaN"):
        adapter.loss(images, cams * float("nan"), labels)
    loss = adapter.loss(images, cams, torch.zeros_like(labels))
    loss.backward()
    assert loss.item() == 0 and cams.grad.abs().sum() == 0
    one = torch.zeros_like(labels)
    one[2, 5] = 1
    assert adapter.loss(images, cams, one).item() > 0 and isinstance(adapter.masks(cams, one), ClassMasks)


@pytest.mark.parametrize("host", [clims, weaktr])
def test_the_command_line_weighs_the_foreground_in_prompts(host):
    for given, expected in (([], 0.0), (["--semples-prompt-foreground", "0.5"], 0.5)):
        assert host_options.preset_of(parse(host.add_arguments, *given)).weights.prompt_foreground == expected


class TestTable5:
    """Its rows, by options that CLIMS and WeakTr share."""

    def args(self, names, *arguments: str) -> argparse.Namespace:
        return parse(weaktr.add_arguments, *names, *arguments)

    def test_the_terms_of_the_prompts_can_be_left_out(self, names):
        for name, left_out in {"image": (0.0, 0.02), "text": (1.0, 0.0)}.items():
            weights = host_options.preset_of(self.args(names, f"--semples-{name}-weight", "0")).weights
            assert (weights.image, weights.text) == left_out

    def test_refinement_with_prompts_that_are_not_learned(self, names):
        built = {}
        for seed in ("0", "0", "1"):
            args = self.args(names, "--semples=refine", "--semples-prompts=unlearned", f"--semples-seed={seed}")
            prompts = host_options.build_regularizer(args, 8, "cpu").prompts
            assert prompts is not None and not prompts.learned and prompts.vectors.shape[:2] == (8, 4)
            built.setdefault(seed, []).append(prompts.vectors)
        assert torch.equal(*built["0"]) and not torch.equal(built["0"][0], built["1"][0])
        start = host_options.build_regularizer(self.args(names, "--semples=prompts"), 8, "cpu").prompts
        assert torch.equal(start.vectors, built["0"][0])  # those that stage (b) begins with
        with pytest.raises(ValueError, match="give the file to write as --semples-prompts, not `unlearned`"):
            host_options.build_regularizer(
                self.args(names, "--semples=prompts", "--semples-prompts=unlearned"), 8, "cpu"
            )
