import hashlib
import json
import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import TEXT, VISION, build_clip, save_clip
from safetensors.torch import save_file

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.cli.app import main
from semples_plugin.clip import loading
from semples_plugin.compat.needs import check, data_check
from semples_plugin.compat.needs.check import check_host
from semples_plugin.recipes import book, check_data
from semples_plugin.recipes.jobs import jobs_of
from semples_plugin.utils import extras

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_it_says_what_is_there_and_where_weights_come_from(capsys, monkeypatch):
    monkeypatch.setattr(loading, "_reach_hub", lambda *_: None)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "installed torch " in text and "device    cpu" in text
    assert "weights   not cached; the first load downloads them" in text and "vit_base_patch32_clip_224.openai" in text


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B/32-quickgelu"])
def test_weights_that_can_not_be_had_fail(capsys, monkeypatch, name):
    def unreachable(*_):
        raise ConnectionError("no network")

    monkeypatch.setattr(loading, "_reach_hub", unreachable)
    assert main(["doctor", "--clip", name]) == 1
    assert "can't be downloaded now (no network); fetch open_clip_model.safetensors of" in capsys.readouterr().out


def test_a_folder_and_a_file_are_loaded(capsys, tmp_path, monkeypatch):
    from open_clip import factory

    save_clip(tmp_path / "clip")
    assert main(["doctor", "--clip", f"local-dir:{tmp_path}/clip"]) == 0
    assert f"clip, images 32 x 32, float32, on cpu), text width {TEXT['width']}, GELU" in capsys.readouterr().out
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", config)
    assert main(["doctor", "--pretrained", str(tmp_path / "clip/open_clip_model.safetensors")]) == 0
    assert "text width 64, QuickGELU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("cut", "is damaged"),
        ("not numbers", "features that are no numbers"),
        ("other vocabulary", "the tokenizer does not belong to"),
        ("no weights", "there is no weights file"),
        ("no config", "expected a folder with open_clip_config.json"),
    ],
)
def test_a_folder_that_training_could_not_begin_with_fails(tmp_path, capsys, part, words):
    save_clip(tmp_path / "clip")
    weights, config = tmp_path / "clip/open_clip_model.safetensors", tmp_path / "clip/open_clip_config.json"
    if part == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif part == "not numbers":
        state = build_clip().state_dict()
        save_file({name: (0 * tensor / 0).contiguous() for name, tensor in state.items()}, weights)
    elif part == "other vocabulary":
        model = build_clip(vocab_size=100)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
        about = json.loads(config.read_text())
        about["model_cfg"]["text_cfg"] = {**TEXT, "vocab_size": 100}
        config.write_text(json.dumps(about))
    else:
        (weights if part == "no weights" else config).unlink()
    assert main(["doctor", "--clip", f"local-dir:{tmp_path}/clip"]) == 1
    assert words in capsys.readouterr().out


def test_wrong_names_are_told(tmp_path, capsys):
    for wrong, words in (
        (["--pretrained", str(tmp_path / "none.pt")], "there is no file"),
        (["--clip", str(tmp_path)], f"is a folder; a model in open_clip's layout is called local-dir:{tmp_path}"),
    ):
        assert main(["doctor", *wrong]) == 1 and words in capsys.readouterr().out


def test_extras_are_those_that_the_package_has():
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = re.findall(r"^(\w+) = ", project, re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "semples_plugin").rglob("*.py"))
    used = set(re.findall(r"how_to_install\(['\"](\w+)['\"]\)", code))
    assert used == {"clims", "crf", "mmseg"} and used < set(named)
    assert extras.how_to_install("crf").startswith("pip install '.[crf]'")
    guides = [
        path.read_text()
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    ]
    assert not any("semples-plugin[" in text for text in [code, *guides])  # on no index yet


NAMES = ["2007_000032", "2007_000039", "2007_000063"]
COCO_NAMES = ["000000000009", "000000000025"]
LABELS = {"clims": "voc12/cls_labels.npy", "weaktr": "voc12/cls_labels.npy",
          "fma-wsss": "datasets/VOC2012/third_party/seg_cls_labels.pkl"}  # fmt: skip
LISTS = {"clims": ("voc12/train_aug.txt", "voc12/val.txt"),
         "weaktr": ("voc12/train_aug_id.txt", "voc12/val_id.txt", "voc12/train_id.txt"),
         "fma-wsss": ("datasets/VOC2012/ImageSets/SegmentationAug/train_aug.txt",)}  # fmt: skip
ROOTS = {"clims": "VOC", "weaktr": "data/voc12/VOCdevkit/VOC2012", "fma-wsss": "datasets/VOC2012"}
SCRIPTS = {"clims": "run_sample.py", "weaktr": "AAF.py", "fma-wsss": "src/tasks/train_coop/run.py"}
WEIGHTS = {"clims": "cam-baseline-voc12/res50_cam.pth"}


def write(path: Path, content: str | bytes = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_labels(path: Path, keys: list, columns: int) -> None:
    content = {key: np.eye(columns, dtype=np.float32)[i] for i, key in enumerate(keys)}
    write(path, pickle.dumps(content))
    if path.suffix == ".npy":
        np.save(path, content)


@pytest.fixture(params=list(COMMITS))
def checkout(request, tmp_path, monkeypatch):
    """What a run of a host on VOC needs, and no more: a checkout at "the pinned commit", with three images."""
    host, folder = request.param, tmp_path / request.param
    write(folder / SCRIPTS[host])
    keys = [int(name.replace("_", "")) for name in NAMES] if host == "clims" else NAMES
    write_labels(folder / LABELS[host], keys, 21 if host == "fma-wsss" else 20)
    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n" if host == "fma-wsss" else "{0}\n"
    for images in LISTS[host]:
        write(folder / images, "".join(line.format(name) for name in NAMES))
    for name in NAMES:
        write(folder / ROOTS[host] / f"JPEGImages/{name}.jpg")
        if host != "clims":
            write(folder / ROOTS[host] / f"SegmentationClassAug/{name}.png")
    if host in WEIGHTS:
        write(folder / WEIGHTS[host], b"PK weights")
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "host"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setitem(COMMITS, host, head)
    monkeypatch.setattr(check, "_reach", lambda url: None)
    monkeypatch.setattr(check, "version", lambda name: "0.0.11" if name == "alchemy_cat" else "99")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def look(checkout: Path, **options) -> tuple[str, str]:
    """The report on a checkout, and those of its lines with which training could not begin."""
    host = checkout.name
    if host == "clims" and not options:
        options = {"voc": str(checkout / ROOTS[host])}
    found = list(check_host(host, checkout, **options))
    return tuple(
        "".join(f"{finding.status} {finding.text}\n" for finding in found if finding.fails or not fails)
        for fails in (False, True)
    )


def test_a_checkout_with_all_that_it_needs(checkout):
    text, fails = look(checkout)
    assert fails == ""
    assert f"found {checkout}, at the pinned commit {COMMITS[checkout.name][:8]}" in text
    columns = 21 if checkout.name == "fma-wsss" else 20
    assert f"found {LABELS[checkout.name]}: labels of 3 images, {columns} columns\n" in text
    files = {"clims": "image, label", "weaktr": "image, mask, label", "fma-wsss": "image, mask, label"}
    for images in (LISTS[checkout.name][0], LISTS[checkout.name][-1]):
        each = "image, label" if "aug_id" in images else "label" if "val" in images else files[checkout.name]
        assert re.search(rf"found {images}: 3 images for [\w ]+, each with {each}\n", text)
    assert f"{ROOTS[checkout.name]}/JPEGImages: 3 files; VOC 2012 has 17,125" in text
    assert "missing COCO 2014" in text and "(optional, for COCO's recipes)" in text
    assert f"semples patch {checkout.name} {checkout}" in text and " downloads from https://" in text
    assert all(word in text for word in {"clims": ["imageio 99"], "weaktr": ["scikit-learn 99"]}.get(checkout.name, []))


def test_each_thing_that_is_missing_is_named(checkout):
    host, root = checkout.name, checkout / ROOTS[checkout.name]
    (root / f"JPEGImages/{NAMES[1]}.jpg").unlink()
    (root / f"JPEGImages/{NAMES[2]}.jpg").unlink()
    (root / f"JPEGImages/{NAMES[2]}.jpg").symlink_to("nowhere")
    fails = look(checkout)[1]
    lost = f"images for 2 of the 3 of {LISTS[host][0]}: {NAMES[1]}.jpg, {NAMES[2]}.jpg in {ROOTS[host]}/JPEGImages"
    assert fails.count("missing ") == fails.count("images for 2 of the 3") > 0 and f"missing {lost}\n" in fails
    for name in NAMES[1:]:
        (root / f"JPEGImages/{name}.jpg").unlink(missing_ok=True)
        write(root / f"JPEGImages/{name}.jpg")
    if host != "clims":  # which trains without masks
        (root / f"SegmentationClassAug/{NAMES[0]}.png").unlink()
        assert f"missing masks for 1 of the 3 of {LISTS[host][-1]}: {NAMES[0]}.png in" in look(checkout)[1]
        write(root / f"SegmentationClassAug/{NAMES[0]}.png")
    keys = [int(NAMES[0].replace("_", ""))] if host == "clims" else NAMES[:1]
    columns = 21 if host == "fma-wsss" else 20
    write_labels(checkout / LABELS[host], keys, columns)
    assert f"labels for 2 of the 3 of {LISTS[host][0]}: {NAMES[1]}, {NAMES[2]} in {LABELS[host]}" in look(checkout)[1]
    write_labels(checkout / LABELS[host], keys, columns + 1)
    assert f"wrong {LABELS[host]}: labels of {columns + 1} columns, expected {columns} (" in look(checkout)[1]
    write_labels(checkout / LABELS[host], NAMES if host == "clims" else [2007000032], columns)
    assert f"wrong {LABELS[host]}: expected {'integers' if host == 'clims' else 'names'} as keys" in look(checkout)[1]
    write(checkout / LABELS[host], pickle.dumps(print))
    assert re.search(f"wrong {LABELS[host]} is damaged, or holds more than data", look(checkout)[1])
    (checkout / LABELS[host]).unlink()
    (checkout / LISTS[host][0]).unlink()
    fails = look(checkout)[1]
    assert f"missing {LABELS[host]} (" in fails and f"missing {LISTS[host][0]}, the list of training\n" in fails


@pytest.mark.parametrize("checkout", ["weaktr"], indirect=True)
def test_data_that_is_nowhere_and_what_the_checkout_has_all_the_same(checkout):
    root = checkout / ROOTS["weaktr"]
    root.rename(checkout / "elsewhere")
    text, fails = look(checkout)
    how = f"mkdir -p data/voc12/VOCdevkit && ln -s {{}} {ROOTS['weaktr']}\n"
    lost = f"missing VOC 2012: there is no folder {ROOTS['weaktr']}; in {checkout}: {how}"
    assert fails == lost.format("/path/to/VOC2012")
    assert "found voc12/train_aug_id.txt: 3 images for training, each with label\n" in text
    root.parent.rmdir()  # as in a new clone
    mine = checkout.parent / "my voc"
    (checkout / "elsewhere").rename(mine)
    text, fails = look(checkout, voc=str(mine))  # that, among all other findings
    assert fails == lost.format(f"'{mine}'") and "found voc12/train_aug_id.txt: 3 images" in text
    subprocess.run(fails.partition(f"in {checkout}: ")[2], shell=True, check=True, cwd=checkout)
    text, fails = look(checkout, voc=str(mine))
    assert fails == "" and "--voc" not in text and f"found {ROOTS['weaktr']}/JPEGImages: 3 files" in text
    text, fails = look(checkout, voc=str(checkout))
    assert fails == "" and f"wrong --voc: weaktr reads VOC 2012 from {ROOTS['weaktr']}, not from {checkout}\n" in text
    (checkout / ROOTS["weaktr"]).unlink()
    mine.rename(root)
    for broken, told in {"  \n": "names no images", b"\xff\xfe": "expected text in UTF-8"}.items():
        write(checkout / "voc12/val_id.txt", broken)
        assert told in look(checkout)[1]


@pytest.mark.parametrize("checkout", ["weaktr"], indirect=True)
def test_coco_is_needed_where_it_is_asked_for(checkout):
    for name in COCO_NAMES:
        write(checkout / f"data/coco/images/COCO_train2014_{name}.jpg")
        write(checkout / f"data/coco/voc_format/class_labels/{name}.png")
    for images in ("train_id", "val_id", "train_1250_id"):
        write(checkout / f"coco/{images}.txt", "".join(f"{name}\n" for name in COCO_NAMES))
    write_labels(checkout / "coco/cls_labels.npy", [f"{name}.jpg" for name in COCO_NAMES], 90)  # WeakTr tries that too
    text, fails = look(checkout, data="coco")
    assert fails.count("images for 2 of the 2 of coco/") == 3 and "without COCO_train2014_" in fails
    assert "VOC 2012" not in text and "coco/cls_labels.npy: labels of 2 images, 90 columns\n" in text
    optional, fails = look(checkout)
    assert fails == "" and optional.count("(optional, for COCO's recipes)") == 6
    for name in COCO_NAMES:
        (checkout / f"data/coco/images/{name}.jpg").symlink_to(f"COCO_train2014_{name}.jpg")
    assert look(checkout, data="coco")[1] == ""


@pytest.mark.parametrize("checkout", ["clims"], indirect=True)
def test_climss_coco_has_its_list_in_json_and_its_labels_in_rows(checkout, monkeypatch):
    coco, annotations = checkout / "COCO", checkout / "COCO/annotations/instances_train2014.json"
    files = [f"COCO_train2014_{name}.jpg" for name in COCO_NAMES]
    images = [{"id": int(name), "file_name": file} for name, file in zip(COCO_NAMES, files, strict=True)]
    whole = json.dumps({"info": {}, "images": images, "annotations": []})
    write(annotations, whole)
    for file in files:
        write(coco / "train2014" / file)
    write(checkout / "cam-baseline-coco/res50_cam.pth", b"\x80\x02 weights")
    monkeypatch.setattr(check, "find_spec", lambda module: None)
    text, fails = look(checkout, coco=str(coco))
    assert fails == "missing pycocotools (required by mscoco/dataloader.py: pip install pycocotools)\n"
    assert "missing mscoco/train_labels.npy (CLIMS makes it" in text and "VOC 2012: say where it is" in text
    write(checkout / "mscoco/train_labels.npy")
    assert "mscoco/train_labels.npy is damaged, or no array (" in look(checkout, coco=str(coco))[1]
    np.save(checkout / "mscoco/train_labels.npy", np.zeros((3, 80)))
    fails = look(checkout, coco=str(coco))[1]
    assert "wrong mscoco/train_labels.npy has not one row for each of the 2 of COCO/annotations/" in fails
    np.save(checkout / "mscoco/train_labels.npy", np.zeros((2, 80)))
    (coco / "train2014" / files[1]).unlink()
    assert f"images for 1 of the 2 of {annotations.relative_to(checkout)}: {files[1]}" in look(checkout, coco=coco)[1]
    for wrong in ("[1", '{"images": [{"id": 9}]}', whole[:-1], '{"images": 3}'):
        write(annotations, wrong)
        assert "expected COCO's instances in JSON" in look(checkout, coco=str(coco))[1]


@pytest.mark.parametrize("checkout", ["clims"], indirect=True)
def test_columns_are_those_that_the_checkouts_own_code_takes(checkout):
    write_labels(checkout / LABELS["clims"], [int(name.replace("_", "")) for name in NAMES], 5)
    assert "labels of 5 columns, expected 20" in look(checkout)[1]
    write(
        checkout / "step/train_clims.py", "model = CLIMS(n_classes=5)\n"
    )  # as the guide says for classes of one's own
    assert "labels of" not in look(checkout)[1]


def test_weights_are_there_and_are_weights(checkout, tmp_path, monkeypatch):
    def unreachable(url):
        raise ConnectionError("no network")

    monkeypatch.setattr(check, "_reach", unreachable)
    fails = look(checkout)[1]
    assert "that can't be done now (no network): fetch the file elsewhere and put it there" in fails
    fetched = {"clims": tmp_path / ".cache/clip/ViT-B-32.pt", "fma-wsss": checkout / "pretrains/CLIP/ViT-B-16.pt",
               "weaktr": tmp_path / "torch/hub/checkpoints/deit_small_patch16_224-cd65a155.pth"}  # fmt: skip
    fetched = fetched[checkout.name]
    write(fetched, b"PK and half of it")
    assert re.search(r"wrong \S+ is damaged: its SHA-256 is another one; delete it and get it again", look(checkout)[1])
    whole = hashlib.sha256(b"PK and half of it").hexdigest()
    assert check._damage(fetched, whole) == check._damage(fetched, whole[:8]) == ""
    if checkout.name in WEIGHTS:
        write(checkout / WEIGHTS[checkout.name], "<!DOCTYPE html>")
        assert f"wrong {WEIGHTS[checkout.name]} is no file of weights, but perhaps the page" in look(checkout)[1]
        (checkout / WEIGHTS[checkout.name]).unlink()
        assert (
            f"missing {WEIGHTS[checkout.name]} (the CAM network that CLIMS starts from: https://drive"
            in look(checkout)[1]
        )


@pytest.mark.parametrize("checkout", ["fma-wsss"], indirect=True)
def test_packages_of_the_extra_and_of_their_extras(checkout, monkeypatch):
    lines = {
        "semples-plugin": ["numpy>=2", 'alchemy_cat[full]==0.0.11; extra == "fma-wsss"', 'other; extra == "clims"',
                           'gone; python_version < "3" and extra == "fma-wsss"',],
        "alchemy_cat": ["loguru", 'lmdb>=1.4; extra == "full"', 'numpy; extra == "full"'],
    }  # fmt: skip
    monkeypatch.setattr(check, "requires", lambda name: lines[name])
    installed = {"alchemy_cat": "0.0.10"}

    def version(name):
        if name not in installed:
            raise check.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(check, "version", version)
    fails = look(checkout)[1]
    assert fails.splitlines() == [
        "wrong alchemy_cat 0.0.10 (expected ==0.0.11: pip install '.[fma-wsss]' in the checkout of semples-plugin)",
        "missing lmdb (required by fma-wsss: pip install '.[fma-wsss]' in the checkout of semples-plugin)",
    ]


def test_a_package_without_a_release_for_this_python(monkeypatch):
    monkeypatch.setattr(check, "_HAS_ALL", {"python_version": "2.7"})
    monkeypatch.setattr(check, "requires", lambda name: ['never-made; python_version < "3" and extra == "clims"'])
    (found,) = check._packages("clims")
    assert found.fails and found.text == "never-made (required by clims, and not for this Python: take 2.7)"
    assert list(check._packages("weaktr")) == []


def test_another_commit_and_the_patch_are_told(checkout, monkeypatch):
    if checkout.name == "fma-wsss":
        assert main(["patch", "fma-wsss", str(checkout)]) == 0
        assert "found SemPLeS in it: " in look(checkout)[0]
    monkeypatch.setitem(COMMITS, checkout.name, "1" * 40)
    assert re.search(
        r"^wrong .* fit commit 11111111, and .* is at [0-9a-f]{8}: git -C", look(checkout)[1], re.MULTILINE
    )


@pytest.mark.parametrize("checkout", ["clims"], indirect=True)
def test_the_command_says_it_all(checkout, tmp_path, capsys, monkeypatch):
    command = ["doctor", "clims", str(checkout), "--clip", "demo"]
    assert main([*command, "--voc", str(checkout / "VOC")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Python ") and any(line.startswith("CLIP      FrozenClip(") for line in lines)
    assert "found     voc12/train_aug.txt: 3 images for training, each with image, label" in lines
    assert main(command) == 1
    assert "missing   VOC 2012: say where it is, semples doctor clims" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for wrong, told in (
        (["doctor", "clims"], f"{tmp_path} is no checkout of clims: it has no run_sample.py"),
        (["doctor", "weaktr", str(checkout)], "is no checkout of weaktr: it has no AAF.py"),
        ([*command, "--voc", "nowhere"], f"--voc: there is no folder {tmp_path}/nowhere"),
        (["doctor", "--data", "coco"], "--data, --voc and --coco belong to a host: semples doctor HOST PATH"),
    ):
        assert main(wrong) == 1
        seen = capsys.readouterr()
        assert told in seen.err and seen.out == ""  # before CLIP is loaded


@pytest.mark.parametrize("checkout", ["clims"], indirect=True)
def test_a_folder_is_read_once_and_no_file_is_opened(checkout, monkeypatch):
    read = []
    scan = data_check.os.scandir
    monkeypatch.setattr(data_check.os, "scandir", lambda folder: read.append(folder) or scan(folder))
    look(checkout)
    assert read == [str(checkout / "VOC/JPEGImages")]


def test_a_recipe_asks_the_same_of_its_data_before_it_trains(checkout, tmp_path, capsys):
    host, root = checkout.name, checkout / ROOTS[checkout.name]
    given = {"runs": str(tmp_path / "runs"), "voc": str(root)}
    recipe = book.RECIPES[f"{host}-voc"]
    jobs = jobs_of(recipe, given, 1, miniature=False)
    (job,) = [job for job in jobs if job.step.name == "check-data"]
    assert not any(other.step.hours for other in jobs[: jobs.index(job)])
    assert not any(other.step.name == "check-data" for other in jobs_of(recipe, given, 1, miniature=True))
    job.folder.parent.mkdir(parents=True)
    job.folder.symlink_to(checkout)

    def asked(**settings: str) -> tuple[int, str]:
        (job,) = [job for job in jobs_of(recipe, {**given, **settings}, 1, False) if job.step.name == "check-data"]
        status = check_data.main(job.words[3:])
        return status, capsys.readouterr().out

    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n" if host == "fma-wsss" else "{0}\n"
    lists = {"clims": "voc12/train.txt", "weaktr": "voc12/val_id.txt"}
    write(checkout / lists.get(host, "datasets/VOC2012/ImageSets/SegmentationAug/val.txt"), line.format(NAMES[0]))
    for name in NAMES:
        write(root / f"SegmentationClassAug/{name}.png")
    assert asked()[0] == 0
    (root / f"SegmentationClassAug/{NAMES[0]}.png").unlink()  # on which it is judged
    assert asked()[0] == 1
    write(root / f"SegmentationClassAug/{NAMES[0]}.png")
    (root / f"JPEGImages/{NAMES[2]}.jpg").unlink()
    status, text = asked()
    assert status == 1 and "images for 1 of the 3 of " in text and f": {NAMES[2]}.jpg in " in text
    if host == "clims":
        write(tmp_path / "own.txt", f"{NAMES[0]}\n")
        own = str(tmp_path / "own.txt")
        assert asked(train_list=own, judge_list=own, val_list=own)[0] == 0


def test_recipes_call_checkpoints_as_the_doctor_does():
    found = set()
    for recipe in book.RECIPES.values():
        needs = check.needs_of(recipe.host)
        checkpoints = [*needs.checkpoints, *(one for data in needs.data.values() for one in data.checkpoints)]
        names = {one.source: Path(one.path).name for one in checkpoints}
        for job in jobs_of(recipe, {}, 1, miniature=False):
            if not job.words and job.step.source in names:
                assert [path.name for path in job.makes] == [names[job.step.source]]
                found.add(recipe.name)
    assert found == book.RECIPES.keys()


def test_every_host_has_its_needs():
    assert set(check.MODULES) == set(COMMITS)
    for module in check.MODULES.values():
        needs = check.import_module(f"semples_plugin.compat.needs.{module}").NEEDS
        assert set(needs.data) == {"voc", "coco"}
