import argparse

import pytest
import torch
from conftest import build_frozen
from test_compiled import assert_same, batch, build, step
from test_regularizer import NAMES, host_images

from semples_plugin import SemPLeSRegularizer, load_preset
from semples_plugin.adapters import host_options
from semples_plugin.clip import part_size
from semples_plugin.clip.part_size import Kept, PartSize, free_bytes, kept_by_a_pair

pytestmark = pytest.mark.filterwarnings("ignore:refinement with prompts", "ignore:the masks carry no gradient")


def test_what_a_pair_keeps_is_counted_without_the_weights(clip):
    kept = kept_by_a_pair(clip)
    tokens, width, layers, views = 5, 64, 2, 2  # of conftest's CLIP
    assert kept.largest == views * tokens * 4 * width * 4  # the MLP's hidden activations, below its weights' 65,536
    # Layer norms' inputs, q, k and v, what attention gives, and the MLP's hidden ones: at least 10 widths a block.
    assert (layers - 1) * 10 * kept.largest / 4 < kept.total < 30 * kept.largest
    with torch.inference_mode():
        assert kept_by_a_pair(clip) == kept
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_a_cpus_parts_follow_from_threads_and_the_largest_tensor(monkeypatch, clip):
    kept = kept_by_a_pair(clip)
    for threads, fitting, expected in ((1, 1.0, 1), (1, 0.5, 1), (1, 7.9, 4), (1, 8.0, 8), (4, 7.9, 16)):
        monkeypatch.setattr(part_size, "CPU_BYTES", fitting * kept.largest)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        size = PartSize()
        assert size(clip) == size(clip) == expected


class OnAGpu:
    """A CLIP that says it is on one."""

    device, model = torch.device("cuda"), None


def test_a_gpus_parts_fit_into_what_is_free_and_follow_it(monkeypatch):
    measured, free = [], [0]
    monkeypatch.setattr(part_size, "kept_by_a_pair", lambda clip: (measured.append(clip), Kept(40, 10))[1])
    monkeypatch.setattr(part_size, "free_bytes", lambda device: free[0])
    size, clip = PartSize(check_every=10), OnAGpu()
    found = []
    for free[0] in (0, 125, 100 * 16 / 0.8, 99 * 16 / 0.8, *[1e9] * 6, 1000):
        found.append(size(clip, "kind"))
    # Looked at in calls 1, 2, 3 and 10; 40 + 6 * 10 bytes a pair, of four fifths.
    assert found == [1, 1, 16, 16, 16, 16, 16, 16, 16, 1 << 22, 1 << 22] and len(measured) == 1
    assert size(clip, "another kind") == 8 and len(measured) == 1
    clip.device = torch.device("mps")
    with pytest.raises(ValueError, match=r'"auto" knows CPUs and CUDA devices, CLIP is on mps; give a number'):
        size(clip, "kind")


def test_free_memory_counts_what_the_allocator_holds_without_need(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    assert free_bytes(torch.device("cuda")) == 1100


def test_auto_gives_the_same_losses_and_gradients_and_never_more_pairs_at_once(monkeypatch):
    plain = build()
    monkeypatch.setattr(part_size, "CPU_BYTES", 4.5 * kept_by_a_pair(plain.clip).largest)
    auto = build(build_frozen(), max_pairs="auto")
    seen, encode = [], auto.clip.encode_images
    monkeypatch.setattr(auto.clip, "encode_images", lambda images: (seen.append(len(images)), encode(images))[1])
    for pairs, views in ((3, [6]), (9, [8, 8, 2])):
        got = step(auto, pairs)
        assert [n for n in seen if n > 2 or pairs == 9][-len(views) :] == views
        assert_same(got, step(plain, pairs))
    first, again = step(auto, 9), step(build(build_frozen(), max_pairs="auto"), 9)
    assert torch.equal(first[1], again[1]) and first[0] == again[0]  # to the bit
    seen.clear()
    masks = batch(9)[1]
    backgrounds = auto.background_features(host_images(), masks)
    assert seen == [4, 4, 1]
    torch.testing.assert_close(backgrounds, plain.background_features(host_images(), masks), atol=1e-6, rtol=1e-6)
    seen.clear()
    auto.gradient_balance(host_images(), masks)
    assert seen == [8, 8, 2]


def test_auto_is_an_option_of_presets_and_hosts(clip):
    preset = load_preset("voc").with_(class_names=NAMES)
    assert preset.build_regularizer(clip, max_pairs="auto").max_pairs == "auto"
    parser = argparse.ArgumentParser(exit_on_error=False)
    host_options.add_arguments(parser, "voc")
    for text, expected in (("auto", "auto"), ("16", 16)):
        assert parser.parse_args(["--semples-max-pairs", text]).semples_max_pairs == expected
    for wrong in ("0", "many", "-3", "1.5"):
        with pytest.raises(argparse.ArgumentError, match=f"expected a positive number of pairs or auto, got '{wrong}'"):
            parser.parse_args([f"--semples-max-pairs={wrong}"])
    for wrong in ("all", True, 0):
        with pytest.raises(ValueError, match='max_pairs: expected a positive integer, "auto" or None, got'):
            SemPLeSRegularizer(clip, NAMES, max_pairs=wrong)
