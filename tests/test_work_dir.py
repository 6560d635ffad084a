"""Interrupted runs of stage (b): what is continued, what is refused, and what a full disk costs."""

import copy
import json
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_frozen
from test_atomic_files import full_disk
from test_prompt_learning import OPTIONS, Batches, make
from test_prompt_learning import learned as learned_in_memory

from semples_plugin import BackgroundPrompts, FrozenClip, LossWeights, learn_background_prompts
from semples_plugin.prompt_learning import epochs, feature_store, parts
from semples_plugin.prompt_learning import work_dir as files
from semples_plugin.prompts import same_clip
from semples_plugin.utils import atomic_files


def learned(batches=None, change=None, **options) -> torch.Tensor:
    """The prompts of a run of its own, which nothing interrupts, from features in half precision as well."""
    with TemporaryDirectory() as folder:
        return learned_in_memory(batches, change, work_dir=f"{folder}/work", **options)


class Interrupt:
    """Stops learning the way Ctrl-C does, in the middle of an epoch."""

    def __init__(self, regularizer, after):
        self.left, self.inner = after, regularizer.prompt_losses_of

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner(*arguments)


@pytest.mark.parametrize("after", [0, 7, 17])
def test_an_interrupted_run_resumes_to_the_same_prompts_without_another_walk(tmp_path, monkeypatch, after):
    whole, broken = make(), make()
    expected = learn_background_prompts(whole, Batches(), work_dir=tmp_path / "whole", **OPTIONS)
    tmp_path = tmp_path / "work"
    batches = Batches()
    with monkeypatch.context() as patch:
        patch.setattr(broken, "prompt_losses_of", Interrupt(broken, after))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(broken, batches, work_dir=tmp_path, **OPTIONS)
    again = make()
    steps: list[int] = []
    inner = again.prompt_losses_of
    again.prompt_losses_of = lambda *a: (steps.append(1), inner(*a))[1]
    with pytest.warns(UserWarning, match=f"continued: .* 24 pairs, {after // 3} of 6 epochs.*delete the folder"):
        history = learn_background_prompts(again, batches, work_dir=tmp_path, **OPTIONS)
    assert again.prompts.learned and not broken.prompts.learned
    assert len(steps) == 6 * 3 - after // 3 * 3  # whole epochs of three steps are kept
    assert torch.equal(again.prompts.vectors, whole.prompts.vectors) and batches.walks == 1
    assert history.loss == expected.loss and history.label == expected.label
    assert not tmp_path.exists()


def interrupt(regularizer, work_dir, batches=None, after=7, **options):
    """Leaves a folder of a run that Ctrl-C ended in its third epoch."""
    inner = regularizer.prompt_losses_of
    regularizer.prompt_losses_of = Interrupt(regularizer, after)
    with pytest.raises(KeyboardInterrupt):
        learn_background_prompts(regularizer, batches or Batches(), work_dir=work_dir, **{**OPTIONS, **options})
    regularizer.prompt_losses_of = inner


def in_the_walk(after):
    for i, batch in enumerate(Batches()):
        if i == after:
            raise KeyboardInterrupt
        yield batch


def test_ctrl_c_says_what_the_folder_keeps(tmp_path, capsys):
    work_dir = tmp_path / "work"
    for after, words in ((0, ""), (1, "the batches that were encoded")):
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(make(), in_the_walk(after), work_dir=work_dir, **OPTIONS)
        expected = f"{work_dir} keeps {words}: the same call goes on from there\n" if words else ""
        assert capsys.readouterr().err == expected and work_dir.exists() == bool(words)
    with pytest.warns(UserWarning, match="held 1 batches of an interrupted walk: 1 came again"):
        interrupt(make(), work_dir)
    words = "the features of all pairs, and all epochs that were finished"
    assert capsys.readouterr().err == f"{work_dir} keeps {words}: the same call goes on from there\n"
    interrupt(make(), None)
    assert capsys.readouterr().err == ""


def _reweigh(regularizer):
    regularizer.weights = LossWeights(text=0.5)


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"lr": 0.5}, None, "lr = 0.02, this one has 0.5"),
        ({"epochs": 2}, None, "epochs = 6, this one has 2"),
        ({"batch_size": 5}, None, "batch_size"),
        ({"weight_decay": 0.5}, None, "weight_decay"),
        ({"seed": 1}, None, "seed"),
        ({}, _reweigh, "weights"),
        ({}, lambda r: setattr(r, "weights", LossWeights(prompt_foreground=0.5)), "weights"),
        ({}, lambda r: setattr(r.prompts, "template", "a picture of {}."), r"templates\[1\] = a photo of {}., this"),
        ({}, lambda r: r.prompts.vectors.data.add_(0.01), "start of the prompts"),
    ],
)
def test_features_are_used_again_where_only_the_learning_differs(tmp_path, options, change, words):
    batches, other = Batches(), make()
    interrupt(make(), tmp_path / "work", batches)
    if change is not None:
        change(other)
    with pytest.warns(UserWarning, match=rf"with {words}.* 24 pairs are used again, its 2 epochs are not"):
        learn_background_prompts(other, batches, work_dir=tmp_path / "work", **{**OPTIONS, **options})
    assert batches.walks == 1 and torch.equal(other.prompts.vectors, learned(change=change, **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.fill.add_(1), r"fill\[0\] = 0.0, this one has 1.0"),
        (lambda r: setattr(r, "_input_std", (0.5, 1.0, 1.0)), r"image statistics\[3\]"),
        (lambda r: setattr(r, "_class_names", ("train", "ship", "car")), r"class_names\[1\] = boat, this one has ship"),
        (lambda r: setattr(r.prompts, "signature", -r.prompts.signature), "another CLIP"),
    ],
)  # fmt: skip
def test_features_of_something_else_are_refused(tmp_path, change, words):
    interrupt(make(), tmp_path)
    left = sorted(tmp_path.iterdir())
    other = make()
    change(other)
    with pytest.raises(ValueError, match=rf"{words}.*delete that folder to begin again"):
        learn_background_prompts(other, Batches(), work_dir=tmp_path, **OPTIONS)
    assert sorted(tmp_path.iterdir()) == left


def test_features_of_another_origin_are_refused_and_a_path_is_one(tmp_path):
    interrupt(make(), tmp_path / "work", origin=Path("a.pth"))
    with pytest.raises(ValueError, match=r"origin = a.pth, this one has b.pth"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path / "work", origin="b.pth", **OPTIONS)
    again = make()
    with pytest.warns(UserWarning, match="2 of 6 epochs"):
        learn_background_prompts(again, Batches(), work_dir=tmp_path / "work", origin=Path("a.pth"), **OPTIONS)
    assert torch.equal(again.prompts.vectors, learned())
    with pytest.raises(TypeError, match="origin: expected the model that makes the masks, or its name or path"):
        learn_background_prompts(make(), Batches(), origin=7, **OPTIONS)


def test_a_model_is_told_by_its_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    interrupt(make(), tmp_path / "work", origin=model)
    trained = copy.deepcopy(model)
    trained[1].running_mean += 1e-6
    with pytest.raises(ValueError, match=r"origin = weights .*, this one has weights .*delete that folder"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path / "work", origin=trained, **OPTIONS)
    with pytest.warns(UserWarning, match="2 of 6 epochs"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path / "work", origin=copy.deepcopy(model), **OPTIONS)


@pytest.mark.parametrize("seed", [5, 6], ids=["the same data", "other data"])
def test_deleting_damaged_features_is_safe(tmp_path, seed):
    interrupt(make(), tmp_path)
    (tmp_path / "features.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"features.pt is damaged.*delete it.*walked again"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
    (tmp_path / "features.pt").unlink()
    again = make()
    with pytest.warns(UserWarning, match="2 of 6 epochs" if seed == 5 else "other features.*begins anew"):
        learn_background_prompts(again, Batches(seed=seed), work_dir=tmp_path, **OPTIONS)
    assert torch.equal(again.prompts.vectors, learned(Batches(seed=seed)))


def test_a_damaged_state_is_named_and_deleting_it_is_safe(tmp_path):
    interrupt(make(), tmp_path)
    path = tmp_path / "state.pt"
    state = torch.load(path, weights_only=True)
    damages = [{name: value for name, value in state.items() if name != missing} for missing in state]
    damages += [{**state, "optimizer": {}}, {**state, "history": []}, {**state, "vectors": torch.zeros(2)}, [1]]
    again, batches = make(), Batches()
    for damaged in damages:
        torch.save(damaged, path)
        with pytest.raises(ValueError, match=r"state.pt is damaged.*delete it.*the epochs begin anew"):
            learn_background_prompts(again, batches, work_dir=tmp_path, **OPTIONS)
    path.unlink()
    learn_background_prompts(again, batches, work_dir=tmp_path, **OPTIONS)
    assert batches.walks == 0 and torch.equal(again.prompts.vectors, learned())


def test_the_folder_of_an_older_version_is_refused(tmp_path):
    oldest = {"settings": {}, "signature": None, "features": torch.zeros(1, 32)}
    older = {"format": 3, "made_with": {}, "signatures": [], "batches": {}}  # with parts that were pickled
    for name, content in (("features.pt", oldest), ("features.pt", older), ("features.part-0-1.pt", older)):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=r"another version of semples-plugin left unfinished.*delete the folder"):
            learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
        (tmp_path / name).unlink()
    interrupt(make(), tmp_path)
    (tmp_path / "features.pt").unlink()
    journal = part_of(tmp_path, ".jsonl")
    content = json.loads(journal.read_text().splitlines()[0])["content"] | {"format": 6}
    journal.write_text(json.dumps({"digest": parts._digest_of(content, b""), "content": content}) + "\n")
    with pytest.raises(ValueError, match=r"another version of semples-plugin left unfinished"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)


def encoded_batches(regularizer) -> list[int]:
    """Grows by one for each batch that CLIP encodes from now on."""
    calls, inner = [], regularizer.pair_features
    regularizer.pair_features = lambda *batch: (calls.append(1), inner(*batch))[1]
    return calls


class Killed(Batches):
    """Copies, before its last batch, what a SIGKILL would leave on disk."""

    def __init__(self, folder, left):
        super().__init__()
        self.folder, self.left = folder, left

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 3:
                shutil.copytree(self.folder, self.left)
            yield batch


def test_a_killed_walk_encodes_what_was_not_saved_alone(tmp_path, monkeypatch):
    work, left = tmp_path / "work", tmp_path / "left"
    learn_background_prompts(make(), Killed(work, left), work_dir=work, **OPTIONS)
    cut = left / ".new-0123abcd.pt"
    cut.write_bytes(b"cut")  # by a kill while a file was written
    monkeypatch.setattr(atomic_files, "_LEFT_AFTER", -1)
    (left / "mine.txt").write_text("")
    shutil.copytree(left, work)
    again = make()
    calls = encoded_batches(again)
    with pytest.warns(UserWarning, match="3 batches of an interrupted walk: 3 came again"):
        learn_background_prompts(again, Batches(), work_dir=left, **OPTIONS)
    assert len(calls) == 1 and torch.equal(again.prompts.vectors, learned())
    assert [path.name for path in left.iterdir()] == ["mine.txt"]  # what else is there stays

    changed = make()
    calls = encoded_batches(changed)
    with pytest.warns(UserWarning, match="3 batches of an interrupted walk: 0 came again"):
        learn_background_prompts(changed, Batches(seed=6), work_dir=work, **OPTIONS)
    assert len(calls) == 4 and torch.equal(changed.prompts.vectors, learned(Batches(seed=6)))


def test_what_another_command_is_writing_stays(tmp_path, monkeypatch):
    old, new = tmp_path / ".new-4567abcd.pt", tmp_path / ".new-0123abcd.pt"
    old.write_bytes(b"half")
    time.sleep(0.2)
    new.write_bytes(b"half")
    # By then the older one has lain long enough, the newer one not yet.
    now = old.stat().st_ctime + atomic_files._LEFT_AFTER + 0.1
    monkeypatch.setattr(atomic_files, "time", SimpleNamespace(time=lambda: now))
    learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [".new-0123abcd.pt"]


def test_a_folder_named_like_a_part_does_not_end_a_run_that_is_done(tmp_path):
    interrupt(make(), tmp_path)
    (tmp_path / "features.part-0-1.pt").mkdir()
    again = make()
    learn_background_prompts(again, Batches(), work_dir=tmp_path, **OPTIONS)
    assert again.prompts.learned and [path.name for path in tmp_path.iterdir()] == ["features.part-0-1.pt"]


def flip(path, at):
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    return whole


@pytest.mark.parametrize("name", ["features.pt", "state.pt"])
def test_a_flipped_bit_is_damage(tmp_path, name):
    interrupt(make(), tmp_path)
    path = tmp_path / name
    content = torch.load(path, weights_only=True)
    tensor = content["vectors" if name == "state.pt" else "rows"].numpy().tobytes()
    word = b"text_term" if name == "state.pt" else b"boat"
    for at in (path.read_bytes().index(tensor) + 101, path.read_bytes().index(word)):
        whole = flip(path, at)
        with pytest.raises(ValueError, match=f"{name} is damaged.*delete it"):
            learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
        path.write_bytes(whole)


def part_of(folder, suffix):
    """The one part of a folder."""
    (path,) = folder.glob(f"features.part-0-*{suffix}")
    return path


@pytest.mark.parametrize("walked", [True, False], ids=["after the walk", "in the walk"])
@pytest.mark.parametrize(
    ("suffix", "place"),
    [(".bin", lambda content: 100), (".bin", lambda content: len(content) // 2)]
    + [(".jsonl", lambda content, word=word: content.index(word)) for word in (b"boat", b'"batch"', b'"pairs": 6')],
)
def test_a_flipped_bit_in_a_part_is_damage(tmp_path, suffix, place, walked):
    interrupt(make(), tmp_path)
    if not walked:
        (tmp_path / "features.pt").unlink()
    path = part_of(tmp_path, suffix)
    flip(path, place(path.read_bytes()) + (9 if suffix == ".jsonl" else 0))
    batches = Batches()
    with pytest.raises(ValueError, match=r"features.part-0-\d+.jsonl is damaged.*delete it.*batches are encoded again"):
        learn_background_prompts(make(), batches, work_dir=tmp_path, **OPTIONS)
    assert batches.walks == 0
    part_of(tmp_path, ".jsonl").unlink()  # what the message says
    again = make()
    with pytest.warns(UserWarning, match="2 of 6 epochs"):  # the same features, encoded again
        learn_background_prompts(again, batches, work_dir=tmp_path, **OPTIONS)
    assert torch.equal(again.prompts.vectors, learned()) and not tmp_path.exists()


def test_what_a_kill_or_a_power_cut_takes_from_the_end_is_encoded_again(tmp_path):
    batch = 6 * 2 * 32 * 2  # bytes
    for suffix, cut, lost in ((".bin", 1, 1), (".bin", batch + 1, 2), (".bin", 4 * batch, 4), (".jsonl", 5, 1)):
        interrupt(make(), tmp_path)
        path = part_of(tmp_path, suffix)
        path.write_bytes(path.read_bytes()[:-cut])
        again = make()
        calls = encoded_batches(again)
        words = f"held {4 - lost} batches of an interrupted walk, and {lost} that were cut short: {4 - lost} came again"
        with pytest.warns(UserWarning, match=words):
            learn_background_prompts(again, Batches(), work_dir=tmp_path, **OPTIONS)
        assert len(calls) == lost and torch.equal(again.prompts.vectors, learned())
    interrupt(make(), tmp_path)
    part_of(tmp_path, ".jsonl").write_text('{"digest": "0123')  # killed before the first batch
    again, calls = make(), []
    learn_background_prompts(again, Batches(), work_dir=tmp_path, **OPTIONS)
    assert torch.equal(again.prompts.vectors, learned()) and not tmp_path.exists()


def test_features_that_are_no_numbers_are_damage_and_so_is_a_folder(tmp_path):
    interrupt(make(), tmp_path)
    (tmp_path / "features.pt").unlink()
    data, journal = part_of(tmp_path, ".bin"), part_of(tmp_path, ".jsonl")
    lines = [json.loads(line)["content"] for line in journal.read_text().splitlines()]
    rows = np.fromfile(data, np.float16).reshape(-1, 2, 32)
    rows[3, 1, 7] = np.nan
    rows.tofile(data)
    header, *blocks = lines
    starts = [block["first"] for block in blocks]
    kept = [(header, b""), *((block, rows[i : i + 6].tobytes()) for i, block in zip(starts, blocks, strict=True))]
    written = [json.dumps({"digest": parts._digest_of(*line), "content": line[0]}) for line in kept]
    journal.write_text("".join(f"{line}\n" for line in written))
    with pytest.raises(ValueError, match=f"{journal.name} is damaged.*delete it"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
    journal.unlink()
    journal.mkdir()
    with pytest.raises(ValueError, match=f"{journal.name} is damaged.*delete it"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    "name", ["features.pt", "state.pt", "features.part-0-1.bin", "features.part-0-1.jsonl", "", ".."]
)
def test_prompts_are_not_written_where_they_would_be_removed(tmp_path, name):
    batches, work_dir = Batches(), tmp_path / "new" / "work"
    with pytest.raises((ValueError, IsADirectoryError), match=r"save_to: .*work_dir"):
        learn_background_prompts(make(), batches, work_dir=work_dir, save_to=work_dir / name, **OPTIONS)
    assert batches.walks == 0 and list(tmp_path.iterdir()) == []


def test_features_of_another_image_tower_are_refused(tmp_path):
    interrupt(make(), tmp_path)
    other = make()
    other.clip.model.visual, own = copy.deepcopy(other.clip.model.visual), other.clip.model.visual
    try:
        assert torch.equal(other.clip.signature(), make().clip.signature())
        other.clip.model.visual.transformer.resblocks[0].mlp.c_fc.weight.data.normal_(std=0.5)
        with pytest.raises(ValueError, match="another CLIP; delete that folder"):
            learn_background_prompts(other, Batches(), work_dir=tmp_path, **OPTIONS)
    finally:
        other.clip.model.visual = own


def test_an_image_tower_is_known_in_another_precision():
    signatures = [files.image_signature(build_frozen(seed=seed)) for seed in (0, 1)]
    half = build_frozen()
    half.model.bfloat16()
    half = FrozenClip(half.model, half.tokenizer)
    assert same_clip(signatures[0], files.image_signature(half)) and not same_clip(*signatures)


def test_ctrl_c_in_the_walk_costs_no_batch(tmp_path):
    def stopping(last=2):
        for number, batch in enumerate(Batches()):
            if number == last:
                raise KeyboardInterrupt
            yield batch

    for last in (1, 2, 2):  # the last time it gets no further, and loses nothing
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(make(), stopping(last), work_dir=tmp_path / "work", **OPTIONS)
    assert len(list((tmp_path / "work").iterdir())) == 4  # two parts
    again = make()
    calls = encoded_batches(again)
    learn_background_prompts(again, Batches(), work_dir=tmp_path / "work", **OPTIONS)
    assert len(calls) == 2 and torch.equal(again.prompts.vectors, learned())
    with pytest.raises(KeyboardInterrupt):
        learn_background_prompts(make(), stopping(), work_dir=tmp_path / "work", **OPTIONS)
    part = part_of(tmp_path / "work", ".jsonl")
    part.write_text("PK\n")
    with pytest.raises(ValueError, match=r"damaged.*delete it.*batches are encoded again"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path / "work", **OPTIONS)


@pytest.mark.parametrize("place", ["image", "mask"])
def test_a_batch_with_other_pixels_is_another_batch(place):
    images, masks = (torch.rand(6, 3, 64, 64), replace(next(iter(Batches()))[1], maps=torch.rand(6, 64, 64)))
    digest = files.digest_batch(images, masks)
    assert digest == files.digest_batch(images.clone(), replace(masks, maps=masks.maps.detach().clone()))
    if place == "image":
        images[5, 2, 31, 30] += 1e-3
    else:
        masks.maps.data[5, 31, 30] += 1e-3
    assert digest != files.digest_batch(images, masks)


@pytest.mark.parametrize("after", [1, 7])
def test_the_same_object_starts_over_after_an_interrupt(tmp_path, monkeypatch, after):
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, after))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    assert torch.equal(regularizer.prompts.vectors, learned())


def test_numpys_numbers_are_settings_too(tmp_path, monkeypatch):
    options = {**OPTIONS, "lr": np.float64(0.02), "epochs": np.int64(6)}
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, 7))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **options)
    learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **options)


def test_a_work_dir_that_cannot_be_is_refused_before_the_walk(tmp_path):
    (tmp_path / "file").write_text("")
    batches = Batches()
    for work_dir in (tmp_path / "file", "/proc/self"):  # the latter exists, and takes no file
        with pytest.raises(OSError, match=r"work_dir: nothing can be written into .*give another path"):
            learn_background_prompts(make(), batches, work_dir=work_dir, **OPTIONS)
    assert batches.walks == 0


def test_a_disk_that_fills_up_at_the_end_costs_nothing(tmp_path, monkeypatch):
    folder, path = tmp_path / "work", tmp_path / "prompts.safetensors"
    options = {**OPTIONS, "work_dir": folder, "save_to": path}
    batches = Batches()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundPrompts, "save", full)
        with pytest.raises(OSError, match="No space left"):
            learn_background_prompts(make(), batches, **options)
    again = make()
    with pytest.warns(UserWarning, match="6 of 6 epochs"):
        learn_background_prompts(again, batches, **options)
    saved = BackgroundPrompts.load(path)
    assert batches.walks == 1 and saved.learned and torch.equal(saved.vectors, learned())
    assert not folder.exists()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        learn_background_prompts(make(), batches, **{**options, "save_to": tmp_path})
    assert batches.walks == 1


@pytest.mark.parametrize("work_dir", [None, "work"])
def test_prompts_that_could_not_be_saved_are_learned_in_memory(tmp_path, monkeypatch, work_dir):
    regularizer, batches, path = make(), Batches(), tmp_path / "new" / "prompts.safetensors"
    options = {**OPTIONS, "work_dir": work_dir and tmp_path / work_dir, "save_to": path}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(BackgroundPrompts, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        learn_background_prompts(regularizer, batches, **options)
    prompts = regularizer.prompts
    expected = learned() if work_dir else learned_in_memory()
    assert torch.equal(prompts.vectors, expected) and prompts.learned and prompts.vectors.grad is None
    before = [one.before for one in prompts.quality]
    assert len(before) == 3 and None not in before
    if work_dir:  # the next call only has to save
        with pytest.warns(UserWarning) as warned:
            again = learn_background_prompts(regularizer, batches, **options)
        assert "6 of 6 epochs" in str(warned[0].message) and "learned further" not in str(warned[0].message)
        assert torch.equal(BackgroundPrompts.load(path).vectors, learned()) and batches.walks == 1
        assert [one.before for one in again.quality] == before and not (tmp_path / work_dir).exists()


@pytest.mark.parametrize("place", ["/proc/prompts.safetensors", "file/prompts.safetensors"])
def test_a_place_that_takes_no_file_is_refused_before_the_walk(tmp_path, place):
    (tmp_path / "file").write_text("")
    batches = Batches()
    with pytest.raises(OSError, match=r"save_to: nothing can be written into .*give another path"):
        learn_background_prompts(make(), batches, save_to=tmp_path / place, **OPTIONS)
    assert batches.walks == 0


def test_half_precision_learns_the_prompts_of_full_precision(tmp_path):
    options = {**OPTIONS, "epochs": 40}
    for weights in (LossWeights(), LossWeights(prompt_foreground=0.5)):
        full, half = make(weights=weights), make(weights=weights)
        expected = learn_background_prompts(full, Batches(), **options)
        found = learn_background_prompts(half, Batches(), work_dir=tmp_path / "work", **options)
        cosines = torch.cosine_similarity(full.prompt_features(), half.prompt_features())
        assert not torch.equal(full.prompts.vectors, half.prompts.vectors) and cosines.min() > 1 - 1e-3
        for one, other in zip(expected.quality, found.quality, strict=True):
            assert one.after.background == pytest.approx(other.after.background, abs=1e-3)
            assert one.after.foreground == pytest.approx(other.after.foreground, abs=1e-3)


@pytest.mark.parametrize("features", ["both", "backgrounds", "mixed"])
def test_features_that_the_host_kept_are_stored_as_well(tmp_path, features):
    def batches(regularizer):
        for number, (images, masks) in enumerate(Batches()):
            v_f, v_b = (1e7 * tensor for tensor in regularizer.pair_features(images, masks))  # no length matters
            both = features == "both" or (features == "mixed" and number % 2)
            yield (v_f, v_b, masks.class_index) if both else (v_b, masks.class_index)

    memory, disk, again = make(), make(), make()
    expected = learn_background_prompts(memory, batches(memory), **OPTIONS)
    interrupt(disk, tmp_path / "work", batches(disk))
    found = learn_background_prompts(again, batches(again), work_dir=tmp_path / "work", **OPTIONS)
    assert torch.cosine_similarity(memory.prompt_features(), again.prompt_features()).min() > 1 - 1e-3
    for one, other in zip(expected.quality, found.quality, strict=True):
        assert one.after.separation == other.after.separation and (features == "both") == (
            one.after.separation is not None
        )


def test_no_features_stay_in_memory_with_a_folder(tmp_path):
    regularizer, kept = make(), []
    inner, steps = regularizer.pair_features, regularizer.prompt_losses_of

    def watched(*batch):
        assert all(reference() is None for reference in kept)  # of the batches before
        features = inner(*batch)
        kept.extend(map(weakref.ref, features))
        return features

    def step(backgrounds, class_index, foregrounds):
        assert backgrounds.untyped_storage().nbytes() <= 8 * 2 * 32 * 4 and foregrounds is None
        assert len(kept) == 8 and all(reference() is None for reference in kept)
        return steps(backgrounds, class_index, foregrounds)

    regularizer.pair_features, regularizer.prompt_losses_of = watched, step
    learn_background_prompts(regularizer, Batches(), work_dir=tmp_path / "work", **OPTIONS)


def test_no_names_stay_in_memory_after_the_walk(tmp_path, monkeypatch):
    class Name(str):
        """A string that can be watched."""

    kept, share = [], files.WorkDir.share

    def batches():
        for number, (images, masks) in enumerate(Batches()):
            names = [Name(f"{number} {i}") for i in range(len(images))]
            kept.extend(map(weakref.ref, names))
            yield images, masks, names

    def shared(*arguments):
        assert len(kept) == 24 and all(reference() is None for reference in kept)
        return share(*arguments)

    monkeypatch.setattr(files.WorkDir, "share", shared)
    learn_background_prompts(make(), batches(), work_dir=tmp_path / "work", **OPTIONS)


@pytest.mark.parametrize("work_dir", [None, "work"])
def test_quality_is_measured_in_chunks(tmp_path, monkeypatch, work_dir):
    options = {**OPTIONS, "work_dir": work_dir and tmp_path / work_dir}
    whole = learn_background_prompts(make(), Batches(), **options)
    monkeypatch.setattr(feature_store, "CHUNK", 5)
    sizes, measure = [], epochs.measure

    def watched(names, prompts, labels, pairs):
        pairs = list(pairs)
        sizes.append([len(chunk.class_index) for chunk in pairs])
        return measure(names, prompts, labels, pairs)

    monkeypatch.setattr(epochs, "measure", watched)
    parts = learn_background_prompts(make(), Batches(), **options)
    assert sizes == [[5, 5, 5, 5, 4]] * 8 and parts.loss == whole.loss
    for one, other in zip(whole.quality, parts.quality, strict=True):
        assert one.after.separation == other.after.separation
        assert one.after.background == pytest.approx(other.after.background, abs=1e-6)
        assert one.after.foreground == pytest.approx(other.after.foreground, abs=1e-6)


def test_a_disk_that_fills_up_in_the_walk_costs_the_batch(tmp_path):
    work = tmp_path / "work"

    class Filling(Batches):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number < 2:
                    yield batch
                else:
                    with full_disk():
                        yield batch

    with pytest.raises(OSError, match=r"features.part-0-\d+.bin"):
        learn_background_prompts(make(), Filling(), work_dir=work, **OPTIONS)
    again = make()
    calls = encoded_batches(again)
    learn_background_prompts(again, Batches(), work_dir=work, **OPTIONS)
    assert len(calls) == 2 and torch.equal(again.prompts.vectors, learned())


def test_parts_of_which_nothing_came_again_are_removed(tmp_path):
    def stopping():
        yield next(iter(Batches()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_background_prompts(make(), stopping(), work_dir=tmp_path, **OPTIONS)
    old = {path.name for path in tmp_path.iterdir()}
    interrupt(make(), tmp_path, Batches(seed=6))
    names = {path.name for path in tmp_path.iterdir()}
    assert len(old) == 2 and not old & names and len(names) == 4  # with features.pt and state.pt
    (tmp_path / "mine.bin").write_text("")
    learn_background_prompts(make(), Batches(seed=6), work_dir=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bin"]


def test_another_run_in_the_same_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"part\.bin was removed while this run used it.* the same work_dir\?"):
        parts.map_part(tmp_path / "part.bin", 3, 8)
