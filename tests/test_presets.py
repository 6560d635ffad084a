import copy
import pickle

import pytest
import torch
from conftest import build_frozen

from semples_plugin import FrozenClip, LossWeights, SemPLeSRegularizer, load_preset

MMSEG_VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def test_the_papers_numbers():
    voc, coco = load_preset("voc"), load_preset("coco")
    assert (voc.weights, coco.weights) == (LossWeights(1, 2.4, 0.05, 1, 0.02), LossWeights(1, 0.75, 0.2, 1, 0.01))
    for preset, lr in ((voc, 5e-4), (coco, 5e-6)):
        assert (preset.lr, preset.prompt_lr, preset.epochs, preset.batch_size) == (lr, lr, 60, 64)
        assert preset.prompt_length == 30 and preset.clip[0] == "ViT-B-32-quickgelu"
        assert preset.text_term == "paper" and preset.renormalize


def test_the_releases_departures():
    voc, coco = load_preset("release-voc"), load_preset("release-coco")
    assert (voc.lr, voc.prompt_lr, coco.lr, coco.prompt_lr) == (5.12e-4, 0.1, 5.12e-6, 0.01)
    for preset in (voc, coco):
        assert preset.text_term == "release" and preset.suffix_ids == (13,) and preset.prompt_init == "uniform"
        assert preset.weight_decay == 0.03 and (preset.mask_eps, preset.prompt_mask_eps) == (0.1, 1e-4)
        assert preset.regularizer_options()["input_mean"] is None
    assert voc.class_names[14] == "player" and len(coco.class_names) == 90
    # COCO's category ids are 1-based: 13 is the stop sign, 90 the toothbrush.
    assert coco.class_names[12] == "stop sign" and coco.class_names[11] == "street sign"
    assert coco.class_names[89] == "toothbrush" and coco.class_names[43] == "bottle"


def test_class_names_and_their_other_spellings():
    voc, coco = load_preset("voc"), load_preset("coco")
    assert len(set(voc.class_names)) == 20 and len(set(coco.class_names)) == 80
    assert [voc.class_index(name) for name in MMSEG_VOC] == list(range(20))
    assert load_preset("release-voc").class_index("person") == 14 and voc.class_index("player") == 14
    assert coco.class_names[coco.class_index("TVmonitor")] == "tv"
    for preset in map(load_preset, ("voc", "coco", "release-voc", "release-coco")):
        assert set(preset.aliases.values()) <= set(preset.class_names)
        assert not set(preset.aliases) & set(preset.class_names)
    with pytest.raises(ValueError, match="did you mean bottle"):
        voc.class_index("botle")
    with pytest.raises(ValueError, match="voc, coco, release-voc, release-coco"):
        load_preset("cityscapes")


def test_a_preset_makes_a_regularizer_and_its_prompts(clip):
    preset = load_preset("release-voc")
    regularizer = SemPLeSRegularizer(clip, **preset.regularizer_options(), prompts=preset.new_prompts(clip.text_width))
    assert regularizer.prompts.vectors.shape == (20, 30, clip.text_width) and regularizer.prompts.vectors.min() >= 0
    assert regularizer.prompts.suffix_ids == (13,) and regularizer.text_term == "release"
    assert set(preset.learning_options()) == {"epochs", "lr", "batch_size", "weight_decay", "shared", "mask_tau"}


def test_single_values_are_replaced_and_wrong_ones_named():
    voc = load_preset("voc")
    mine = voc.with_(class_names=["aeroplane", "couch"], weights={"refine": 0.5}, suffix_ids=[13])
    assert mine.weights == LossWeights(1, 2.4, 0.5, 1, 0.02) and mine.suffix_ids == (13,)
    assert mine.class_names == ("aeroplane", "couch") and voc.class_names[0] == "aeroplane"
    assert mine.class_index("Couch") == 1 and mine.class_index("airplane") == 0  # voc calls the couch a sofa
    for wrong, error, words in (
        ({"prompt_lenght": 3}, ValueError, "preset voc: expected some of name, .* did you mean prompt_length"),
        ({"weights": {"refinement": 1}}, ValueError, "weights: expected some of foreground,.* did you mean refine"),
        ({"weights": 3}, TypeError, "weights: expected LossWeights, got int"),
        ({"prompt_lr": "fast"}, TypeError, "prompt_lr: expected float, got 'fast'"),
        ({"prompt_length": 3.5}, TypeError, "prompt_length: expected int, got 3.5"),
        ({"align_corners": "yes"}, TypeError, "align_corners: expected bool"),
        ({"epochs": True}, TypeError, "epochs: expected int, got True"),
        ({"class_names": ["cat", "cat"]}, ValueError, "'cat' twice"),
    ):
        with pytest.raises(error, match=words) as caught:
            voc.with_(**wrong)
        assert len(str(caught.value)) < 500
    assert copy.deepcopy(mine) == pickle.loads(pickle.dumps(mine)) == mine  # a model that keeps one is copied


def test_a_built_regularizer_keeps_its_preset(clip):
    release = load_preset("release-voc")
    statistics = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert release.build_regularizer(clip, statistics=statistics).input_mean == tuple(clip.image_mean)
    built = load_preset("voc").build_regularizer(
        clip, statistics=statistics, weights={"text": 0.5}, prompt_length=7, max_pairs=3, class_names=("a", "b")
    )
    assert (built.input_mean, built.max_pairs, built.weights.text) == (statistics[0], 3, 0.5)
    assert built.preset.prompt_length == 7 and built.class_names == built.preset.class_names == ("a", "b")
    assert SemPLeSRegularizer(clip, ["a"]).preset is None
    with pytest.raises(ValueError, match=r"got max_pair; did you mean max_pairs"):
        release.build_regularizer(clip, max_pair=3)


def test_corners_are_aligned_where_the_preset_says_so(clip):
    from semples_plugin import ClassMasks

    masks = ClassMasks.from_pairs(torch.rand(2, 5, 5), torch.tensor([0, 0]), torch.tensor([0, 1]))
    images = torch.zeros(1, 3, *clip.image_size)
    for aligned in (False, True):
        regularizer = load_preset("voc").build_regularizer(clip, align_corners=aligned)
        expected = masks.resized(*clip.image_size, align_corners=aligned)
        assert torch.equal(regularizer.views(images, masks), regularizer.views(images, expected))
        other = masks.resized(*clip.image_size, align_corners=not aligned)
        assert not torch.equal(regularizer.views(images, masks), regularizer.views(images, other))
        assert torch.equal(
            regularizer.background_features(images, masks), regularizer.background_features(images, expected)
        )


def test_the_start_of_the_prompts_is_the_presets():
    voc = load_preset("voc")
    vectors = voc.new_prompts(64, seed=3).vectors
    expected = 0.02 * torch.randn(20, 30, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(vectors.detach(), expected, rtol=0, atol=0)
    torch.testing.assert_close(voc.with_(prompt_std=0.2).new_prompts(64, seed=3).vectors, 10 * vectors)


def test_what_a_preset_is_can_be_read_in_a_line():
    assert repr(load_preset("release-coco").with_(epochs=3, prompt_length=7)) == (
        'Preset("release-coco": 90 classes; weights: foreground 1, background 0.75, refine 0.2, image 1, text 0.01, '
        "prompt_foreground 0; ViT-B-32-quickgelu (openai); prompts of length 7; "
        "3 epochs with lr 5.12e-06, of prompts 60 with 0.01)"
    )


def test_a_tag_belongs_to_its_model(monkeypatch):
    asked = []
    monkeypatch.setattr(FrozenClip, "load", lambda *a, **k: asked.append((a, k)))
    preset = load_preset("voc")
    preset.load_clip(precision="bf16")
    preset.load_clip(pretrained="weights.pt")
    preset.load_clip("local-dir:clip")
    assert asked == [
        (("ViT-B-32-quickgelu", "openai"), {"precision": "bf16"}),
        (("ViT-B-32-quickgelu", "weights.pt"), {}),
        (("local-dir:clip", None), {}),
    ]


def test_departures_are_told_in_a_line():
    coco = load_preset("coco")
    assert coco.departures(lr=5e-6 * (1 + 1e-9), batch_size=64) == ""
    assert coco.departures(lr=5e-5, batch_size=16, epochs=60) == "lr 5e-05 (coco: 5e-06), batch_size 16 (coco: 64)"
    assert coco.optimizer_options() == {"lr": 5e-6, "weight_decay": 0.01}
    release = load_preset("release-voc")
    assert [release.stage_eps(stage) for stage in ("match", "prompts", "refine")] == [0.1, 1e-4, 0.1]
    with pytest.raises(ValueError, match="expected one of match, prompts, refine"):
        release.stage_eps("b")


def test_mistakes_of_type_and_mixtures_are_named():
    voc = load_preset("voc")
    for value, error in (("0.1", TypeError), (True, TypeError), (0, ValueError)):
        with pytest.raises(error, match="preset voc, refine_share: expected a finite number above 0, got"):
            voc.with_(refine_share=value)
    for field, value in (("clip", "ViT-B-16"), ("clip", ("ViT-B-32",)), ("suffix_ids", 13), ("aliases", "x")):
        with pytest.raises(TypeError, match=f"preset voc, {field}: expected"):
            voc.with_(**{field: value})
    clip = build_frozen()
    for mixture in ({"input_mean": (0, 0, 0)}, {"input_std": (1, 1, 1), "statistics": ((0, 0, 0), (1, 1, 1))}):
        with pytest.raises(ValueError, match="statistics, or input_mean and input_std both"):
            voc.build_regularizer(clip, **mixture)
    own = voc.with_(class_names=["Cat", "ER+", "tv monitor"])
    assert [own.class_index(name) for name in ("Cat", "cat", "er+", "TV_monitor", "tvmonitor")] == [0, 0, 1, 2, 2]
