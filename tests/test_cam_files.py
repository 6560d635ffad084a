"""CAM files of the hosts: written here as their own code writes them, and read without running anything."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from semples_plugin.data import cam_files, convert, images
from semples_plugin.data.cam_files import Cams, list_cams, read_cams, read_image_list, resized, write_cams
from semples_plugin.data.convert import convert_folder
from semples_plugin.data.images import image_size, read_image
from semples_plugin.utils import atomic_files, safe_pickle

CLASSES = (2, 7, 11)


def maps(size=(30, 41), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, *size), dtype=np.float32)


def stack_resized(cams, height, width) -> np.ndarray:
    return np.stack([resized(cam, height, width) for cam in cams]) if len(cams) else np.zeros((0, 1, 1), np.float32)


def as_clims(path, cams, keys=CLASSES):
    strided = torch.from_numpy(stack_resized(cams, 8, 11))
    np.save(path, {"keys": torch.tensor(keys), "cam": strided, "high_res": cams})


def as_weaktr(path, cams, keys=CLASSES):
    np.save(path, dict(zip(keys, cams, strict=True)))


def as_fma(path, cams, keys=CLASSES):
    logits = np.zeros(3, np.float32)
    np.savez(path, cam=cams, fg_cls=np.array(keys), fg_logit=logits, all_logit=np.zeros(20, np.float32))


HOSTS = {"clims": (as_clims, ".npy"), "weaktr": (as_weaktr, ".npy"), "fma": (as_fma, ".npz")}


@pytest.mark.parametrize("host", HOSTS)
def test_every_hosts_files_are_read_as_they_are(tmp_path, host):
    write, suffix = HOSTS[host]
    write(tmp_path / f"2007_000032{suffix}", maps())
    (path,) = list_cams(tmp_path).values()
    cams = read_cams(path)
    assert cams.format == host and cams.class_index == CLASSES and np.array_equal(cams.maps, maps())
    write(tmp_path / f"none{suffix}", np.zeros((0, 5, 6), np.float32), keys=())
    assert read_cams(tmp_path / f"none{suffix}").class_index == ()


def test_raw_cams_become_scores_as_fma_wsss_makes_them(tmp_path):
    raw = maps((14, 14)) - 0.4
    cams = Cams(raw, CLASSES, "fma")
    positive = np.maximum(stack_resized(raw, 30, 41), 0)
    for k in range(3):
        low, high = positive[k].min(), positive[k].max()
        np.testing.assert_allclose(cams.scores(30, 41)[k], (positive[k] - low) / (high - low + 1e-7), rtol=1e-6)
    with pytest.raises(ValueError, match="CAMs of 14 x 14 pixels, where the image has 30 x 41"):
        Cams(raw, CLASSES, "weaktr").scores(30, 41)


def test_conversion_is_lossless_and_back_again(tmp_path):
    (tmp_path / "start").mkdir()
    as_weaktr(tmp_path / "start" / "x.npy", maps())
    for source, to in (("start", "clims"), ("clims", "fma"), ("clims", "weaktr")):
        assert convert_folder(tmp_path / source, tmp_path / to, to, progress=False) == {}
        (path,) = list_cams(tmp_path / to).values()
        cams = read_cams(path)
        assert cams.format == to and cams.class_index == CLASSES and np.array_equal(cams.maps, maps()), to
    found = np.load(tmp_path / "weaktr" / "x.npy", allow_pickle=True).item()
    assert list(found) == [2, 7, 11] and found[7].dtype == np.float32


def test_what_clims_writes_is_what_it_reads(tmp_path):
    write_cams(tmp_path / "x.npy", Cams(maps(), CLASSES, "clims"))
    found = np.load(tmp_path / "x.npy", allow_pickle=True).item()
    assert found["keys"].dtype == torch.int64 and found["keys"].tolist() == [2, 7, 11]
    assert isinstance(found["cam"], torch.Tensor) and found["cam"].shape == (3, 8, 11)
    assert np.array_equal(found["high_res"], maps())


def test_raw_cams_are_converted_with_the_photographs_sizes(tmp_path):
    import cv2

    (tmp_path / "fma").mkdir()
    for name in ("x", "y"):
        as_fma(tmp_path / "fma" / f"{name}.npz", maps((14, 14)))
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "x.jpg"), np.zeros((30, 41, 3), np.uint8))
    failed = convert_folder(tmp_path / "fma", tmp_path / "out", "weaktr", images=tmp_path / "images", progress=False)
    assert "there is no image" in failed["y"] and list(failed) == ["y"]
    expected = Cams(maps((14, 14)), CLASSES, "fma").scores(30, 41)
    assert np.array_equal(read_cams(tmp_path / "out" / "x.npy").maps, expected)
    with pytest.raises(ValueError, match="give --images FOLDER"):
        convert_folder(tmp_path / "fma", tmp_path / "none", "clims", progress=False)
    assert not (tmp_path / "none").exists()
    for to, words in (("irn", "expected one of clims, weaktr, fma"), ("fma", "the folder of the CAMs themselves")):
        with pytest.raises(ValueError, match=words):
            convert_folder(tmp_path / "fma", tmp_path / "fma", to, progress=False)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


CONTENTS = ("attack", "tensor", "words", "shape", "twice", "nan", "low", "cut", "list", "empty", "numbers", "byte",
            "fraction", "point", "nested", "wide", "state", "bytearray")  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_bad_files_are_named_and_no_code_runs(tmp_path, content):
    path = tmp_path / "x.npy"
    attack = Attack(str(tmp_path / "attacked"))
    things = {
        "attack": {0: attack},
        "tensor": {"keys": torch.tensor([1]), "high_res": attack},
        "words": {"cat": maps()[0]},
        "shape": {"keys": torch.tensor([1]), "high_res": maps()},
        "twice": {"keys": torch.tensor([1, 1, 2]), "high_res": maps()},
        "nan": {0: np.full((3, 4), np.nan, np.float32)},
        "cut": {0: maps()[0]},
        "low": {0: np.array([[0, -np.inf]], np.float32)},
        "list": [1, 2],
        "empty": {},
        "numbers": None,
        "byte": {254: maps()[0]},  # its label would be 255, ignored
        "fraction": {"keys": [0.7], "high_res": maps()[:1]},
        "point": {0: np.zeros((0, 4), np.float32)},
        "nested": {0: doubled(40)},
        "wide": {0: torch.ones(1).expand(10**6, 10**6)},
        "state": None,
        "bytearray": {0: bytearray(4)},
    }
    np.save(path, np.array(things[content], dtype=object))
    if content == "numbers":
        np.save(path, maps())
    elif content == "state":  # gives the reader's own class for tensors an attribute
        whole = path.read_bytes()
        build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00xK\x01s\x86b."
        path.write_bytes(whole[: whole.index(b"\x80")] + build)
    if content == "empty":
        path.write_bytes(b"")
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_cams(path)
    assert not (tmp_path / "attacked").exists() and not hasattr(safe_pickle._Tensor, "x")


def test_code_in_an_npz_or_in_a_tensors_storage_does_not_run(tmp_path):
    attack = Attack(str(tmp_path / "attacked"))
    np.savez(tmp_path / "x.npz", cam=np.array(attack, dtype=object), fg_cls=np.array([0]))
    with pytest.raises(ValueError, match=r"x\.npz"):
        read_cams(tmp_path / "x.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"cut\.npz is damaged"):
        read_cams(tmp_path / "cut.npz")

    class Storage:
        def __reduce__(self):
            import io

            buffer = io.BytesIO()
            torch.save(attack, buffer)
            return (torch.storage._load_from_bytes, (buffer.getvalue(),))

    np.save(tmp_path / "y.npy", {"keys": Storage(), "high_res": maps()})
    with pytest.raises(ValueError, match=r"y\.npy"):
        read_cams(tmp_path / "y.npy")
    assert not (tmp_path / "attacked").exists()


def doubled(times):
    """A list of lists of ... that takes few bytes in a file and 2^times once written out."""
    found = [0.0]
    for _ in range(times):
        found = [found, found]
    return found


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("host", [*HOSTS, "png", "jpg"])
def test_damage_of_any_kind_is_told_in_a_sentence(tmp_path, host):
    random = np.random.default_rng(0)
    path = tmp_path / f"x{HOSTS[host][1] if host in HOSTS else '.' + host}"
    if host in HOSTS:
        HOSTS[host][0](path, maps((5, 6)))
    else:
        Image.fromarray(random.integers(0, 255, (9, 10), dtype=np.uint8)).save(path)
    whole, read = path.read_bytes(), read_cams if host != "jpg" else read_image
    told = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(len(whole), size=random.integers(1, 4)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(whole)) if random.random() < 0.3 else None])
        try:
            read(path)  # some damage hides in the numbers
        except ValueError as error:
            assert str(error).startswith(str(path))
            told += 1
    assert told > 50


@pytest.mark.parametrize(
    "cam, fg_cls, words",
    [
        (np.zeros((2, 40, 40), np.float32), np.arange(2), "maps of 2 x 40 x 40 pixels would take more than"),
        (np.zeros((1, 40, 70), np.uint8), np.arange(1), "maps of 1 x 40 x 70 pixels would take"),  # as float32
        (np.zeros((255, 1, 1)), np.arange(255), "expected a map for each class, and 254 at most, got 255 for 255"),
        (np.zeros((1, 2, 2)), np.zeros(10**6, int), ".* got 1 for 1000000 classes"),
        (np.zeros((10**6, 1)), np.arange(1), "cam: expected numbers in 3 dimensions"),
        (np.zeros((1, 2, 2), "U9"), np.arange(1), "cam: expected numbers in 3 dimensions, got <U9"),
    ],
)
def test_an_npz_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, cam, fg_cls, words):
    monkeypatch.setattr(cam_files, "_MAX_BYTES", 10**4)
    monkeypatch.setattr(cam_files, "_unpacked", None)
    np.savez_compressed(tmp_path / "x.npz", cam=cam, fg_cls=fg_cls)
    with pytest.raises(ValueError, match=rf"x\.npz is damaged, or no CAM file: {words}") as caught:
        read_cams(tmp_path / "x.npz")
    assert len(str(caught.value)) < 500


def test_an_npz_that_is_as_large_as_its_maps_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cam_files, "_MAX_BYTES", 10**3)
    write_cams(tmp_path / "x.npz", Cams(maps(), CLASSES, "fma"))
    assert np.array_equal(read_cams(tmp_path / "x.npz").maps, maps())


def test_a_mask_whose_maps_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cam_files, "_MAX_BYTES", 10**4)
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is damaged, .*: maps of 254 x 30 x 30 pixels would take"):
        read_cams(tmp_path / "x.png")


def test_a_picture_is_opened_as_what_it_should_be(tmp_path, monkeypatch):
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png", format="EPS")  # for which Pillow would start Ghostscript
    Image.new("L", (4, 3)).save(tmp_path / "y.png", format="JPEG")
    for name in ("x.png", "y.png"):
        with pytest.raises(ValueError, match=rf"{name} is damaged, or no mask in PNG: cannot identify"):
            read_cams(tmp_path / name)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"x\.png is damaged, or no image: cannot identify"):
            read(tmp_path / "x.png")
    for form in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"):
        Image.new("RGB", (4, 3)).save(tmp_path / "z.jpg", format=form)
        assert read_image(tmp_path / "z.jpg").shape == (3, 4, 3) and image_size(tmp_path / "z.jpg") == (3, 4)
    monkeypatch.setattr(images, "_MAX_PIXELS", 11)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"z\.jpg has 4 x 3 pixels, more than .*: scale it down"):
            read(tmp_path / "z.jpg")


@pytest.mark.parametrize(
    "planes, classes, form, words",
    [
        (maps(), (0, 1), "weaktr", "a map for each class, and 254 at most, got 3 for 2 classes"),
        (maps(), (0, 1, 1), "weaktr", r"different classes from 0 to 253, got \[0, 1, 1\]"),
        (maps(), (0, 1, 254), "weaktr", "different classes from 0 to 253"),
        (maps(), CLASSES, "irn", "expected one of clims, weaktr, fma or labels, got 'irn'"),
        (maps()[0], range(30), "weaktr", r"maps \[h, w\] of one size, got \[\(41,\)\]"),
        ([maps()[0], maps((3, 4))[1]], (0, 1), "weaktr", "of one size"),
    ],
)
def test_cams_are_checked_once_for_all(planes, classes, form, words):
    with pytest.raises(ValueError, match=words):
        Cams(planes, classes, form)


def test_folders_without_cams_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_cams(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no CAMs"):
        list_cams(tmp_path)
    (tmp_path / ".new-a.npy").touch()  # a kill left it
    with pytest.raises(FileNotFoundError, match="holds no CAMs"):
        list_cams(tmp_path)
    for suffix in (".npy", ".npz"):
        (tmp_path / f"x{suffix}").touch()
    with pytest.raises(ValueError, match="CAMs of two hosts"):
        list_cams(tmp_path)


def test_a_full_disk_costs_what_is_not_written_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    for name in ("a", "b"):
        as_weaktr(tmp_path / "start" / f"{name}.npy", maps())
    calls = []

    def fsync(_):
        calls.append(1)
        if len(calls) == 2:  # of b
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    failed = convert_folder(tmp_path / "start", tmp_path / "out", "clims", progress=False)
    assert list(failed) == ["b"] and failed["b"].endswith(f"No space left on device: '{tmp_path / 'out' / 'b.npy'}'")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npy"]  # hosts read whatever is there
    assert convert_folder(tmp_path / "start", tmp_path / "out", "clims", progress=False) == {}  # only b is made now
    assert len(calls) == 3 and np.array_equal(read_cams(tmp_path / "out" / "b.npy").maps, maps())


def test_a_folder_holds_the_conversion_of_these_cams_and_nothing_else(tmp_path, monkeypatch):
    for folder, seed in (("one", 0), ("two", 1)):
        (tmp_path / folder).mkdir()
        as_weaktr(tmp_path / folder / "a.npy", maps(seed=seed))
    out = tmp_path / "out"
    convert_folder(tmp_path / "one", out, "clims", progress=False)
    for folder, to in (("two", "clims"), ("one", "weaktr"), ("one", "fma")):
        with pytest.raises(ValueError, match=r"holds 1 files, such as a.npy, that this command didn't make"):
            convert_folder(tmp_path / folder, out, to, progress=False)
    (out / ".new-1.npy").touch()  # a kill left it
    monkeypatch.setattr(atomic_files, "_LEFT_AFTER", -1)
    path = tmp_path / "one" / "a.npy"
    for seed, age in ((2, 0), (3, 3600)):  # trained again; and replaced by older ones, as `cp -p` and rsync do it
        as_weaktr(path, maps(seed=seed))
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        with pytest.raises(ValueError, match="or of these before they changed: choose"):
            convert_folder(tmp_path / "one", out, "clims", progress=False)
        (out / "a.npy").unlink()
        assert convert_folder(tmp_path / "one", out, "clims", progress=False) == {}
        assert np.array_equal(read_cams(out / "a.npy").maps, maps(seed=seed))
    assert [file.name for file in out.iterdir()] == ["a.npy"]  # hosts read whatever is there
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, expected a folder"):
        convert_folder(tmp_path / "one", tmp_path / "file", "clims", progress=False)


@pytest.mark.parametrize("step", [10**9, 10**7, 10**3, 100, 1])
def test_files_are_known_by_their_sources_time_as_exactly_as_it_is_kept(tmp_path, step):
    for name in ("source", "target"):
        (tmp_path / name).touch()
    time = 1_795_000_001_123_456_789
    kept = time // step * step
    for made, is_own in ((kept, True), (kept - step, False), (kept + step, False)):
        os.utime(tmp_path / "source", ns=(time, time))
        os.utime(tmp_path / "target", ns=(made, made))
        assert atomic_files.is_made_of(tmp_path / "target", tmp_path / "source") == is_own


def test_cams_that_change_meanwhile_are_told(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    for name in ("a", "b"):
        as_weaktr(tmp_path / "one" / f"{name}.npy", maps())

    def write(path, cams, source_time):
        write_cams(path, cams, source_time)
        as_weaktr(tmp_path / "one" / "a.npy", maps(seed=1))  # by a training that still goes on

    monkeypatch.setattr(convert, "write_cams", write)
    failed = convert_folder(tmp_path / "one", tmp_path / "out", "clims", progress=False)
    assert list(failed) == ["a"] and "changed meanwhile" in failed["a"]


def test_the_photographs_size_belongs_to_a_conversion(tmp_path):
    (tmp_path / "fma").mkdir()
    as_fma(tmp_path / "fma" / "x.npz", maps((14, 14)))
    for folder, size in (("images", (30, 41)), ("half", (15, 20))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", size[::-1]).save(tmp_path / folder / "x.jpg")
    for _ in range(2):
        convert_folder(tmp_path / "fma", tmp_path / "out", "weaktr", images=tmp_path / "images", progress=False)
    with pytest.raises(ValueError, match="that this command didn't make"):
        convert_folder(tmp_path / "fma", tmp_path / "out", "weaktr", images=tmp_path / "half", progress=False)


def test_maps_that_are_not_normalised_are_no_scores(tmp_path):
    as_weaktr(tmp_path / "a.npy", 5 * maps())
    with pytest.raises(ValueError, match=r"CAMs up to \d.*normalise each map"):
        read_cams(tmp_path / "a.npy").scores(30, 41)


def test_names_in_lists_keep_their_dots(tmp_path):
    (tmp_path / "list.txt").write_text("a.v2\nimages/b.JPG masks/b.png\n\nc.npy\n")
    assert read_image_list(tmp_path / "list.txt") == ["a.v2", "b", "c"]
