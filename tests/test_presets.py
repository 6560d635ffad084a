import pytest

from semples_plugin import LossWeights, SemPLeSRegularizer, load_preset

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
    assert set(preset.learning_options()) == {"epochs", "lr", "batch_size", "weight_decay"}
