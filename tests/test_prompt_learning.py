import copy
import json

import numpy as np
import pytest
import torch
from conftest import build_frozen

from semples_plugin import BackgroundPrompts, ClassMasks, LossWeights, SemPLeSRegularizer, learn_background_prompts

NAMES = ["train", "boat", "tv monitor"]
OPTIONS = {"epochs": 6, "lr": 0.02, "batch_size": 8, "progress": False}


class Batches:
    """Counts its walks; every class has its own background colour, which is what prompts can learn."""

    def __init__(self, classes=3):
        self.walks, self.classes = 0, classes

    def __iter__(self):
        self.walks += 1
        generator = torch.Generator().manual_seed(5)
        for _ in range(4):
            index = torch.arange(6) % self.classes
            images = 2 * torch.eye(3)[index].view(6, 3, 1, 1) + 0.1 * torch.randn(6, 3, 32, 32, generator=generator)
            maps = torch.zeros(6, 32, 32)
            maps[:, 8:24, 8:24] = 1
            yield images, ClassMasks.from_pairs(maps.requires_grad_(), torch.arange(6), index)


def make(**options) -> SemPLeSRegularizer:
    clip = build_frozen()
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
    assert all(last > first for first, last in zip(history.background[0], history.background[-1]))
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


def test_another_runs_folder_is_refused(tmp_path, monkeypatch):
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, 7))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"lr = 0.02, this one has 0.5"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **{**OPTIONS, "lr": 0.5})
    (tmp_path / "features.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged; delete it"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: setattr(r, "fill", r.fill + 1), "fill"),
        (lambda r: setattr(r.prompts, "template", "a picture of {}."), "templates"),
        (lambda r: r.prompts.vectors.data.add_(1), "start of the prompts"),
        (lambda r: setattr(r.prompts, "signature", -r.prompts.signature), "another CLIP"),
    ],
)
def test_a_run_that_differs_in_anything_is_not_continued(tmp_path, monkeypatch, change, words):
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, 7))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, **OPTIONS)
    other = make()
    change(other)
    with pytest.raises(ValueError, match=words):
        learn_background_prompts(other, Batches(), work_dir=tmp_path, **OPTIONS)


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
    monkeypatch.setattr(regularizer, "background_features", lambda images, masks: labels[masks.class_index])
    with pytest.warns(UserWarning, match="after 8 of 30 epochs the prompts of train.*raise LossWeights.text"):
        history = learn_background_prompts(regularizer, Batches(), **{**OPTIONS, "epochs": 30})
    assert "train" in history.drifted


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


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one pair"):
        learn_background_prompts(make(), [], **OPTIONS)
    empty = ClassMasks.from_dense(torch.rand(2, 3, 8, 8), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one pair"):
        learn_background_prompts(make(), [(torch.randn(2, 3, 32, 32), empty)], **OPTIONS)
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}, {"weight_decay": -1.0}):
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


def test_a_run_of_another_origin_is_not_continued(tmp_path, monkeypatch):
    regularizer = make()
    with monkeypatch.context() as patch:
        patch.setattr(regularizer, "prompt_losses_of", Interrupt(regularizer, 7))
        with pytest.raises(KeyboardInterrupt):
            learn_background_prompts(regularizer, Batches(), work_dir=tmp_path, origin="a.pth", **OPTIONS)
    with pytest.raises(ValueError, match=r"origin = a.pth, this one has b.pth"):
        learn_background_prompts(make(), Batches(), work_dir=tmp_path, origin="b.pth", **OPTIONS)
