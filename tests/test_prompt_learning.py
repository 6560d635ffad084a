import copy
import functools
import json
import re
import shutil
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_frozen

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.prompt_learning import work_dir
from semples_plugin.prompt_quality import ClassQuality, Nearness, describe_quality, went_well
from semples_plugin.prompts import same_clip
from semples_plugin.utils import atomic_files

NAMES = ["train", "boat", "tv monitor"]
OPTIONS = {"epochs": 6, "lr": 0.02, "batch_size": 8, "progress": False}


class Batches:
    """Counts its walks; every class has its own background colour, which is what prompts can learn."""

    def __init__(self, classes=3, seed=5):
        self.walks, self.classes, self.seed = 0, classes, seed

    def __iter__(self):
        self.walks += 1
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(4):
            index = torch.arange(6) % self.classes
            images = 2 * torch.eye(3)[index].view(6, 3, 1, 1) + 0.1 * torch.randn(6, 3, 32, 32, generator=generator)
            maps = torch.zeros(6, 32, 32)
            maps[:, 8:24, 8:24] = 1
            yield images, ClassMasks.from_pairs(maps.requires_grad_(), torch.arange(6), index)


shared_clip = functools.cache(build_frozen)  # frozen, as a test below checks bit by bit


def make(**options) -> SemPLeSRegularizer:
    clip = shared_clip()
    return SemPLeSRegularizer(
        clip, NAMES, prompts=BackgroundPrompts(3, 4, clip.text_width, std=clip.token_std),
        input_mean=None, input_std=None, **options,
    )  # fmt: skip


def test_the_batches_are_walked_once_and_the_prompts_come_closer_to_their_backgrounds():
    regularizer, batches = make(weights=LossWeights(text=0.02)), Batches()
    clip_before = copy.deepcopy(regularizer.clip.model.state_dict())
    history = learn_background_prompts(regularizer, batches, **OPTIONS)
    assert batches.walks == 1 and len(history.loss) == 6 and history.pairs == [8, 8, 8]
    assert history.loss[-1] < history.loss[0]
    assert all(last > first for first, last in zip(history.background[0], history.background[-1], strict=True))
    assert all(torch.equal(clip_before[n], v) for n, v in regularizer.clip.model.state_dict().items())
    assert regularizer.prompts.vectors.grad is None
    assert json.loads(json.dumps(history.to_dict()))["class_names"] == NAMES


def test_it_equals_a_plain_loop_that_encodes_every_background_in_every_epoch():
    regularizer, plain = make(), make()
    learn_background_prompts(regularizer, Batches(), seed=3, **OPTIONS)
    batches = [(images, masks.detach()) for images, masks in Batches()]
    images = torch.cat([x for x, _ in batches])
    maps, classes = (torch.cat([getattr(m, name) for _, m in batches]) for name in ("maps", "class_index"))
    optimizer = torch.optim.AdamW(plain.prompts.parameters(), lr=0.02, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * 3)
    for epoch in range(6):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(3 * 1_000_003 + epoch))
        for part in order.split(8):
            masks = ClassMasks.from_pairs(maps[part], torch.arange(8), classes[part])
            optimizer.zero_grad()
            sum(plain.prompt_losses(images[part], masks).values()).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(regularizer.prompts.vectors, plain.prompts.vectors, atol=1e-5, rtol=1e-5)


def test_the_text_term_keeps_the_prompts_from_their_labels():
    similar = []
    for weight in (0.0, 2.0):
        regularizer = make(weights=LossWeights(text=weight))
        with torch.no_grad():  # start at the label itself: the first vectors spell the class name
            ids = regularizer.clip.tokenizer(["train boat tv monitor"])[0, 1:5]
            regularizer.prompts.vectors.copy_(regularizer.clip._text.token_embedding(ids).expand(3, -1, -1))
        history = learn_background_prompts(regularizer, Batches(), **{**OPTIONS, "epochs": 12})
        similar.append(torch.tensor(history.label[-1]))
    assert (similar[1] < similar[0] - 0.05).all()


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
    tmp_path = tmp_path / "work"
    whole, broken = make(), make()
    expected = learn_background_prompts(whole, Batches(), **OPTIONS)
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


@pytest.mark.parametrize(
    "second",
    [torch.eye(3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6, 3, 8, 8)],
    ids=["labels", "indices", "CAMs"],
)
def test_batches_of_something_else_are_named(second):
    with pytest.raises(TypeError, match=r"expected \(images, ClassMasks\), see ClassMasks.from_dense"):
        learn_background_prompts(make(), [(torch.randn(6, 3, 32, 32), second)], **OPTIONS)


def test_other_batches_are_named_and_leave_no_folder(tmp_path):
    for batch, words in (({"image": 1}, "got dict"), ((1, 2, 3), "got tuple of int, int, int")):
        with pytest.raises(TypeError, match=rf"expected .*\(images, masks\).*, {words}"):
            learn_background_prompts(make(), [batch], work_dir=tmp_path / "work", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_learning_further_is_said():
    regularizer = make()
    learn_background_prompts(regularizer, Batches(), **OPTIONS)
    with pytest.warns(UserWarning, match="learned already, and are learned further"):
        learn_background_prompts(regularizer, Batches(), **OPTIONS)


def interrupt(regularizer, work_dir, batches=None, after=7, **options):
    """Leaves a folder of a run that Ctrl-C ended in its third epoch."""
    inner = regularizer.prompt_losses_of
    regularizer.prompt_losses_of = Interrupt(regularizer, after)
    with pytest.raises(KeyboardInterrupt):
        learn_background_prompts(regularizer, batches or Batches(), work_dir=work_dir, **{**OPTIONS, **options})
    regularizer.prompt_losses_of = inner


def learned(batches=None, change=None, **options) -> torch.Tensor:
    """The prompts of a run of its own."""
    regularizer = make()
    if change is not None:
        change(regularizer)
    learn_background_prompts(regularizer, batches or Batches(), **{**OPTIONS, **options})
    return regularizer.prompts.vectors.detach()


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
    with pytest.raises(ValueError, match=r"features.pt is damaged.*delete it.*encoded again"):
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
    torch.save({"settings": {}, "signature": None, "features": torch.zeros(1, 32)}, tmp_path / "features.pt")
    with pytest.raises(ValueError, match=r"another version of semples-plugin left unfinished.*delete the folder"):
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
    with monkeypatch.context() as patch:
        patch.setattr(work_dir, "SAVE_EVERY", 0)
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


@pytest.mark.parametrize("name", ["features.pt", "state.pt", "features.part-0-1.pt"])
def test_a_flipped_bit_is_damage(tmp_path, name):
    interrupt(make(), tmp_path)
    features = torch.load(tmp_path / "features.pt", weights_only=True)
    content = {"batches": {"a": (features["foregrounds"], features["backgrounds"])}}
    if name.startswith("features.part"):
        (tmp_path / "features.pt").rename(tmp_path / name)
        about = {key: features[key] for key in ("format", "made_with", "signatures")}
        content = {**about, **content}
        torch.save({**content, "digest": work_dir.digest(content)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    tensor = features["backgrounds"].numpy().tobytes()
    if name == "state.pt":
        tensor = torch.load(tmp_path / name, weights_only=True)["vectors"].numpy().tobytes()
    for at in (whole.index(tensor) + 401, whole.index(b"text_term") if name == "state.pt" else whole.index(b"boat")):
        (tmp_path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=f"{name} is damaged.*delete it"):
            learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)


@pytest.mark.parametrize("name", ["features.pt", "features.part-0-1.pt"])
def test_features_that_are_no_numbers_are_damage_and_so_is_a_folder(tmp_path, name):
    interrupt(make(), tmp_path)
    content = torch.load(tmp_path / "features.pt", weights_only=True)
    (tmp_path / "features.pt").unlink()
    content.pop("digest")
    content["backgrounds"][3, 7] = torch.nan
    content["batches"] = {"a": (content["backgrounds"], content["backgrounds"])}
    torch.save({**content, "digest": work_dir.digest(content)}, tmp_path / name)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} is damaged.*delete it"):
            learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)
        (tmp_path / name).unlink(missing_ok=True) if (tmp_path / name).is_file() else (tmp_path / name).rmdir()
        (tmp_path / name).mkdir()


@pytest.mark.parametrize("name", ["features.pt", "state.pt", "features.part-0-1.pt", "", ".."])
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
    signatures = [work_dir.image_signature(build_frozen(seed=seed)) for seed in (0, 1)]
    half = build_frozen()
    half.model.bfloat16()
    half = FrozenClip(half.model, half.tokenizer)
    assert same_clip(signatures[0], work_dir.image_signature(half)) and not same_clip(*signatures)


def test_ctrl_c_in_the_walk_costs_no_batch(tmp_path):
    def stopping():
        for number, batch in enumerate(Batches()):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    for _ in range(2):  # the second time it gets no further, and loses nothing
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(make(), stopping(), work_dir=tmp_path / "work", **OPTIONS)
    again = make()
    calls = encoded_batches(again)
    learn_background_prompts(again, Batches(), work_dir=tmp_path / "work", **OPTIONS)
    assert len(calls) == 2 and torch.equal(again.prompts.vectors, learned())
    with pytest.raises(KeyboardInterrupt):
        learn_background_prompts(make(), stopping(), work_dir=tmp_path / "work", **OPTIONS)
    (part,) = (tmp_path / "work").iterdir()
    part.write_bytes(part.read_bytes()[:99])
    with pytest.raises(ValueError, match=r"damaged.*delete it.*batches are encoded again"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path / "work", **OPTIONS)


@pytest.mark.parametrize("place", ["image", "mask"])
def test_a_batch_with_other_pixels_is_another_batch(place):
    images, masks = (torch.rand(6, 3, 64, 64), replace(next(iter(Batches()))[1], maps=torch.rand(6, 64, 64)))
    digest = work_dir.digest_batch(images, masks)
    assert digest == work_dir.digest_batch(images.clone(), replace(masks, maps=masks.maps.detach().clone()))
    if place == "image":
        images[5, 2, 31, 30] += 1e-3
    else:
        masks.maps.data[5, 31, 30] += 1e-3
    assert digest != work_dir.digest_batch(images, masks)


@pytest.mark.parametrize("after", [1, 7])
def test_the_same_object_starts_over_after_an_interrupt(tmp_path, monkeypatch, after):
    whole, regularizer = make(), make()
    learn_background_prompts(whole, Batches(), **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, after))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    assert torch.equal(regularizer.prompts.vectors, whole.prompts.vectors)


def test_numpys_numbers_are_settings_too(tmp_path, monkeypatch):
    options = {**OPTIONS, "lr": np.float64(0.02), "epochs": np.int64(6)}
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, 7))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **options)
    learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **options)


def test_the_callers_autocast_changes_nothing():
    plain, inside = make(), make()
    expected = learn_background_prompts(plain, Batches(), **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        history = learn_background_prompts(inside, Batches(), **OPTIONS)
    assert torch.equal(plain.prompts.vectors, inside.prompts.vectors) and history.label == expected.label


def test_prompts_of_unseen_classes_stay_as_they_were():
    regularizer = make()
    start = regularizer.prompts.vectors.detach().clone()
    with pytest.warns(UserWarning, match="no image shows tv monitor"):
        learn_background_prompts(regularizer, Batches(classes=2), **{**OPTIONS, "lr": 0.1}, weight_decay=0.5)
    assert torch.equal(regularizer.prompts.vectors[2], start[2])
    assert not torch.equal(regularizer.prompts.vectors[:2], start[:2])


def test_a_work_dir_that_cannot_be_is_refused_before_the_walk(tmp_path):
    (tmp_path / "file").write_text("")
    batches = Batches()
    with pytest.raises(OSError):
        learn_background_prompts(make(), batches, work_dir=tmp_path / "file", **OPTIONS)
    assert batches.walks == 0


def test_the_seed_decides():
    results = []
    for seed in (0, 0, 1):
        regularizer = make()
        learn_background_prompts(regularizer, Batches(), seed=seed, **OPTIONS)
        results.append(regularizer.prompts.vectors.detach())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_classes_that_were_never_seen_are_named():
    with pytest.warns(UserWarning, match="no image shows tv monitor"):
        history = learn_background_prompts(make(), Batches(classes=2), **OPTIONS)
    assert history.unseen == ["tv monitor"] and history.pairs == [12, 12, 0]


def test_prompts_that_drift_onto_their_object_are_named(monkeypatch):
    regularizer = make(weights=LossWeights(text=0))
    labels = regularizer.label_features
    monkeypatch.setattr(regularizer, "pair_features", lambda images, masks: [labels[masks.class_index]] * 2)
    with pytest.warns(UserWarning, match="after 8 of 30 epochs the prompts of train.*raise LossWeights.text") as warned:
        history = learn_background_prompts(regularizer, Batches(), **{**OPTIONS, "epochs": 30})
    assert "train" in history.drifted
    assert len(warned) == 2 and {warning.filename for warning in warned} == {__file__}  # the caller's line, not ours


def test_a_caller_under_no_grad_learns_all_the_same():
    inside, outside = make(), make()
    learn_background_prompts(outside, Batches(), **OPTIONS)
    with torch.no_grad():
        learn_background_prompts(inside, ((x, m.detach()) for x, m in Batches()), **OPTIONS)
    assert torch.equal(inside.prompts.vectors, outside.prompts.vectors)


def test_frozen_prompts_are_learned_and_handed_back_frozen():
    regularizer = make()
    regularizer.prompts.requires_grad_(False)
    before = regularizer.prompts.vectors.clone()
    learn_background_prompts(regularizer, Batches(), **OPTIONS)
    assert not torch.equal(before, regularizer.prompts.vectors) and not regularizer.prompts.vectors.requires_grad


def test_inference_mode_is_refused_before_the_walk():
    batches, clip = Batches(), build_frozen()  # of its own, for what it keeps from here is of no use to others
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=clip.token_std)
    outside = SemPLeSRegularizer(clip, NAMES, prompts=prompts, input_mean=None, input_std=None)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode.*torch.no_grad"):
        learn_background_prompts(outside, batches, **OPTIONS)
    with torch.inference_mode():
        inside = SemPLeSRegularizer(clip, NAMES, prompts=copy.deepcopy(prompts), input_mean=None, input_std=None)
        outside.prompt_features()
        kept = [outside.pair_features(*batch) for batch in Batches()]
    with pytest.raises(ValueError, match=r"inference_mode.*torch.no_grad"):
        learn_background_prompts(inside, batches, **OPTIONS)
    assert batches.walks == 0
    given = [(*features, masks.class_index) for features, (_, masks) in zip(kept, Batches(), strict=True)]
    learn_background_prompts(outside, given, **OPTIONS)
    assert torch.equal(outside.prompts.vectors, learned())


@pytest.mark.parametrize("name", [torch.tensor(1), np.int64(1), np.array(1), ("a", torch.tensor(1))])
def test_a_name_counts_once_whatever_holds_it(name):
    images, masks = next(iter(Batches()))
    names = [copy.deepcopy(name) for _ in images]
    history = learn_background_prompts(make(), [(images, masks, names)], **OPTIONS)
    assert history.pairs == [1, 1, 1]


@pytest.mark.parametrize("name", [["a"], torch.ones(2), np.ones(2)])
def test_what_is_no_name_is_refused(name):
    images, masks = next(iter(Batches()))
    with pytest.raises(TypeError, match=r"expected a name or number for each image, got (list|Tensor|ndarray)"):
        learn_background_prompts(make(), [(images, masks, [name] * 6)], **OPTIONS)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one pair"):
        learn_background_prompts(make(), [], **OPTIONS)
    empty = ClassMasks.from_dense(torch.rand(2, 3, 8, 8), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one pair"):
        learn_background_prompts(make(), [(torch.randn(2, 3, 32, 32), empty)], **OPTIONS)
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"lr": np.inf}, {"batch_size": 0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="at least 1"):
            learn_background_prompts(make(), Batches(), **{**OPTIONS, **wrong})
    clip = build_frozen()
    with pytest.raises(ValueError, match="no prompts"):
        learn_background_prompts(SemPLeSRegularizer(clip, NAMES), Batches(), **OPTIONS)


def test_a_disk_that_fills_up_at_the_end_costs_nothing(tmp_path, monkeypatch):
    folder, path = tmp_path / "work", tmp_path / "prompts.safetensors"
    options = {**OPTIONS, "work_dir": folder, "save_to": path}
    whole, batches = make(), Batches()
    learn_background_prompts(whole, Batches(), **OPTIONS)

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
    assert batches.walks == 1 and saved.learned and torch.equal(saved.vectors, whole.prompts.vectors)
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
    assert torch.equal(prompts.vectors, learned()) and prompts.learned and prompts.vectors.grad is None
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


def test_prompts_that_diverge_in_the_last_step_are_not_saved(tmp_path):
    regularizer, path = make(), tmp_path / "prompts.safetensors"
    options = {"epochs": 1, "lr": 1e3, "weight_decay": 1e38, "batch_size": 24, "progress": False}
    start = regularizer.prompts.vectors.detach().clone()
    with pytest.raises(ValueError, match=r"diverged in epoch 1, .*smaller lr"):
        learn_background_prompts(regularizer, Batches(), save_to=path, **options)
    assert not path.exists() and torch.equal(regularizer.prompts.vectors, start) and not regularizer.prompts.learned


def test_features_that_are_no_numbers_are_named(monkeypatch):
    features = torch.nn.functional.normalize(torch.randn(4, 32), dim=1)
    broken = features.clone()
    broken[2, 7] = torch.nan
    words = r"batch 1 \(from 0\).* 1 of 4 pairs.*pair 2 of class 'tv monitor'"
    with pytest.raises(ValueError, match=words) as error:
        index = torch.tensor([0, 1, 2, 0])
        learn_background_prompts(make(), [(features, index), (broken, index)], **OPTIONS)
    assert "lr" not in str(error.value).split()
    images, masks = next(iter(Batches()))
    with pytest.raises(ValueError, match=r"batch 1 .*masks: NaN"):
        broken = replace(masks, maps=masks.maps.detach() * torch.nan)
        learn_background_prompts(make(), [(images, masks), (images, broken)], **OPTIONS)
    regularizer = make()
    monkeypatch.setattr(regularizer, "pair_features", lambda _, masks: [torch.full((len(masks), 32), torch.inf)] * 2)
    with pytest.raises(ValueError, match=r"batch 0 .* 6 of 6 pairs .*'train'.*CLIP"):
        learn_background_prompts(regularizer, Batches(), **OPTIONS)


def test_a_class_beyond_the_names_is_refused():
    features = torch.nn.functional.normalize(torch.randn(2, 32), dim=1)
    for index in ([0, 3], [-1, 0]):
        with pytest.raises(
            ValueError, match=r"class (3|-1), but class_names go from 0 \('train'\) to 2 \('tv monitor'"
        ):
            learn_background_prompts(make(), [(features, torch.tensor(index))], **OPTIONS)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 2.7}, {"epochs": "6"}, {"batch_size": 8.0}, {"seed": 0.5}, {"lr": "0.1"}, {"weight_decay": None}],
)
def test_options_of_another_kind_are_named(wrong):
    batches = Batches()
    with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected a"):
        learn_background_prompts(make(), batches, **{**OPTIONS, **wrong})
    assert batches.walks == 0


def by_hand(regularizer, vectors, images, masks):
    """Nearness of each class's prompt, from the equations."""
    clip, norm = regularizer.clip, torch.nn.functional.normalize
    prompts, labels = clip.encode_prompts(vectors), clip.encode_texts([f"a photo of {name}." for name in NAMES])
    views = regularizer.views(images, masks)
    foregrounds, backgrounds = norm(clip.encode_images(views), dim=1).chunk(2)
    found = []
    for k in range(3):
        own = masks.class_index == k
        near, far = backgrounds[own] @ prompts[k], foregrounds[own] @ prompts[k]
        nearest = NAMES[int((labels @ prompts[k]).argmax())]
        share = (near > far).float().mean()
        found.append([*(x.item() for x in (near.mean(), far.mean(), share, labels[k] @ prompts[k])), nearest])
    return found


@torch.no_grad()
def test_quality_is_measured_before_and_after(tmp_path):
    regularizer = make()
    start = regularizer.prompts.vectors.clone()
    path = tmp_path / "prompts.safetensors"
    history = learn_background_prompts(regularizer, Batches(), save_to=path, **OPTIONS)
    parts = [(images, masks.detach()) for images, masks in Batches()]
    images = torch.cat([x for x, _ in parts])
    maps, index = (torch.cat([getattr(m, name) for _, m in parts]) for name in ("maps", "class_index"))
    masks = ClassMasks.from_pairs(maps, torch.arange(24), index)
    for vectors, moment in ((start, "before"), (regularizer.prompts.vectors, "after")):
        for expected, one in zip(by_hand(regularizer, vectors, images, masks), history.quality, strict=True):
            *numbers, nearest = asdict(getattr(one, moment)).values()
            assert numbers == pytest.approx(expected[:4], abs=1e-5) and nearest == expected[4]
    assert [one.after.background for one in history.quality] == history.background[-1]
    assert BackgroundPrompts.load(path).quality == tuple(history.quality) == regularizer.prompts.quality
    assert json.loads(json.dumps(history.to_dict()))["quality"][0]["class_name"] == "train"
    further = learn_background_prompts(regularizer, Batches(), **OPTIONS)
    assert [one.before for one in further.quality] == [one.before for one in history.quality]  # before any learning


def test_features_that_the_host_kept_give_the_same_prompts():
    whole, kept, backgrounds = make(), make(), make()
    expected = learn_background_prompts(whole, Batches(), **OPTIONS)
    batches = [(*kept.pair_features(images, masks), masks.class_index) for images, masks in Batches()]
    found = learn_background_prompts(kept, batches, **OPTIONS)
    alone = learn_background_prompts(backgrounds, [(v_b, index.int()) for _, v_b, index in batches], **OPTIONS)
    assert torch.equal(whole.prompts.vectors, kept.prompts.vectors) and found.quality == expected.quality
    assert torch.equal(whole.prompts.vectors, backgrounds.prompts.vectors)
    assert all(one.after.separation is None and one.after.foreground is None for one in alone.quality)
    assert "foregrounds not measured" in alone.verdict


def quality(separation=0.9, rise=0.2, label=(0.2, 0.3), nearest="boat", name="train", pairs=3) -> ClassQuality:
    before = Nearness(0.2, 0.2, 0.5, label[0], None)
    return ClassQuality(name, before, Nearness(0.2 + rise, 0.25, separation, label[1], nearest), pairs)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (quality(), r"\(b\) went well: .*0.40, before learning 0.20; .* 90 % of the pairs; sim\(u_b, v_f\) 0.25"),
        (quality(separation=None), r"\(b\) went well: .*foregrounds not measured"),
        (quality(nearest="train", label=(0.2, 0.24)), "went well"),
        (quality(separation=0.5), "went well"),
        (
            quality(separation=0.49),
            "for 1 of 1 classes.*the prompts of train describe the object.*raise LossWeights.text",
        ),
        (quality(nearest="train"), "the prompts of train describe the object"),
        (quality(rise=0.019), "the prompts of train came no nearer to their backgrounds: raise lr"),
        (ClassQuality("train", None, Nearness(None, None, None, 0.3, "boat")), "is unknown"),
    ],
)
def test_the_verdict(one, words):
    with_others = describe_quality([one])
    assert re.search(words, with_others) and went_well([one]) == ("not go well" not in with_others)


def test_the_verdicts_share_counts_pairs_and_not_classes():
    assert "for 99 % of the pairs" in describe_quality([quality(1.0, pairs=99), quality(0.0, pairs=1)])
    older = [quality(1.0, pairs=99), quality(0.0, pairs=None)]
    assert "for 50 % of a class's pairs on average" in describe_quality(older)
    backgrounds = make().background_features(*next(iter(Batches())))[[0, 3, 1]]
    history = learn_background_prompts(make(), [(backgrounds, torch.tensor([0, 0, 1]))], **OPTIONS)
    assert [one.pairs for one in history.quality] == [2, 1, 0]


def test_a_long_verdict_stays_short():
    many = [quality(separation=0.1 * (k % 2), rise=0.01, name=f"traffic light {k}") for k in range(80)]
    many += [quality(rise=0.01, name=f"parking meter {k}") for k in range(10)]
    text = describe_quality(many)
    assert len(text) < 600 and "90 of 90" in text and "and 77 more describe" in text and "and 7 more came no" in text


def test_the_verdict_is_a_warning_where_it_is_bad_and_a_line_where_it_is_good(capsys):
    with pytest.warns(UserWarning, match=r"\(b\) did not go well for .*came no nearer to their backgrounds: raise lr"):
        history = learn_background_prompts(make(), Batches(), **{**OPTIONS, "lr": 1e-9})
    assert "came no nearer" in history.verdict and "went well" not in capsys.readouterr().out
    regularizer = make()
    images, masks = next(iter(Batches()))
    backgrounds = regularizer.background_features(images, masks)
    batch = (-backgrounds, backgrounds, masks.class_index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = learn_background_prompts(regularizer, [batch], **{**OPTIONS, "epochs": 10, "progress": True})
    assert history.verdict.startswith("(b) went well") and history.verdict in capsys.readouterr().out
