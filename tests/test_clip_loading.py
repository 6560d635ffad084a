import json
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import open_clip
import pytest
import torch
from conftest import TEXT, VISION, build_clip
from safetensors.torch import save_file

from semples_plugin import FrozenClip

CONFIG = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
INCEPTION = (0.5, 0.5, 0.5)


@pytest.fixture
def small_names(monkeypatch):
    """open_clip's names and tags, with small architectures behind them and nowhere to download from."""
    from open_clip import factory, pretrained

    for name in ("ViT-B-32", "ViT-B-16"):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, dict(CONFIG))
        monkeypatch.setitem(factory._MODEL_CONFIGS, f"{name}-quickgelu", {**CONFIG, "quick_gelu": True})
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-SigLIP", dict(CONFIG))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return pretrained


@pytest.fixture
def cache(tmp_path):
    """A hub cache with small weights of OpenAI's ViT-B/32, in the hub's layout."""
    folder = tmp_path / "cache/models--timm--vit_base_patch32_clip_224.openai"
    for name in ("refs", "blobs", "snapshots/abc"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    save(folder / "blobs/1234", seed=3)
    (folder / "snapshots/abc/open_clip_model.safetensors").symlink_to("../../blobs/1234")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, tmp_path, small_names):
    """A Hugging Face hub on this machine with the same weights; what it is asked for is listed."""
    save(tmp_path / "hub.safetensors", seed=3)
    content = (tmp_path / "hub.safetensors").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        asked, status = [], 200

        def do_HEAD(self):
            self.asked.append(f"{self.command} {self.path}")
            self.send_response(self.status)
            for field, value in (("ETag", '"1234"'), ("X-Repo-Commit", "a" * 40), ("Content-Length", len(content))):
                self.send_header(field, str(value))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants as constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield Hub
    server.shutdown()


def save(path, seed=0, **text):
    model = build_clip(seed=seed, **text)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model


def first_activation(clip):
    return type(clip.model.transformer.resblocks[0].mlp[1]).__name__


def test_a_file_loads_the_weights_that_it_holds(tmp_path, small_names):
    path = tmp_path / "weights.safetensors"
    expected = save(path).eval()
    clip = FrozenClip.load("ViT-B-32-quickgelu", pretrained=str(path))
    assert clip.name == f"ViT-B-32-quickgelu/{path}" and first_activation(clip) == "LeanQuickGELU"
    for name, value in expected.state_dict().items():
        assert torch.equal(clip.model.state_dict()[name], value)


def test_a_path_is_taken_and_nothing_is_said_of_random_weights(tmp_path, small_names, caplog):
    save(tmp_path / "weights.safetensors", seed=3)
    clip = FrozenClip.load("ViT-B-32-quickgelu", tmp_path / "weights.safetensors")
    assert torch.equal(clip.model.text_projection, build_clip(seed=3).text_projection) and caplog.text == ""


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        ("{", None, "is no config of open_clip's"),
        ("[]", None, "is no config of open_clip's"),
        ('{"model_cfg": {"text_cfg": null}}', None, "is no config of open_clip's"),
        ({"text_cfg": {"hf_model_name": "roberta"}}, None, "Hugging Face text tower"),
        ({"text_cfg": {}, "multimodal_cfg": {}}, None, "is a CoCa"),
        (CONFIG, b"cut", "does not hold the model that its config describes, or is damaged"),
        ({**CONFIG, "embed_dim": 16}, None, "does not hold the model that its config describes, or is damaged"),
        ({"text_cfg": TEXT}, None, "does not hold the model that its config describes, or is damaged"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, config, weights, words):
    save(tmp_path / "open_clip_model.safetensors")
    if weights is not None:
        (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
    text = config if isinstance(config, str) else json.dumps({"model_cfg": config})
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        FrozenClip.load(f"local-dir:{tmp_path}")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused_rather_than_filled_at_random(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        FrozenClip.load(f"local-dir:{tmp_path}")


def test_a_file_of_unknown_activation_warns_and_names_the_way_out(tmp_path, small_names):
    save(tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match="need the name ViT-B-32-quickgelu"):
        clip = FrozenClip.load("ViT-B-32", pretrained=str(tmp_path / "weights.safetensors"))
    assert first_activation(clip) == "GELU"


def test_a_file_in_a_tags_folder_gets_that_tags_activation(tmp_path, small_names):
    folder = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    folder.mkdir()
    save(folder / "open_clip_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = FrozenClip.load("ViT-B-32", pretrained=str(folder / "open_clip_model.safetensors"))
    assert first_activation(clip) == "LeanQuickGELU"


def test_openais_archive_is_recognised(tmp_path, small_names):
    model = build_clip(pool_type="argmax")

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in model.state_dict().items():
                self.register_buffer(name.replace(".", "__"), tensor)
            self.register_buffer("input_resolution", torch.tensor(32))

    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(Archive()).save(path)
    from semples_plugin.clip import loading

    state = loading._openai_archive(path)
    assert "input_resolution" not in state and len(state) == len(model.state_dict())
    assert loading._openai_archive(save_plain(tmp_path)) is None


def save_plain(folder):
    torch.save({"a": torch.zeros(1)}, folder / "plain.pt")
    return folder / "plain.pt"


def test_siglips_files_get_siglips_statistics(tmp_path, small_names):
    save(tmp_path / "weights.safetensors")
    from semples_plugin.clip import loading

    model = loading._load_file("ViT-B-16-SigLIP", tmp_path / "weights.safetensors", "fp32")
    assert tuple(model.visual.image_mean) == INCEPTION and tuple(model.visual.image_std) == INCEPTION


def test_a_local_folder_brings_its_own_statistics(tmp_path):
    expected = save(tmp_path / "open_clip_model.safetensors").eval()
    about = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    clip = FrozenClip.load(f"local-dir:{tmp_path}")
    assert clip.image_mean == INCEPTION and clip.image_std == (0.25,) * 3
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(clip.encode_images(images), expected.encode_image(images, normalize=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_close_to_float32(tmp_path, small_names, precision):
    save(tmp_path / "weights.safetensors")
    arguments = "ViT-B-32-quickgelu", str(tmp_path / "weights.safetensors")
    full, low = FrozenClip.load(*arguments), FrozenClip.load(*arguments, precision=precision)
    images = torch.randn(2, 3, 32, 32)
    assert low.encode_images(images).dtype == torch.float32
    assert low.model.visual.conv1.weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float16)
    assert ((full.encode_images(images) * low.encode_images(images)).sum(1) > 0.999).all()


def test_a_cold_cache_names_the_file_and_the_option(tmp_path, small_names):
    with pytest.raises(
        FileNotFoundError, match=r"vit_base_patch32_clip_224.openai.*pretrained='/path/to/the/file'"
    ) as error:
        FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_cached_weights_load_without_a_network(cache, small_names):
    clip = FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(cache))
    assert torch.equal(clip.model.text_projection, build_clip(seed=3).text_projection)
    blob = next(cache.glob("*/blobs/1234"))
    blob.write_bytes(blob.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{blob} does not hold the weights of ViT-B-32-quickgelu, .*; delete it"):
        FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(cache))


def test_weights_are_downloaded_where_the_hub_answers(hub, tmp_path):
    clip = FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(tmp_path / "new"))
    assert torch.equal(clip.model.text_projection, build_clip(seed=3).text_projection)
    assert any(line.startswith("GET") and line.endswith("/open_clip_model.safetensors") for line in hub.asked)
    hub.asked.clear()
    FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(tmp_path / "new"))
    assert not any(line.startswith("GET") for line in hub.asked)


def test_a_hub_that_has_not_that_file_has_answered(hub, tmp_path):
    hub.status = 404
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(.*\); fetch open_clip_model.safetensors"):
        FrozenClip.load("ViT-B-32-quickgelu", "openai", cache_dir=str(tmp_path / "new"))
    assert any(line.endswith("/open_clip_pytorch_model.bin") for line in hub.asked)  # older repositories have that one


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
def test_a_hub_that_does_not_answer_is_asked_once_and_quietly(name, small_names, monkeypatch, tmp_path, capfd, caplog):
    import huggingface_hub.constants as constants
    from open_clip import factory

    config = {**CONFIG, "text_cfg": {**TEXT, "hf_tokenizer_name": "timm/tokenizer"}}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-16-SigLIP", config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"\(.*[Cc]onnect.*\)"):
        FrozenClip.load(name, open_clip.list_pretrained_tags_by_model(name)[0], cache_dir=str(tmp_path))
    captured = capfd.readouterr()
    assert captured.out == captured.err == caplog.text == "" and time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("name", "pretrained", "error", "words"),
    [
        (None, "openai", TypeError, r"name: expected an open_clip name .* got None"),
        ("ViT-B-32", 32, TypeError, r"pretrained: expected an open_clip tag .* got 32"),
        ("ViT-B32", "openai", ValueError, "did you mean.*ViT-B-32"),
        ("ViT-B-32", "opnai", ValueError, "did you mean.*openai"),
        ("ViT-B-32", None, ValueError, "needs the tag of its weights"),
        ("ViT-B-32", "/nowhere/weights.pt", FileNotFoundError, "no file /nowhere/weights.pt"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", ValueError, "Hugging Face text tower"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", ValueError, "CoCa"),
        ("local-dir:/nowhere", None, FileNotFoundError, "open_clip_config.json"),
    ],
)
def test_unknown_models_are_met_with_the_nearest(name, pretrained, error, words):
    with pytest.raises(error, match=words):
        FrozenClip.load(name, pretrained)
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        FrozenClip.load(name, pretrained, precision="int8")


def test_damaged_and_malicious_files_are_refused(tmp_path, small_names):
    save(tmp_path / "weights.safetensors")
    content = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"state_dict": Attack()}, tmp_path / "attack.pt")
    torch.save({"wrong": torch.zeros(3)}, tmp_path / "wrong.pt")
    for name in ("cut.safetensors", "attack.pt", "wrong.pt"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of ViT-B-32-quickgelu, or is damaged"):
            FrozenClip.load("ViT-B-32-quickgelu", str(tmp_path / name))
    assert not (tmp_path / "attacked").exists()


def test_cached_weights_are_found_without_the_network(tmp_path):
    from semples_plugin.clip.loading import find_cached, where_to_get

    assert find_cached("ViT-B-32-quickgelu", "openai", str(tmp_path)) is None
    # A tag that the hub has is read from the hub's cache alone, whatever another program left elsewhere.
    (tmp_path / "ViT-B-32.pt").touch()
    assert find_cached("ViT-B-32", "openai", str(tmp_path)) is None
    assert "fetch pytorch_model.bin of jienengchen/ViTamin-S on" in where_to_get("ViTamin-S", "datacomp1b")
    assert "ViT-B-32-quickgelu" in open_clip.list_models()
