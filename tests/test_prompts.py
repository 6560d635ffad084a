import errno
import os
import stat

import pytest
import torch
from conftest import build_frozen

from semples_plugin import BackgroundPrompts, files

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
    prompts.claim(clip, NAMES)
    prompts.save(tmp_path / "deep" / "prompts.safetensors")
    loaded = BackgroundPrompts.load(tmp_path / "deep" / "prompts.safetensors")
    assert torch.equal(loaded.vectors, prompts.vectors)
    assert loaded.class_names == NAMES and loaded.clip_name == "CLIP 0" and loaded.seed == 7
    assert loaded.template == "a photo of {}." and loaded.suffix_ids is None
    loaded.claim(clip, ["Train", "boat", "tvmonitor"])
    assert stat.S_IMODE((tmp_path / "deep" / "prompts.safetensors").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_does_not_belong_is_refused_with_both_sides_named(tmp_path, clip):
    prompts = make()
    prompts.claim(clip, NAMES)
    with pytest.raises(ValueError, match="class 1 is 'boat' there and 'ship' here"):
        prompts.claim(clip, ["train", "ship", "tv monitor"])
    signs = make()
    signs.claim(clip, ["ER+", "ER-", "C++"])
    signs.claim(clip, ["er+", "ER -", "c++"])
    with pytest.raises(ValueError, match="class 0 is 'ER\\+' there and 'ER-' here"):
        signs.claim(clip, ["ER-", "ER+", "C++"])
    with pytest.raises(ValueError, match="class 2 is 'C\\+\\+' there and 'C#' here"):
        signs.claim(clip, ["ER+", "ER-", "C#"])
    with pytest.raises(ValueError, match="for 3 classes, the class list has 2"):
        prompts.claim(clip, NAMES[:2])
    with pytest.raises(ValueError, match="learned with CLIP 0, this is CLIP 1"):
        prompts.claim(build_frozen(seed=1), NAMES)
    with pytest.raises(ValueError, match="text width 32"):
        BackgroundPrompts(3, 4, 32).claim(clip, NAMES)
    with pytest.raises(ValueError, match="90 names"):
        BackgroundPrompts(90, 4, 64).claim(clip, NAMES)


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
        "other.pth": r"found \{'weights': \[3\]\}",
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
    monkeypatch.setattr(files.os, "fsync", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(seed=2).save(path)
    assert torch.equal(BackgroundPrompts.load(path).vectors, make(seed=1).vectors)
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.safetensors"]


def _full_disk(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_prompts_that_do_not_fit_into_the_context_are_refused_at_once(clip):
    with pytest.raises(ValueError, match=r"prompts of 73 vectors don't fit into"):
        BackgroundPrompts(3, 73, clip.text_width).claim(clip, ["a", "b", "c"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="positive sizes"):
        BackgroundPrompts(0, 4, 64)
    with pytest.raises(ValueError, match="init"):
        make(init="zeros")
