import copy
import functools
import inspect
import json
import re
import warnings
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from conftest import build_frozen

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.prompt_learning import walk
from semples_plugin.prompt_learning.epochs import LearningOptions, PromptHistory
from semples_plugin.prompt_quality import ClassQuality, Nearness, describe_quality, went_well

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


def test_a_shared_prompt_is_one_class_that_has_the_pairs_of_all():
    weights = LossWeights(text=0, prompt_foreground=0.5)
    regularizer = make(weights=weights)
    start = regularizer.prompts.vectors[:1].detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a class without a pair has its prompt, too
        history = learn_background_prompts(regularizer, Batches(classes=2), shared=True, **OPTIONS)
    shared = regularizer.prompts.vectors.detach()
    assert history.unseen == ["tv monitor"] and torch.equal(shared, shared[:1].expand_as(shared))
    clip = shared_clip()
    single = SemPLeSRegularizer(
        clip,
        ["thing"],
        weights=weights,
        prompts=BackgroundPrompts(1, 4, clip.text_width),
        input_mean=None,
        input_std=None,
    )
    with torch.no_grad():
        single.prompts.vectors.copy_(start)
    pairs = [(*regularizer.pair_features(images, masks), torch.zeros(6).long()) for images, masks in Batches(classes=2)]
    learn_background_prompts(single, pairs, **OPTIONS)
    assert (shared[0] - start[0]).abs().max() > 0.01
    torch.testing.assert_close(shared[0], single.prompts.vectors[0].detach(), rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match="shared: expected True or False, got 'yes'"):
        learn_background_prompts(make(), Batches(), shared="yes", **OPTIONS)


def test_hardened_masks_are_those_of_the_views():
    def learn(batches, **options):
        regularizer = make()
        learn_background_prompts(regularizer, batches, **options, **OPTIONS)
        return regularizer.prompts.vectors.detach()

    size = shared_clip().image_size
    soft = [(images, replace(masks, maps=masks.maps.detach()[:, ::4, ::4] * 0.4 + 0.1)) for images, masks in Batches()]
    hard = [(images, masks.resized(*size).hardened(0.3)) for images, masks in soft]
    as_they_are, hardened = learn(soft), learn(soft, mask_tau=0.3)
    assert torch.equal(hardened, learn(hard)) and torch.equal(as_they_are, learn(soft, mask_tau=1.0))
    assert (hardened - as_they_are).abs().max() > 1e-3
    for tau in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="mask_tau: expected a finite number above 0 and at most 1"):
            learn(soft, mask_tau=tau)
    features = [(*make().pair_features(images, masks), masks.class_index) for images, masks in hard]
    assert torch.equal(hardened, learn(features))
    with pytest.raises(ValueError, match=r"mask_tau is 0\.3, but there are features"):
        learn(features, mask_tau=0.3)


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


@pytest.mark.filterwarnings("ignore:.b. did not go well")
def test_the_foreground_term_keeps_the_prompts_from_their_objects():
    similar = []
    for weight in (0.0, 2.0):
        regularizer = make(weights=LossWeights(prompt_foreground=weight))
        learn_background_prompts(regularizer, Batches(), **{**OPTIONS, "epochs": 12})
        pairs = [(*regularizer.pair_features(*batch), batch[1].class_index) for batch in Batches()]
        v_f, _, classes = map(torch.cat, zip(*pairs, strict=True))
        similar.append(torch.cosine_similarity(v_f, regularizer.prompt_features()[classes]).mean())
    assert similar[1] < similar[0] - 0.05


@pytest.mark.filterwarnings("ignore:.b. did not go well", "ignore:.*their cosine is clamped")
def test_the_foreground_term_pairs_each_foreground_with_its_own_prompt():
    weights = LossWeights(image=0, text=0, prompt_foreground=1)
    plain, regularizer = make(weights=weights), make(weights=weights)
    pairs = [(*plain.pair_features(*batch), batch[1].class_index) for batch in Batches()]
    learn_background_prompts(regularizer, pairs, seed=3, **{**OPTIONS, "epochs": 1})
    v_f, _, classes = map(torch.cat, zip(*pairs, strict=True))
    optimizer = torch.optim.AdamW(plain.prompts.parameters(), lr=0.02, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for part in torch.randperm(24, generator=torch.Generator().manual_seed(3 * 1_000_003)).split(8):
        optimizer.zero_grad()
        u_b = plain.prompts.encode(plain.clip)[classes[part]]
        (-(1 - torch.cosine_similarity(u_b, v_f[part]).clamp(1e-4, 0.9999)).log()).mean().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(regularizer.prompts.vectors, plain.prompts.vectors, atol=1e-5, rtol=1e-5)


def test_backgrounds_alone_are_too_little_for_the_foreground_term():
    regularizer = make(weights=LossWeights(prompt_foreground=0.5))
    before = regularizer.prompts.vectors.detach().clone()
    kept = [(regularizer.background_features(*batch), batch[1].class_index) for batch in Batches()]
    with pytest.raises(ValueError, match=r"there are backgrounds alone: give v_f as well"):
        learn_background_prompts(regularizer, kept, **OPTIONS)
    assert torch.equal(regularizer.prompts.vectors, before) and not regularizer.prompts.learned


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


def learned(batches=None, change=None, **options) -> torch.Tensor:
    """The prompts of a run of its own."""
    regularizer = make()
    if change is not None:
        change(regularizer)
    learn_background_prompts(regularizer, batches or Batches(), **{**OPTIONS, **options})
    return regularizer.prompts.vectors.detach()


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


def test_prompts_that_learn_their_object_are_named(monkeypatch):
    regularizer = make(weights=LossWeights(text=0))
    labels = regularizer.label_features
    monkeypatch.setattr(regularizer, "pair_features", lambda images, masks: [labels[masks.class_index]] * 2)
    with pytest.warns(
        UserWarning, match="the prompts of train.* describe the object.*raise LossWeights.text"
    ) as warned:
        history = learn_background_prompts(regularizer, Batches(), **{**OPTIONS, "epochs": 30})
    assert "train" in [each.class_name for each in history.quality if each.describes_object]
    assert len(warned) == 1 and {warning.filename for warning in warned} == {__file__}  # the caller's line, not ours
    with pytest.warns(UserWarning, match="shared prompt describes the object"):
        regularizer.prompts = make().prompts
        learn_background_prompts(regularizer, Batches(classes=1), shared=True, **{**OPTIONS, "epochs": 30})


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


@pytest.mark.parametrize("incomparable", [False, True])
def test_pairs_are_ordered_by_name_and_class_and_count_once(incomparable):
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 4, 200)
    names = [f"{number:02}" for number in generator.integers(0, 30, 200)]
    names[50] = 7 if incomparable else "07"
    first = {}
    for i, pair in enumerate(zip(names, classes.tolist(), strict=True)):
        first.setdefault(pair, i)
    expected = list(first.values()) if incomparable else [first[pair] for pair in sorted(first)]
    assert walk._unique_pairs(classes, names).tolist() == expected and len(expected) < 120


def test_images_without_names_count_each_time():
    batches = [(*batch, ["a"] * 6) if number % 2 else batch for number, batch in enumerate(Batches())]
    assert learn_background_prompts(make(), batches, **OPTIONS).pairs == [5, 5, 5]
    assert learn_background_prompts(make(), batches[1:], **OPTIONS).pairs == [3, 3, 3]


def test_names_of_pairs_are_kept_once():
    walked, classes = walk._Walked(), torch.arange(3)
    walked.add(classes, None, True)
    walked.add(classes, ["a", "b", "a"], True)
    names = walked.names
    walked.add(classes, None, True)
    assert walked.name_all() is walked.names is names  # a million of them is no list to copy
    assert names == [(0, 0), (0, 1), (0, 2), "a", "b", "a", (0, 6), (0, 7), (0, 8)]


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
    [
        {"epochs": 2.7},
        {"epochs": "6"},
        {"epochs": True},
        {"batch_size": 8.0},
        {"seed": 0.5},
        {"lr": "0.1"},
        {"lr": True},
        {"weight_decay": None},
    ],
)
def test_options_of_another_kind_are_named(wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected a"):
        LearningOptions(**wrong)
    batches = Batches()
    with pytest.raises(TypeError, match=f"{next(iter(wrong))}: expected a"):
        learn_background_prompts(make(), batches, **{**OPTIONS, **wrong})
    assert batches.walks == 0


def test_options_are_those_of_the_call_in_pythons_own_numbers():
    parameters = inspect.signature(learn_background_prompts).parameters
    defaults = {field.name: field.default for field in fields(LearningOptions)}
    assert defaults == {name: parameters[name].default for name in defaults}
    options = LearningOptions(np.int64(3), np.float32(0.5), seed=np.int32(1), weight_decay=0)
    kinds = [type(value) for value in asdict(options).values()]
    assert kinds == [int, float, int, float, int, bool, float]
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1}, {"mask_tau": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            LearningOptions(**wrong)


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
        (quality(nearest="train"), "went well"),  # as the object's usual company may be
        (quality(separation=0.5), "went well"),
        (
            quality(separation=0.49),
            "for 1 of 1 classes.*the prompts of train describe the object.*raise LossWeights.text",
        ),
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
    assert [one.pairs for one in history.quality] == [2, 1, 0] and history.separation is None


def test_a_historys_separation_counts_pairs_and_not_classes():
    measured = [quality(1.0), quality(0.0), quality(None)]
    history = PromptHistory(["train", "boat", "bird"], [99, 1, 0], quality=measured)
    assert history.separation == pytest.approx(0.99)
    assert PromptHistory(["train"], [3], quality=[quality(None)]).separation is None


def test_the_verdict_on_a_shared_prompt_counts_classes_and_names_none():
    many = [quality(separation=0.1, name="boat"), quality(name="train"), quality(rise=0.01, name="tv monitor")]
    text = describe_quality(many, shared=True)
    assert "did not go well (sim" in text and not re.search("of (boat|train|tv monitor)", text)
    assert "the shared prompt describes the object (is nearer" in text and "for 1 of 3 classes' pairs, and" in text
    assert "; it came no nearer to the backgrounds of 1 of 3 classes: raise lr" in text
    assert describe_quality(many[1:2], shared=True) == describe_quality(many[1:2])  # went well
    with pytest.warns(UserWarning, match="did not go well .*: the shared prompt describes the object .* of 3 classes"):
        learn_background_prompts(make(), Batches(), shared=True, **{**OPTIONS, "lr": 1e-9})


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
