import copy
import errno
import json
import os
import stat

import pytest
import torch
from conftest import build_frozen
from safetensors.torch import save_file

from semples_plugin import BackgroundPrompts
from semples_plugin import prompts as prompts_module
from semples_plugin.clip import frozen
from semples_plugin.prompt_quality import ClassQuality, Nearness
from semples_plugin.utils import atomic_files

NAMES = ("train", "boat", "tv monitor")


def make(**options) -> BackgroundPrompts:
    return BackgroundPrompts(3, 4, 64, **options)


def test_starts_are_seeded_and_as_large_as_asked():
    assert torch.equal(make(seed=3).vectors, make(seed=3).vectors)
    assert not torch.equal(make(seed=3).vectors, make(seed=4).vectors)
    assert BackgroundPrompts(20, 30, 512, std=0.5).vectors.std().item() == pytest.approx(0.5, rel=0.01)
    uniform = BackgroundPrompts(20, 30, 512, init="uniform").vectors
    assert uniform.min() >= 0 and 0.99 < uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.5, rel=0.01)


def test_a_file_brings_everything_back(tmp_path, clip):
    prompts = make(seed=7, std=1.0)
    prompts.check_belongs_to(clip, NAMES)
    prompts.save(tmp_path / "deep" / "prompts.safetensors")
    loaded = BackgroundPrompts.load(tmp_path / "deep" / "prompts.safetensors")
    assert torch.equal(loaded.vectors, prompts.vectors)
    assert loaded.class_names == NAMES and loaded.clip_name == "CLIP 0" and loaded.seed == 7
    assert loaded.template == "a photo of {}." and loaded.suffix_ids is None
    loaded.check_belongs_to(clip, ["Train", "boat", "tvmonitor"])
    assert stat.S_IMODE((tmp_path / "deep" / "prompts.safetensors").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_does_not_belong_is_refused_with_both_sides_named(tmp_path, clip):
    prompts = make()
    prompts.check_belongs_to(clip, NAMES)
    with pytest.raises(ValueError, match="class 1 is 'boat' in the prompts and 'ship' in the class list"):
        prompts.check_belongs_to(clip, ["train", "ship", "tv monitor"])
    signs = make()
    signs.check_belongs_to(clip, ["ER+", "ER-", "C++"])
    signs.check_belongs_to(clip, ["er+", "ER -", "c++"])
    with pytest.raises(ValueError, match="class 0 is 'ER\\+' in the prompts and 'ER-' in the class list"):
        signs.check_belongs_to(clip, ["ER-", "ER+", "C++"])
    with pytest.raises(ValueError, match="class 2 is 'C\\+\\+' in the prompts and 'C#' in the class list"):
        signs.check_belongs_to(clip, ["ER+", "ER-", "C#"])
    with pytest.raises(ValueError, match="for 3 classes, the class list has 2"):
        prompts.check_belongs_to(clip, NAMES[:2])
    with pytest.raises(ValueError, match="learned with CLIP 0, this is CLIP 1"):
        prompts.check_belongs_to(build_frozen(seed=1), NAMES)
    with pytest.raises(ValueError, match="text width 32"):
        BackgroundPrompts(3, 4, 32).check_belongs_to(clip, NAMES)
    with pytest.raises(ValueError, match="90 names"):
        BackgroundPrompts(90, 4, 64).check_belongs_to(clip, NAMES)


def test_the_releases_file_is_read_as_data(tmp_path, clip):
    vectors = torch.rand(3, 4, 64)
    torch.save({"prompts": vectors}, tmp_path / "btp.pth")
    prompts = BackgroundPrompts.load(tmp_path / "btp.pth")
    assert torch.equal(prompts.vectors, vectors) and prompts.suffix_ids == (13,)

    # Written out by hand: start, "a photo of", the vectors, token 13, end, zero padding; read at position 5 + L.
    ids = torch.zeros(3, 77, dtype=torch.long)
    ids[:, :4] = torch.tensor([49406, 320, 1125, 539])
    ids[:, 8], ids[:, 9] = 13, 49407
    model = clip.model
    hidden = model.token_embedding(ids)
    hidden[:, 4:8] = vectors
    hidden = model.transformer(hidden + model.positional_embedding, attn_mask=model.attn_mask)
    expected = model.ln_final(hidden)[:, 5 + 4] @ model.text_projection
    torch.testing.assert_close(prompts.encode(clip), torch.nn.functional.normalize(expected, dim=1))


def test_damaged_and_malicious_files_are_refused(tmp_path, clip):
    good = tmp_path / "good.safetensors"
    make().save(good)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:200])
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + bytes(50))
    (tmp_path / "empty.safetensors").write_bytes(b"")

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    torch.save({"prompts": Attack()}, tmp_path / "attack.pth")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"prompts": torch.full((3, 4, 64), torch.nan)}, tmp_path / "nan.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    words = {
        "cut.safetensors": "cut short or damaged",
        "empty.safetensors": "cut short or damaged",
        "cut.pth": "tensors alone",
        "attack.pth": "holds code, which is never run",
        "other.pth": r"got \{'weights': \[3\]\}",
        "nan.pth": "NaN",
        "list.pth": "got list",
    }
    for name, message in words.items():
        with pytest.raises(ValueError, match=message) as error:
            BackgroundPrompts.load(tmp_path / name)
        assert name in str(error.value)
    assert not (tmp_path / "attacked").exists()
    with pytest.raises(FileNotFoundError, match="no prompts file"):
        BackgroundPrompts.load(tmp_path / "nothing.safetensors")


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path):
    for name in ("a.pt", "b.pth", "c"):
        make(seed=1).save(tmp_path / name)
        assert torch.equal(BackgroundPrompts.load(tmp_path / name).vectors, make(seed=1).vectors)


def test_torchs_defaults_do_not_change_what_a_seed_gives():
    expected = make(seed=1).vectors
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(make(seed=1).vectors, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_private_file_stays_private_and_a_link_a_link(tmp_path):
    path, link = tmp_path / "prompts.safetensors", tmp_path / "link.safetensors"
    make(seed=1).save(path)
    path.chmod(0o600)
    link.symlink_to(path)
    make(seed=2).save(link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert torch.equal(BackgroundPrompts.load(path).vectors, make(seed=2).vectors)


def test_a_full_disk_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "prompts.safetensors"
    make(seed=1).save(path)
    monkeypatch.setattr(atomic_files.os, "fsync", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(seed=2).save(path)
    assert torch.equal(BackgroundPrompts.load(path).vectors, make(seed=1).vectors)
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.safetensors"]


def _full_disk(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_prompts_that_do_not_fit_into_the_context_are_refused_at_once(clip):
    with pytest.raises(ValueError, match=r"prompts of 73 vectors don't fit into"):
        BackgroundPrompts(3, 73, clip.text_width).check_belongs_to(clip, ["a", "b", "c"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="positive sizes"):
        BackgroundPrompts(0, 4, 64)
    with pytest.raises(ValueError, match="init"):
        make(init="zeros")


QUALITY = tuple(
    ClassQuality(name, Nearness(0.2, 0.1, 0.5, 0.3, "boat"), Nearness(0.4, 0.1, 0.75, 0.2, "train"), 7)
    for name in NAMES
)


def of_everything(clip) -> BackgroundPrompts:
    """Prompts none of whose properties is a default."""
    prompts = BackgroundPrompts.for_clip(
        clip, NAMES, 4, seed=7, init="uniform", template="a picture of {}.", suffix_ids=(13,)
    )
    prompts.learned, prompts.quality = True, QUALITY
    return prompts


def same(a: BackgroundPrompts, b: BackgroundPrompts) -> bool:
    first, second = a.get_extra_state(), b.get_extra_state()
    signatures = first.pop("signature"), second.pop("signature")
    return torch.equal(a.vectors, b.vectors) and first == second and torch.equal(*signatures)


def test_a_state_dict_carries_all_that_the_vectors_belong_to(tmp_path, clip):
    prompts = of_everything(clip)
    torch.save(prompts.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    plain = make()
    plain.load_state_dict(state)
    assert same(plain, prompts) and same(BackgroundPrompts.from_state(state), prompts)
    assert same(copy.deepcopy(prompts), prompts) and plain.quality == QUALITY
    host = torch.nn.ModuleDict({"prompts": make()})
    host.load_state_dict(torch.nn.ModuleDict({"prompts": prompts}).state_dict())
    assert same(host["prompts"], prompts)
    with pytest.raises(ValueError, match="class 0 is 'train' in the prompts and 'ship' in the class list"):
        plain.check_belongs_to(clip, ["ship", "boat", "tv monitor"])
    prompts.save(tmp_path / "p.safetensors")
    assert same(BackgroundPrompts.load(tmp_path / "p.safetensors"), prompts)


def test_older_state_dicts_of_vectors_alone_count_as_learned(clip):
    prompts, vectors = make(template="a picture of {}.", seed=5), torch.randn(3, 4, 64)
    prompts.check_belongs_to(clip, NAMES)
    prompts.load_state_dict({"vectors": vectors})
    assert prompts.learned and torch.equal(prompts.vectors, vectors)
    assert (prompts.template, prompts.seed, prompts.class_names) == ("a picture of {}.", 5, NAMES)
    fresh = make()
    fresh.load_state_dict({}, strict=False)
    assert not fresh.learned
    fresh.load_state_dict(make().state_dict())
    assert not fresh.learned  # as those weren't


def test_a_state_dict_without_vectors_that_fit_changes_nothing(clip):
    prompts, other = of_everything(clip), of_everything(clip)
    host = torch.nn.ModuleDict({"prompts": prompts})
    host.load_state_dict({}, strict=False)  # as a host's pretrained weights
    host.load_state_dict({"prompts._extra_state": make().get_extra_state()}, strict=False)
    assert same(prompts, other)
    fresh, start = make(), make()
    with pytest.raises(RuntimeError, match="size mismatch for vectors"):
        fresh.load_state_dict({**other.state_dict(), "vectors": torch.zeros(3, 5, 64)})
    for damage in ({"class_names": ("train",)}, {"quality": [{"class_name": "train"}]}):
        about = {**other.get_extra_state(), **damage}
        with pytest.raises((ValueError, KeyError)):
            fresh.load_state_dict({**other.state_dict(), "_extra_state": about})
    assert torch.equal(fresh.vectors, start.vectors) and fresh.get_extra_state() == start.get_extra_state()


def test_a_file_of_an_older_version_loads(tmp_path, clip):
    about = {
        "class_names": NAMES,
        "clip_name": "CLIP 0",
        "length": 4,
        "template": "a photo of {}.",
        "suffix_ids": None,
        "seed": 7,
        "learned": True,
        "similarities": {"background": [0.4, None, 0.3], "label": [0.1, 0.2, 0.3]},
    }
    tensors = {"prompts": torch.randn(3, 4, 64), "signature": clip.signature()}
    metadata = {key: json.dumps(value) for key, value in about.items()}
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    prompts = BackgroundPrompts.load(tmp_path / "old.safetensors")
    prompts.check_belongs_to(clip, NAMES)
    assert torch.equal(prompts.vectors, tensors["prompts"]) and prompts.learned and prompts.seed == 7
    assert prompts.quality[0] == ClassQuality("train", None, Nearness(0.4, None, None, 0.1, None))
    assert [quality.seen for quality in prompts.quality] == [True, False, True]
    for damage in ({"quality": '[{"class_name": "a"}]'}, {"class_names": '["a"]'}, {"similarities": "3"}):
        save_file(tensors, tmp_path / "bad.safetensors", metadata={**metadata, **damage})
        with pytest.raises(ValueError, match=r"bad.safetensors is damaged.*learn the prompts again"):
            BackgroundPrompts.load(tmp_path / "bad.safetensors")


def test_states_of_an_unreleased_version_load_unless_they_are_words(tmp_path, clip):
    prompts, fresh = of_everything(clip), make()
    state, about = prompts.state_dict(), prompts.get_extra_state()
    fresh.load_state_dict({**state, "_extra_state": {**about, "words": None}})
    assert same(fresh, prompts)
    with pytest.raises(ValueError, match="these prompts are words, which are no longer taken"):
        fresh.load_state_dict({**state, "_extra_state": {**about, "words": ["grass", "room", "sea"]}})
    for words in (None, ["grass", "room", "sea"]):
        save_file({"prompts": prompts.vectors.data}, tmp_path / "p.safetensors", metadata={"words": json.dumps(words)})
        if words is None:
            assert torch.equal(BackgroundPrompts.load(tmp_path / "p.safetensors").vectors, prompts.vectors)
        else:
            with pytest.raises(ValueError, match=r"p.safetensors .*these prompts are words"):
                BackgroundPrompts.load(tmp_path / "p.safetensors")


def test_prompts_for_a_clip_belong_to_it(clip):
    prompts = BackgroundPrompts.for_clip(clip, NAMES, 4, seed=3)
    assert torch.equal(prompts.vectors, make(seed=3, std=clip.token_std).vectors) and not prompts.learned
    assert prompts.class_names == NAMES and prompts.clip_name == "CLIP 0"
    assert BackgroundPrompts.for_clip(clip, NAMES).vectors.shape == (3, 30, 64)
    assert torch.equal(
        BackgroundPrompts.for_clip(clip, NAMES, 4, std=0.5, seed=3).vectors, make(seed=3, std=0.5).vectors
    )
    with pytest.raises(ValueError, match="learned with CLIP 0, this is CLIP 1"):
        prompts.check_belongs_to(build_frozen(seed=1), NAMES)
    with pytest.raises(ValueError, match="don't fit into"):
        BackgroundPrompts.for_clip(clip, NAMES, 73)
    with pytest.raises(TypeError, match="list of strings"):
        BackgroundPrompts.for_clip(clip, "train")
    with pytest.raises(TypeError, match="clip: expected a FrozenClip, got CLIP; wrap it"):
        BackgroundPrompts.for_clip(clip.model, NAMES)
    with pytest.raises(TypeError, match="clip: expected a FrozenClip, got tuple"):
        BackgroundPrompts.for_clip(NAMES, clip)


def test_many_classes_are_encoded_in_parts_where_nothing_learns(monkeypatch, clip):
    prompts = make()
    texts, features = clip.encode_texts(NAMES), prompts_module.EncodedPrompts.of(prompts, clip).features
    sizes: list[int] = []
    for module in (frozen, prompts_module):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    for name in ("transformer", "ln_final"):
        tower = getattr(clip._text, name)
        monkeypatch.setattr(
            tower, "forward", lambda x, *a, inner=tower.forward, **k: (sizes.append(len(x)), inner(x, *a, **k))[1]
        )
    torch.testing.assert_close(clip.encode_texts(NAMES), texts, atol=1e-6, rtol=0)
    torch.testing.assert_close(prompts_module.EncodedPrompts.of(prompts, clip).features, features, atol=1e-6, rtol=0)
    assert sizes and max(sizes) == 2
