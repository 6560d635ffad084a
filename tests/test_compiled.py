import copy
import pickle

import pytest
import torch
from conftest import build_frozen
from test_regularizer import NAMES, WEIGHTS, WithArea, cams, double_regularizer, host_images
from torch._dynamo.backends.registry import lookup_backend

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.compiled import padded_count

pytestmark = pytest.mark.filterwarnings("ignore:refinement with prompts", "ignore:the masks carry no gradient")


class Counting:
    """A backend of torch.compile that counts the graphs it is given, and runs them as they are."""

    def __init__(self, backend: str = "eager") -> None:
        self.graphs, self.backend = 0, lookup_backend(backend)

    def __call__(self, graph, inputs):
        self.graphs += 1
        return self.backend(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch.compiler.reset()


def build(clip=None, **options) -> SemPLeSRegularizer:
    clip = clip or build_frozen()
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=1.0)
    return SemPLeSRegularizer(clip, NAMES, weights=WEIGHTS, prompts=prompts, **options)


def batch(pairs: int, size: tuple[int, int] = (10, 12), dtype=torch.float32) -> tuple[torch.Tensor, ClassMasks]:
    """Maps, and the masks of the pairs of three images: none of them of the first image and class alone."""
    generator = torch.Generator().manual_seed(pairs)
    maps = torch.rand(pairs, *size, generator=generator).to(dtype).requires_grad_()
    return maps, ClassMasks.from_pairs(maps, (torch.arange(pairs) + 1) % 3, (torch.arange(pairs) + 2) % 3)


def step(regularizer, pairs: int, images=None, **options):
    maps, masks = batch(pairs, **options)
    losses = regularizer(host_images() if images is None else images, masks)
    (gradient,) = torch.autograd.grad(sum(losses.values()), maps)
    figures = regularizer.figures
    return {name: loss.detach() for name, loss in losses.items()}, gradient, figures


def assert_same(got, expected, bound: float = 1e-6) -> None:
    """Losses, and gradients by their norm, to 1e-6; figures as well."""
    assert list(got[0]) == list(expected[0]) and list(got[2]) == list(expected[2])
    torch.testing.assert_close(got[0], expected[0], atol=bound, rtol=bound)
    torch.testing.assert_close(got[2], expected[2], atol=bound, rtol=bound)
    assert expected[1].norm() > 0 and got[1].shape == expected[1].shape
    assert float((got[1] - expected[1]).norm()) <= bound * float(expected[1].norm())


def test_padding_is_less_than_a_quarter_and_of_few_kinds():
    sizes = [padded_count(count) for count in range(1, 1025)]
    assert all(count <= size and size - count < size / 4 for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and len(set(sizes)) == 6 + 3 * 7 + 1
    assert all(size == padded_count(size) for size in sizes)
    assert [padded_count(count, most=9) for count in (1, 7, 9, 17)] == [1, 8, 9, 20]


def test_any_number_of_pairs_gives_the_losses_and_gradients_of_eager():
    graphs, plain = Counting("aot_eager"), build()
    compiled = build(plain.clip).compile(backend=graphs)
    assert isinstance(compiled, SemPLeSRegularizer)
    for pairs in (7, 8, 10):  # padded by one, by none, and in a graph of their own
        assert_same(step(compiled, pairs), step(plain, pairs))
    assert graphs.graphs == 2


def test_one_graph_serves_every_batch_of_a_padded_number_in_a_and_in_c():
    graphs = Counting()
    compiled = build().compile(backend=graphs)  # fullgraph: a break would raise
    for pairs in (9, 10, 9, 7, 8, 7):
        step(compiled, pairs)
    assert graphs.graphs == 2
    step(compiled, 7, size=(40, 33))  # other sizes of the host's, its types, and a surrounding autocast
    step(compiled, 7, images=host_images()[:, :, :32, :36])
    step(compiled, 7, images=host_images(torch.float16), dtype=torch.float16)
    step(compiled, 8, size=(32, 32), dtype=torch.bfloat16)
    step(compiled, 7, images=host_images().repeat(2, 1, 1, 1))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            step(compiled, 7)
    compiled.prompts = BackgroundPrompts(3, 4, compiled.clip.text_width, std=1.0, seed=1)
    step(compiled, 7)
    assert graphs.graphs == 2
    compiled.prompts = None  # stage (a)
    for pairs in (7, 8):
        step(compiled, pairs)
    assert graphs.graphs == 3


def test_more_sizes_than_torch_allows_a_function_are_compiled():
    graphs = Counting()
    compiled = build().compile(backend=graphs)
    compiled.weights, compiled.prompts = LossWeights(1, 0, 0), None
    for pairs in (*range(1, 7), 7, 9, 11, 13):
        step(compiled, pairs)
    assert graphs.graphs == 10  # torch's limit is 8, after which fullgraph raises


def test_torch_explains_one_graph_without_a_break():
    from semples_plugin.pair_terms import pair_terms

    regularizer = build()
    _, masks = batch(3, size=(32, 32))
    pairs, tables = torch.randn(3, 3, 32, 32), (torch.zeros(3), regularizer.label_features)
    names = ("loss_match_foreground", "loss_match_background", "loss_refine")
    inputs = (names, pairs, masks.maps, masks.class_index, *tables, regularizer.prompt_features())
    counted = torch.tensor([True, True, False])
    explained = torch._dynamo.explain(pair_terms)(regularizer.clip.features_of, *inputs, counted)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_float64_tells_more_than_rounding():
    plain, compiled = double_regularizer(), double_regularizer().compile(backend="eager")
    maps, masks = batch(7, dtype=torch.float64)
    found = []
    for regularizer in (plain, compiled):
        losses = regularizer(host_images(torch.float64), masks)
        found.append((losses, *torch.autograd.grad(sum(losses.values()), maps)))
    torch.testing.assert_close(found[1], found[0], atol=1e-13, rtol=1e-12)


def test_parts_are_compiled_and_heed_factors_of_ones_own_and_the_second_order():
    graphs, plain = Counting("aot_eager"), build()
    compiled = build(plain.clip, max_pairs=9).compile(backend=graphs)
    encoded, encode = [], plain.clip.encode_images
    compiled.clip.encode_images = lambda images: (encoded.append(len(images)), encode(images))[1]
    maps, masks = batch(18)
    losses = compiled(host_images(), masks)
    assert graphs.graphs == 1 and [key[0] for key in compiled._compiled._graphs] == [9] and encoded == []
    expected = plain(host_images(), masks)
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    for total in (lambda x: sum(x.values()), lambda x: x["loss_match_foreground"] + 5 * x["loss_refine"]):
        got, right = (torch.autograd.grad(total(x), maps, retain_graph=True)[0] for x in (losses, expected))
        assert float((got - right).norm()) <= 1e-6 * float(right.norm())
    (first,) = torch.autograd.grad(sum(losses.values()), maps, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), maps)[0].norm() > 0


def test_calls_without_gradients_and_without_pairs():
    compiled, plain = build().compile(backend="eager"), build()
    images, (_, masks) = host_images(), batch(5)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(compiled(images, masks), plain(images, masks), atol=1e-6, rtol=1e-6)
    maps = cams()
    losses = compiled(images, ClassMasks.from_dense(maps, torch.zeros(3, 3)).sigmoid())
    sum(losses.values()).backward()
    assert len(losses) == 3 and maps.grad.abs().sum() == 0 and compiled.figures == {}


def test_clip_is_frozen_again_and_half_precision_stays():
    compiled, plain = build().compile(backend="eager"), build()
    compiled.prompts = plain.prompts = None  # encoding them would freeze CLIP as well
    compiled.clip.model.train().requires_grad_(True)
    assert_same(step(compiled, 3), step(plain, 3))
    assert not any(p.requires_grad or p.grad is not None for p in compiled.clip.model.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        half = FrozenClip(copy.deepcopy(plain.clip.model).to(dtype), plain.clip.tokenizer)
        plain_half, compiled_half = build(half), build(half).compile(backend="eager")
        assert_same(step(compiled_half, 7), step(plain_half, 7), bound=5e-3)  # sums in another order, in half precision
    half.model.visual.proj.data.fill_(60000)
    with pytest.raises(ValueError, match="overflows in fp16, its features of images are NaN"):
        step(compiled_half, 7)


def test_lambda_is_measured_as_without():
    found = []
    for regularizer in (build(refine_share=0.3), build(refine_share=0.3).compile(backend="aot_eager")):
        found.append((*step(regularizer, 3)[:2], torch.tensor(regularizer.refine_weight)))
        balance = regularizer.gradient_balance(host_images(), batch(3)[1])
        assert balance["refine_to_match"] == pytest.approx(0.3, rel=1e-4)
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_terms_of_ones_own_see_no_padding():
    own = WithArea(build_frozen(double=True), NAMES, weights=WEIGHTS)
    maps, masks = batch(7, dtype=torch.float64)
    expected = own(host_images(torch.float64), masks)
    got = copy.deepcopy(own).compile(backend="eager")(host_images(torch.float64), masks)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(sum(losses.values()), maps)[0] for losses in (got, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


def test_copies_share_graphs_and_another_compile_replaces_them():
    first, second = Counting(), Counting()
    compiled = build().compile(backend=first)
    step(compiled, 3)
    step(copy.copy(compiled), 3)
    assert first.graphs == 1
    step(compiled.compile(backend=second), 3)
    assert (first.graphs, second.graphs) == (1, 1)


def test_options_are_torchs_and_wrong_ones_are_refused_at_once(monkeypatch):
    regularizer, seen = build(), []
    for name in ("fullgraph", "dynamic"):
        with pytest.raises(TypeError, match=f"compile: {name} is set already"):
            regularizer.compile(**{name: True})
    with pytest.raises(RuntimeError, match="nonsense"):
        regularizer.compile(mode="nonsense")
    assert_same(step(regularizer, 3), step(build(), 3), bound=0)  # still as it was
    monkeypatch.setattr(torch, "compile", lambda function, **options: (seen.append(options), function)[1])
    regularizer.compile(mode="reduce-overhead")
    step(regularizer, 3)
    assert seen == [{"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}] * 2


def test_within_a_compiled_program_it_is_part_of_its_graph():
    regularizer = build().compile(backend=Counting())
    _, masks = batch(3)
    outer = Counting()
    regularizer.prompts = None
    torch.compile(regularizer.__call__, backend=outer, fullgraph=True)(host_images(), masks)
    assert outer.graphs == 1 and not regularizer._compiled._graphs


def test_a_compiled_regularizer_that_ran_is_pickled_and_more_kinds_than_torch_allows_are_compiled():
    compiled = build().compile(backend="eager")
    expected = step(compiled, 3)
    assert_same(step(pickle.loads(pickle.dumps(build().compile(backend="eager"))), 3), expected)
    again = pickle.loads(pickle.dumps(compiled))
    assert_same(step(again, 3), expected)
    images, (_, masks) = host_images(), batch(3)
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.float64):
            for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with context():
                    compiled(images.to(dtype, memory_format=layout), masks)
