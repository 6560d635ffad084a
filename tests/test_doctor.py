import json
import re
from pathlib import Path

import pytest
from conftest import TEXT, VISION, build_clip, save_clip
from safetensors.torch import save_file

from semples_plugin.cli.app import main
from semples_plugin.clip import loading
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
    assert used == {"crf", "mmseg"} and used < set(named)
    assert extras.how_to_install("crf").startswith("pip install '.[crf]'")
    guides = [
        path.read_text()
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    ]
    assert not any("semples-plugin[" in text for text in [code, *guides])  # on no index yet
