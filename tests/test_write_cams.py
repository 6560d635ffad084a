"""`write_cams_of`: CAM files equal a loop by hand over images, scales and flips; interrupted runs go on."""

import json
import os
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from semples_plugin import FrozenClip, SemPLeSRegularizer, wrap, write_cams_of
from semples_plugin.data import new_cam_files
from semples_plugin.data.cam_files import list_cams, read_cams
from semples_plugin.data.image_records import ImageRecords, look

SIZES = {"a": (33, 47), "b": (33, 47), "c": (40, 25), "d": (33, 47), "e": (21, 64)}
LABELS = {"a": [1, 0, 1], "b": [0, 1, 0], "c": [1, 1, 1], "d": [0, 0, 0], "e": [0, 0, 1]}
LABELS = {name: np.array(label, np.float32) for name, label in LABELS.items()}
SCALES = (1.0, 0.5, 1.5)


class Network(nn.Module):
    """Stride 4, signed CAMs of three classes; the last has no positive one. It counts its calls and their modes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 7, stride=4, padding=3), nn.BatchNorm2d(3)
        self.calls = []

    def forward(self, images):
        assert not torch.is_grad_enabled()
        self.calls.append((len(images), self.training))
        cams = self.norm(self.conv(images))
        return torch.cat([cams[:, :2], -cams[:, 2:].abs()], dim=1)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        pixels = generator.integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@torch.no_grad()
def by_hand(network, path, label, scales, flips, kind):
    """Scores of the present classes, as write_cams_of's docstring says, class by class and view by view."""
    pixels = np.asarray(Image.open(path), dtype=np.float32) / 255
    height, width = pixels.shape[:2]
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    maps = {}
    for k in np.flatnonzero(label):
        total = torch.zeros(height, width)
        for scale in scales:
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            if scale != 1:
                size = (round(height * scale), round(width * scale))
                image = F.interpolate(image, size, mode="bicubic", antialias=True).clip(0, 1)
            image = torch.from_numpy((image[0].permute(1, 2, 0).numpy() - mean) / std).permute(2, 0, 1)[None]
            for mirrored in (False, True) if flips else (False,):
                cam = network(image.flip(3) if mirrored else image)[0, k]
                cam = {"relu": cam.clamp(min=0), "logits": 1 / (1 + (-cam).exp())}.get(kind, cam)
                large = F.interpolate(cam[None, None], (height, width), mode="bilinear")[0, 0]
                total = total + (large.flip(1) if mirrored else large)
        if kind == "min-max":
            total = total - total.min()
        maps[int(k)] = (total / total.max() if total.max() > 0 else total).numpy()
    return maps


@pytest.mark.parametrize("kind", ["relu", "logits", "min-max"])
@pytest.mark.parametrize(("flips", "scales"), [(True, SCALES), (False, (1.0,)), (True, (0.75,))])
def test_files_equal_a_loop_by_hand(images, tmp_path, kind, flips, scales):
    network = Network()
    options = {"scales": scales, "flips": flips, "kind": kind, "batch_size": 2, "progress": False}
    assert write_cams_of(network, images, tmp_path / "out", LABELS, **options) == {}
    assert max(count for count, _ in network.calls) == 2 * (1 + flips) and not any(mode for _, mode in network.calls)
    assert network.training and network.norm.training  # as before
    network.eval()
    for name, label in LABELS.items():
        cams = read_cams(tmp_path / "out" / f"{name}.npy")
        expected = by_hand(network, images / f"{name}.png", label, scales, flips, kind)
        assert cams.format == "weaktr" and cams.class_index == tuple(expected)
        for k, plane in zip(cams.class_index, cams.planes, strict=True):
            assert plane.shape == SIZES[name]
            np.testing.assert_allclose(plane, expected[k], atol=2e-6)
            if kind == "relu":
                assert plane.max() == (k != 2)  # a class without a positive value stays zero
    assert read_cams(tmp_path / "out/d.npy").class_index == ()


def test_flips_are_undone_and_scores_lie_where_the_object_is(images, tmp_path):
    def red(batch):  # no convolution: the flipped view is bit by bit the mirrored one
        return batch[:, :1].expand(-1, 3, -1, -1).exp()

    options = {"origin": "red", "progress": False}
    for flips in (True, False):
        write_cams_of(red, images, tmp_path / str(flips), LABELS, scales=(1,), flips=flips, **options)
    for name in "abce":
        once, twice = (read_cams(tmp_path / which / f"{name}.npy").maps for which in ("False", "True"))
        assert np.array_equal(once, twice) and once.std() > 0.05

    pixels = np.zeros((31, 45, 3), np.uint8)
    pixels[4:9, 30:40] = 255
    Image.fromarray(pixels).save(images / "f.png")
    write_cams_of(red, images, tmp_path / "out", {"f": np.array([1, 0, 0])}, **options)
    plane = read_cams(tmp_path / "out/f.npy").planes[0]
    assert plane[4:9, 30:40].min() > 0.5 and plane[:, :25].max() < 0.1 and plane[14:].max() < 0.1


@pytest.mark.parametrize("format_", ["clims", "weaktr", "fma"])
def test_all_formats_hold_the_same_scores(images, tmp_path, format_):
    network = Network().eval()
    write_cams_of(network, images, tmp_path / "out", LABELS, format=format_, scales=(1.0, 2.0), progress=False)
    expected = by_hand(network, images / "c.png", LABELS["c"], (1.0, 2.0), True, "relu")
    cams = read_cams(list_cams(tmp_path / "out")["c"])
    assert cams.format == format_ and cams.class_index == (0, 1, 2)
    for plane, k in zip(cams.planes, cams.class_index, strict=True):
        np.testing.assert_allclose(plane, expected[k], atol=2e-6)
    assert set(list_cams(tmp_path / "out")) == set(SIZES)


def test_batches_of_any_size_give_the_same(images, tmp_path):
    network = Network().eval()
    for size in (1, 3):
        write_cams_of(network, images, tmp_path / str(size), LABELS, batch_size=size, progress=False)
    for name in SIZES:
        one, three = (read_cams(tmp_path / size / f"{name}.npy").maps for size in ("1", "3"))
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_a_killed_run_goes_on_and_leaves_whole_files_alone(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    network = Network()

    class Killed(BaseException):
        pass

    def killing(batch):
        if len(network.calls) == 3:
            raise Killed
        return network(batch)

    options = {"scales": (1.0,), "batch_size": 1, "progress": False, "origin": "my.pth"}
    with pytest.raises(Killed):
        write_cams_of(killing, images, out, LABELS, **options)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert 2 <= len(done) < 5 and all(read_cams(path) for path in done)
    network.calls.clear()
    assert write_cams_of(network, images, out, LABELS, **options) == {}
    assert len(network.calls) == len(SIZES) - len(done)  # neither those that are done nor the image without a label
    assert all(path.stat().st_mtime_ns == time for path, time in done.items()) and len(list_cams(out)) == 5
    network.calls.clear()
    write_cams_of(network, images, out, LABELS, **options)
    assert network.calls == []


def test_a_full_disk_ends_it_and_the_same_call_goes_on(images, tmp_path, monkeypatch):
    network, out, write = Network(), tmp_path / "out", new_cam_files.write_cams

    def full(path, cams):
        if path.name == "c.npy":
            raise OSError(28, "No space left on device", str(path))
        write(path, cams)

    monkeypatch.setattr(new_cam_files, "write_cams", full)
    with pytest.raises(OSError, match=r"No space left on device.*c\.npy"):
        write_cams_of(network, images, out, LABELS, progress=False)
    monkeypatch.undo()
    assert write_cams_of(network, images, out, LABELS, progress=False) == {} and len(list_cams(out)) == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [({"scales": (1.0, 2.0)}, r"scales \[1\.0\], where this call has \[1\.0, 2\.0\]"), ({"flips": False}, "flips True"),
     ({"kind": "logits"}, "kind 'relu'"), ({"format": "clims"}, "format 'weaktr'"), ({"mean": (0, 0, 0)}, "mean, std"),
     ({"origin": "other.pth"}, "model 'weights "), ({"labels": {**LABELS, "a": LABELS["b"]}}, "labels ")],
)  # fmt: skip
def test_other_settings_are_refused(images, tmp_path, change, named):
    options = {"model": Network(), "images": images, "out": tmp_path / "out", "labels": LABELS, "scales": (1.0,)}
    write_cams_of(**options, names=["a"], progress=False)
    with pytest.raises(ValueError, match=f"holds CAMs made with {named}.*: choose another folder, or empty this one"):
        write_cams_of(**{**options, **change}, progress=False)
    assert list(list_cams(tmp_path / "out")) == ["a"]
    write_cams_of(**options, names=["b"], progress=False)  # more images of the same settings
    assert list(list_cams(tmp_path / "out")) == ["a", "b"]


def test_changed_images_are_noticed_where_a_call_goes_on(images, tmp_path):
    out, options = tmp_path / "out", {"origin": "my.pth", "scales": (1.0,), "progress": False}
    network = Network()
    write_cams_of(network, images, out, LABELS, ["a", "b", "d"], **options)
    before = {path: path.read_bytes() for path in out.glob("*.npy")}
    os.utime(images / "b.png", ns=(1, 1))  # a copy of the same image
    write_cams_of(network, images, out, LABELS, ["a", "b", "d"], **options)
    status = (images / "a.png").stat()
    Image.fromarray(np.zeros((33, 47, 3), np.uint8)).save(images / "d.png")  # it has no label, and isn't looked at
    pixels = np.asarray(Image.open(images / "a.png")).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(images / "a.png")
    with pytest.raises(ValueError, match=r"out holds CAMs of 1 images that changed since they were made, such "
                       r"as .*a\.png: remove their CAM files, such as a\.npy, to have them made again"):  # fmt: skip
        write_cams_of(network, images, out, LABELS, **options)
    assert before == {path: path.read_bytes() for path in out.glob("*.npy")}
    write_cams_of(network, images, out, LABELS, ["b", "c"], **options)  # another process's share is untouched
    (out / "a.npy").unlink()
    assert write_cams_of(network, images, out, LABELS, **options) == {}
    write_cams_of(network, images, out, LABELS, **options)  # the last record counts
    Image.fromarray(pixels[:30]).save(images / "a.png")
    os.utime(images / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match="1 images that changed"):
        write_cams_of(network, images, out, LABELS, **options)
    (images / "a.png").unlink()
    write_cams_of(network, images, out, LABELS, **options)


def test_a_checkpoint_written_anew_under_its_name_is_noticed(images, tmp_path):
    options = {"origin": tmp_path / "my.pth", "progress": False}
    (tmp_path / "my.pth").write_bytes(b"1")
    write_cams_of(Network(), images, tmp_path / "out", LABELS, ["a"], **options)
    write_cams_of(Network(), images, tmp_path / "out", LABELS, ["b"], **options)
    (tmp_path / "my.pth").write_bytes(b"2")
    with pytest.raises(ValueError, match=r"holds CAMs made with model '.*my\.pth .*where this call has"):
        write_cams_of(Network(), images, tmp_path / "out", LABELS, **options)


def test_records_survive_a_kill_and_a_full_disk_names_them(tmp_path, monkeypatch):
    records, image = ImageRecords(tmp_path / "records"), tmp_path / "a.png"
    image.write_bytes(b"1")
    records.add("a", look(image))
    (tmp_path / "records").write_bytes((tmp_path / "records").read_bytes() + b'\n["b", 1')
    records.add("c\n\xe9", look(image))
    image.write_bytes(b"2")
    assert records.changed(dict.fromkeys(["a", "b", "c\n\xe9", "d"], image)) == ["a", "c\n\xe9"]
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*full'"):
        ImageRecords(tmp_path / "full").add("a", look(image))


def test_other_weights_and_strange_files_are_refused(images, tmp_path):
    network, out = Network(), tmp_path / "out"
    write_cams_of(network, images, out, LABELS, progress=False)
    with torch.no_grad():
        network.conv.weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="holds CAMs made with model 'weights"):
        write_cams_of(network, images, out, LABELS, progress=False)
    (out / new_cam_files.SETTINGS).write_text("[")
    with pytest.raises(ValueError, match=r"write_cams_of\.json doesn't say how the CAMs beside it were made"):
        write_cams_of(network, images, out, LABELS, progress=False)
    (out / new_cam_files.SETTINGS).unlink()
    with pytest.raises(ValueError, match=r"holds 6 files, such as a\.npy, that this command didn't make"):
        write_cams_of(network, images, out, LABELS, progress=False)


def test_a_broken_image_is_named_and_the_rest_written(images, tmp_path):
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:60])
    (images / "e.png").unlink()
    (images / "c.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"3 images have no CAMs, such as \w: .*[ace]\.(png|jpg)"):
        failed = write_cams_of(Network(), images, tmp_path / "out", LABELS, progress=False)
    assert sorted(failed) == ["a", "c", "e"] and "is damaged, or no image" in failed["a"]
    assert failed["e"] == f"there is no image {images}/e.jpg"
    assert list(list_cams(tmp_path / "out")) == ["b", "d"]


def test_nan_is_an_images_failure(images, tmp_path):
    def network(batch):
        return batch / (batch.shape[2:] != SIZES["e"])  # infinite for one image

    with pytest.warns(UserWarning, match="1 images have no CAMs, such as e: the model's CAMs are NaN or infinite"):
        options = {"origin": "x", "scales": (1.0,), "progress": False}
        assert list(write_cams_of(network, images, tmp_path / "out", LABELS, **options)) == ["e"]
    assert set(list_cams(tmp_path / "out")) == set("abcd")


def test_wrapped_models_methods_and_ddps_module(images, tmp_path):
    class Segmentor(Network):
        def forward(self, images):
            raise AssertionError

        def extract_feat(self, images):
            return Network.forward(self, images)

    network = Network()
    wrapped = wrap(network, SemPLeSRegularizer(FrozenClip.load("demo"), ["train", "boat", "car"]), kind="logits")
    write_cams_of(wrapped, images, tmp_path / "wrapped", LABELS, progress=False)
    write_cams_of(network, images, tmp_path / "plain", LABELS, kind="logits", progress=False)
    segmentor = Segmentor()
    write_cams_of(segmentor.extract_feat, images, tmp_path / "method", LABELS, kind="logits", progress=False)
    assert segmentor.training and not any(training for _, training in segmentor.calls)
    for name in SIZES:
        wanted = (tmp_path / "plain" / f"{name}.npy").read_bytes()
        assert (tmp_path / "wrapped" / f"{name}.npy").read_bytes() == wanted
        assert (tmp_path / "method" / f"{name}.npy").read_bytes() == wanted
    settings = [json.loads((tmp_path / name / new_cam_files.SETTINGS).read_text()) for name in ("plain", "method")]
    assert settings[0] == settings[1] and settings[0]["kind"] == "logits" and settings[0]["flips"] is True


def test_lists_of_names_choose(images, tmp_path):
    write_cams_of(Network(), images, tmp_path / "out", LABELS, ["c", "a", "c"], progress=False)
    assert list(list_cams(tmp_path / "out")) == ["a", "c"]


def test_the_bar_counts_all_images(images, tmp_path, capsys):
    write_cams_of(Network(), images, tmp_path / "out", LABELS, ["a", "d"])
    (images / "e.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 images"):
        write_cams_of(Network(), images, tmp_path / "out", LABELS)
    lines = re.findall(r"CAMs: +100%.*?(\d/\d)", capsys.readouterr().err)
    assert lines[-1] == "5/5" and "2/2" in lines


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"model": lambda images: images}, TypeError, "origin: a function doesn't tell its weights"),
     ({"model": 3}, TypeError, "model: expected a module or a function from images to CAMs, got int"),
     ({"scales": ()}, TypeError, "scales: expected factors"), ({"scales": (1, 0)}, ValueError, "scales: expected a"),
     ({"scales": (1, 1.0)}, ValueError, "scales: expected each once"), ({"kind": "soft"}, ValueError, "kind: expected"),
     ({"format": "png"}, ValueError, "format: expected one of clims, weaktr, fma, got 'png'"),
     ({"batch_size": 0}, ValueError, "batch_size: expected"), ({"std": (1, 1, 0)}, ValueError, "std: expected three"),
     ({"names": ["a", "z"]}, ValueError, "labels: 1 of 2 images have none, such as z"),
     ({"names": []}, ValueError, "names: expected at least one image"),
     ({"names": "list.txt"}, TypeError, "names: expected image names; read_image_list reads them from 'list.txt'"),
     ({"labels": {"a": np.array([0.5, 1])}}, ValueError, "labels: expected multi-hot labels"),
     ({"labels": {"a": np.ones(3), "b": np.ones(2)}}, ValueError, "labels: expected labels of one length"),
     ({"labels": [1]}, TypeError, "labels: expected image names and multi-hot labels, got list"),
     ({"labels": {"a": np.ones(4)}}, ValueError, r"CAMs: expected \[2, 4, h, w\], as labels have 4, got \[2, 3, "),
     ({"images": "nowhere"}, FileNotFoundError, "there is no folder nowhere")],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(images, tmp_path, options, error, message):
    given = {"model": Network(), "images": images, "labels": LABELS, **options}
    with pytest.raises(error, match=message):
        write_cams_of(out=tmp_path / "out", progress=False, **given)
    assert not list((tmp_path / "out").glob("*.npy"))


def test_a_device_is_where_images_go(images, tmp_path):
    seen = []

    def network(batch):
        seen.append(batch.device.type)
        return torch.ones(len(batch), 3, 4, 4)

    write_cams_of(network, images, tmp_path / "out", LABELS, device="cpu", origin="x", progress=False)
    assert set(seen) == {"cpu"}
    with pytest.raises(RuntimeError, match=r"(?i)meta"):  # nothing comes back from there
        write_cams_of(network, images, tmp_path / "meta", LABELS, device="meta", origin="x", progress=False)
