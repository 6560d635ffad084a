"""`examples/real_photographs.py`: every row on a few drawn scenes in VOC's layout, with the embedded CLIP."""

import json
import re
from dataclasses import fields
from pathlib import Path

import cam_networks
import numpy as np
import photograph_results
import photograph_training
import pytest
import real_photographs
import timm
import torch
from photograph_results import share_in_object
from safetensors.torch import save_file

from semples_plugin.data.class_names import VOC
from semples_plugin.data.images import IGNORED, read_mask, write_mask
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.evaluation.folders import evaluate_folder
from semples_plugin.viz.overlays import write_picture

pytestmark = pytest.mark.filterwarnings("ignore")  # two steps leave CAMs empty, and prompts where they began
BACKBONE = "test_resnet"  # timm's smallest
QUICK = "--baseline-steps 3 --steps 2 --batch-size 4 --prompt-steps 4 --prompt-batch-size 8 --prompt-length 4"
KNOWN = [VOC.index(name) if name in VOC else None for name in OBJECTS]  # two of the demo's objects aren't VOC's


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Drawn scenes in VOC's layout, one of them without a class of VOC's, and a backbone's weights."""
    root = tmp_path_factory.mktemp("voc")
    scenes, labels = make_scenes(24, seed=0), {}
    numbers = np.array([0, *(0 if k is None else k + 1 for k in KNOWN)], np.uint8)
    for i in range(len(scenes)):
        name = f"2007_{i:06}"
        write_picture(root / f"JPEGImages/{name}.jpg", scenes.images[i])
        mask = numbers[scenes.objects[i]]
        mask[:3] = IGNORED
        write_mask(root / f"SegmentationClassAug/{name}.png", mask)
        labels[name] = np.isin(np.arange(1, 21), mask).astype(np.float32)
    np.save(root / "cls_labels.npy", {int(name.replace("_", "")): label for name, label in labels.items()})
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(list(labels)[:16]))
    (lists / "val.txt").write_text("\n".join(list(labels)[16:]))
    (root / "own.txt").write_text("\n".join(list(labels)[20:]))
    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE, num_classes=7).state_dict(), root / "backbone.safetensors")
    return root


def run(voc, out, *more, rows=("baseline", "match"), quick=QUICK):
    """Runs the script on the scenes; returns what `results.json` holds."""
    paths = ["--data", str(voc), "--weights", str(voc / "backbone.safetensors"), "--out", str(out)]
    options = [*paths, "--clip=demo", "--backbone", BACKBONE, "--size=64", "--min-images=2", *quick.split()]
    options += ["--device=cpu", "--seeds", "0", "--rows", *rows, *more]
    real_photographs.run(real_photographs.parser().parse_args(options))
    return json.loads((out / "results.json").read_text())


def refused(voc, tmp_path, *more, rows=("baseline",)):
    """The message of the error for these options."""
    with pytest.raises((OSError, ValueError)) as error:
        run(voc, tmp_path / "refused", *more, rows=rows)
    return str(error.value)


@pytest.fixture(scope="module")
def finished(voc, tmp_path_factory):
    """All rows of two seeds."""
    out = tmp_path_factory.mktemp("photographs")
    return out, run(voc, out, "--seeds", "0", "1", rows=real_photographs.ROWS)


def test_all_rows_are_trained_and_judged(voc, finished):
    out, results = finished
    labels = {name for name in VOC if name in OBJECTS}
    assert list(results["rows"]) == list(real_photographs.ROWS) and results["seeds"] == [0, 1]
    for name, row in results["rows"].items():
        for key in ("miou", "threshold", "share", "seconds"):
            assert len(row[key]) == 2 and np.isfinite(row[key]).all()
        assert ("separation" in row) == (name in ("full", "apart"))
        assert set(row["iou"]) <= {"background", *labels} and len(row["iou"]["background"]) == 2
        assert len({json.dumps(other["share"]) for other in results["rows"].values()}) == len(results["rows"]), name
    # `semples eval` finds what it needs to come to the same figure.
    names = (out / "classes.txt").read_text().split()
    judged = evaluate_folder(out / "cams/full-seed1", out / "masks", names, progress=False)
    assert 100 * judged.miou == results["rows"]["full"]["miou"][1]
    table = (out / "table.md").read_text()
    assert len(re.findall(r"^\| \w+ \| .* ± ", table, re.MULTILINE)) == 6
    assert len(re.findall(r"^- \w+ beside match, seed [01]: [+-].* interval", table, re.MULTILINE)) == 10
    page = (out / "report.html").read_text()
    assert "than the defaults" in table and "steps 2" in table and "lambda_f" not in table
    assert "seed 0" in page and all(name in page for name in real_photographs.ROWS) and "nearest" in page


def test_the_reports_prompts_are_those_of_what_they_refined(voc, finished, monkeypatch, capsys):
    out, _ = finished
    pages = []
    monkeypatch.setattr(photograph_results, "write_report", lambda *args, **options: pages.append((args, options)))
    run(voc, out, "--seeds", "0", "1", rows=real_photographs.ROWS)
    run(voc, out, rows=("match",))
    ((_, _, titles), options), (_, others) = pages
    assert [titles[k] for k in options["refined"]] == ["match", "apart"] and options["words"]
    assert others["refined"] == (-2, -1) and not others["words"]


def test_a_bad_verdict_is_printed(voc, tmp_path, capsys):
    run(voc, tmp_path, "--prompt-lr=1e-9", rows=("full",))
    assert "(b) did not go well" in capsys.readouterr().out


def test_classes_that_few_images_show_are_background(voc, finished, tmp_path):
    rare = run(voc, tmp_path / "out", "--min-images=4", rows=("baseline",))["rows"]["baseline"]["iou"]
    kept = [VOC.index(name) + 1 for name in rare if name != "background"]
    assert 0 < len(kept) < 6
    masks = sorted((tmp_path / "out/masks").iterdir())
    assert {path.stem for path in masks} == {path.stem for path in (tmp_path / "out/cams/baseline-seed0").glob("*.npy")}
    for path in masks:
        before, after = read_mask(voc / "SegmentationClassAug" / path.name), read_mask(path)
        assert ((before == IGNORED) == (after == IGNORED)).all() and np.isin(before, kept).any()
        for number, old in enumerate(kept, 1):
            assert ((after == number) == (before == old)).all()


def test_what_is_finished_is_not_trained_again(voc, tmp_path, monkeypatch):
    trained = []
    train = real_photographs.Experiment.train
    monkeypatch.setattr(
        real_photographs.Experiment, "train", lambda self, *args: trained.append(args[2]) or train(self, *args)
    )
    out = tmp_path / "out"
    first = run(voc, out, rows=("unlearned",))
    assert trained == ["baseline, seed 0", "unlearned, seed 0"]  # which another row is trained from comes before it
    trained.clear()
    assert run(voc, out, rows=("unlearned",)) == first and not trained
    both = run(voc, out, "--seeds", "0", "1", rows=("baseline",))
    assert (
        trained == ["baseline, seed 1"] and both["rows"]["baseline"]["miou"][0] == first["rows"]["baseline"]["miou"][0]
    )
    trained.clear()
    run(voc, out, "--prompt-lr=1", "--lambda-b=2", rows=("unlearned", "match"))  # what (c) without (b) depends on
    assert trained == ["unlearned, seed 0", "match, seed 0"]
    earlier = json.loads((out / "runs/unlearned-seed0.json.before").read_text())
    assert earlier["miou"] == first["rows"]["unlearned"]["miou"][0] and earlier["settings"]["lambda_b"] == 0.6
    trained.clear()
    run(voc, out, "--baseline-lr=0.1", rows=("unlearned",))  # all that starts from it
    assert trained == ["baseline, seed 0", "unlearned, seed 0"]


def test_a_stopped_run_goes_on_to_the_same_results(voc, tmp_path, monkeypatch):
    train = real_photographs.Experiment.train

    def stopped(self, row, *args):
        if row is real_photographs.ROWS["match"]:
            raise KeyboardInterrupt
        return train(self, row, *args)

    whole = run(voc, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(real_photographs.Experiment, "train", stopped)
        run(voc, tmp_path / "parts")
    assert list(json.loads((tmp_path / "parts/results.json").read_text())["rows"]) == ["baseline"]
    parts = run(voc, tmp_path / "parts")
    for name, row in whole["rows"].items():
        assert parts["rows"][name] == {**row, "seconds": parts["rows"][name]["seconds"]}


def test_a_share_sets_how_strong_refinement_is(voc, tmp_path):
    shares = [run(voc, tmp_path / "out", f"--refine-share={share}", rows=("full",))["rows"] for share in (0, 5)]
    assert shares[0]["match"]["share"] == shares[1]["match"]["share"]
    assert shares[0]["full"]["share"] != shares[1]["full"]["share"]


def test_the_image_labels_loss_counts(voc, tmp_path):
    without, beside = (
        run(voc, tmp_path / "out", f"--lambda-cls={weight}", rows=("match",))["rows"] for weight in (0, 1)
    )
    assert without["baseline"] == beside["baseline"] and without["match"]["share"] != beside["match"]["share"]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_kept_features_lead_to_those_of_the_whole_network(name, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        backbone = cam_networks.load_backbone(name, tmp_path / "weights.safetensors", size=96)
        cams = backbone.cam_network(4)
        features = backbone.upper(backbone.lower(images))
        everything = cam_networks.load_backbone(name, tmp_path / "weights.safetensors", size=96, train_all=True)
        assert everything.lower is None
        torch.testing.assert_close(features, everything.upper(images), atol=1e-5, rtol=1e-4)
        assert features.shape == (2, backbone.channels, 6, 6)  # one feature for 16 x 16 pixels
        torch.testing.assert_close(cams(backbone.lower(images)), cams.classifier(features))
    assert not any(module.training for module in cams.modules())
    trained = {key.split(".")[0] for key, _ in cams.named_parameters()}
    assert trained == {"upper", "classifier"}
    own = backbone.cam_network(4).upper.state_dict()
    next(cams.upper.parameters()).data += 1  # a row's network doesn't change another's start
    assert all(torch.equal(own[key], tensor) for key, tensor in backbone.upper.state_dict().items())


def test_a_transformers_tokens_come_back_on_their_grid_where_all_of_it_is_trained(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_vit").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"test_vit does more than .*: give --train-all"):
        cam_networks.load_backbone("test_vit", tmp_path / "weights.pth", size=160)
    backbone = cam_networks.load_backbone("test_vit", tmp_path / "weights.pth", size=160, train_all=True)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        tokens = network.forward_features(images)[:, network.num_prefix_tokens :]
        torch.testing.assert_close(backbone.upper(images).flatten(2).mT, tokens)
        assert backbone.cam_network(4)(images).shape == (2, 4, 10, 10)
    with pytest.raises(ValueError, match="makes no feature map of images of 100 x 100"):
        cam_networks.load_backbone("test_vit", tmp_path / "weights.pth", size=100, train_all=True)


def test_where_training_begins_is_chosen(voc):
    weights = voc / "backbone.safetensors"
    parts = cam_networks.load_backbone(BACKBONE, weights, size=64, train_from="layer2")
    assert [len(parts.lower), len(parts.upper)] == [5, 3]
    with pytest.raises(ValueError, match=r"--train-from: expected one of bn1, .*layer4, got 'layer9'"):
        cam_networks.load_backbone(BACKBONE, weights, size=64, train_from="layer9")


def test_an_open_clip_models_image_tower_gives_the_backbones_weights(voc, tmp_path):
    state = timm.create_model(BACKBONE, num_classes=0).state_dict()
    model = {f"visual.trunk.{key}": tensor for key, tensor in state.items()} | {"logit_scale": torch.zeros(())}
    torch.save(model, tmp_path / "clip.pth")
    backbone = cam_networks.load_backbone(BACKBONE, tmp_path / "clip.pth", size=64, train_all=True)
    read = backbone.upper.network.state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


def test_the_share_is_that_of_the_cams_mass_in_the_object():
    generator = np.random.default_rng(0)
    cam, mask = generator.random((6, 7)).astype(np.float32), generator.choice([0, 1, 2, IGNORED], (6, 7))
    within = total = 0.0
    for y in range(6):
        for x in range(7):
            if mask[y, x] != IGNORED:
                total += cam[y, x]
                within += cam[y, x] * (mask[y, x] == 2)
    assert share_in_object(cam, mask == 2, mask) == pytest.approx(within / total)
    assert share_in_object(np.zeros((6, 7)), mask == 2, mask) == 0


def test_a_rows_own_settings_are_settings():
    settings = photograph_training.Settings()
    known = {each.name for each in fields(settings)}
    stages = set()
    for row in real_photographs.ROWS.values():
        assert set(row.changes) <= set(settings.of(row)), row.title  # none that its stages don't look at
        stages |= set(settings.of(row))
    assert stages == known


def test_bad_input_is_refused_in_a_sentence(voc, tmp_path, capsys, monkeypatch):
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), other)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    (tmp_path / "absent.txt").write_text("2007_999999\n")
    for options, message in (
        (["--train=nowhere"], r"there is no list 'nowhere': neither .*Segmentation/nowhere.txt nor nowhere is a file"),
        ([f"--val={tmp_path}/absent.txt"], "has no labels of 1 images, 2007_999999 the first"),
        (["--labels=absent.npy"], "absent.npy"),
        (["--backbone=resnt50"], r"timm has no backbone 'resnt50'; did you mean .*resnet50"),
        ([f"--weights={tmp_path}/absent.pth"], "there is no checkpoint .*absent.pth"),
        ([f"--weights={other}"], r"does not hold the weights of test_resnet"),
        ([f"--weights={tmp_path}/text.pth"], "is no checkpoint of torch.save, it begins with b'no weights'"),
        ([f"--weights={tmp_path}/list.pth"], "expected weights by name, itself or as model or state_dict, got list"),
        ([f"--classes={tmp_path}/two.txt"], "has 20 columns, expected 2 classes"),
        (["--min-images=100"], "no class is in 100 images of train"),
        (["--prompt-tau=0"], "prompt_tau: expected a finite number above 0"),
        (["--lambda-b=-1"], "LossWeights.background: expected a finite number of at least 0"),
        (["--view-size=32"], "takes images of its own size alone"),
        (["--masks=nowhere"], "there is no mask in PNG nowhere"),
    ):
        assert re.search(message, refused(voc, tmp_path, *options)), options
    monkeypatch.setattr("sys.argv", ["real_photographs.py", "--data=nowhere"])
    with pytest.raises(SystemExit) as error:
        real_photographs.main()
    assert (
        error.value.code == 1 and "real_photographs.py: --data: there is no folder nowhere" in capsys.readouterr().err
    )


def test_a_list_of_ones_own_is_a_file(voc, tmp_path):
    run(voc, tmp_path / "out", f"--val={voc}/own.txt", rows=("baseline",))
    judged = {path.stem for path in (tmp_path / "out/cams/baseline-seed0").glob("*.npy")}
    assert judged and judged <= set(Path(voc, "own.txt").read_text().split())
