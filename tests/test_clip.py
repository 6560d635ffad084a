import copy

import open_clip
import pytest
import torch
from conftest import TEXT, VISION, StickyTokenizer, build_clip, build_frozen

from semples_plugin import FrozenClip

KINDS = ["CLIP", "CustomTextCLIP", "SigLIP"]
TEXTS = ["a photo of red train on rails.", "a photo of two cows near some grass."]


def middle_embeddings(clip: FrozenClip, text: str) -> torch.Tensor:
    """Token embeddings of the words between "a photo of" and ".", found with open_clip's own tokenizer."""
    words = open_clip.get_tokenizer("ViT-B-32")([text.removeprefix("a photo of ").removesuffix(".")])[0]
    ids = words[1 : int(words.argmax())]
    return clip._text.token_embedding(ids)[None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_prompt_of_a_real_texts_embeddings_is_that_text(kind, text):
    clip = build_frozen(kind, double=True)
    prompt = clip.encode_prompts(middle_embeddings(clip, text))
    torch.testing.assert_close(prompt, clip.encode_texts([text]), atol=1e-9, rtol=0)
    assert not torch.allclose(prompt, clip.encode_prompts(middle_embeddings(clip, text).flip(1)), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_unit_length_and_equal_open_clips(kind):
    model = build_clip(kind)
    expected = copy.deepcopy(model).eval()
    tokenizer = StickyTokenizer() if kind == "SigLIP" else open_clip.get_tokenizer("ViT-B-32")
    clip = FrozenClip(model.train(), tokenizer)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(clip.encode_images(images), expected.encode_image(images, normalize=True))
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected.encode_text(tokenizer(TEXTS), normalize=True))
    torch.testing.assert_close(clip.encode_texts(TEXTS).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_images_and_prompts_and_never_clip(kind):
    clip = build_frozen(kind)
    before = copy.deepcopy(clip.model.state_dict())
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    vectors = torch.randn(2, 4, clip.text_width, requires_grad=True)
    (clip.encode_images(images)[:, 0].sum() + clip.encode_prompts(vectors)[:, 0].sum()).backward()
    assert images.grad.abs().sum() > 0 and vectors.grad.abs().amin((1, 2)).min() > 0
    assert all(not p.requires_grad and p.grad is None for p in clip.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())


def test_a_host_that_switches_the_model_to_training_changes_nothing():
    clip = build_frozen()
    images, vectors = torch.randn(2, 3, 32, 32), torch.randn(2, 4, clip.text_width)
    for encode in (
        lambda: clip.encode_images(images),
        lambda: clip.encode_texts(TEXTS),
        lambda: clip.encode_prompts(vectors),
    ):
        expected = encode()
        clip.model.train()
        torch.testing.assert_close(encode(), expected, atol=0, rtol=0)
        assert not clip.model.training


def test_a_surrounding_autocast_changes_nothing():
    clip = build_frozen()
    images, vectors = torch.randn(2, 3, 32, 32), torch.randn(2, 4, clip.text_width)
    expected = clip.encode_images(images), clip.encode_prompts(vectors), clip.encode_texts(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = clip.encode_images(images), clip.encode_prompts(vectors), clip.encode_texts(TEXTS)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_causal_towers_see_no_padding_and_siglip_sees_all():
    seen = []
    for kind in KINDS:
        clip = build_frozen(kind)
        handle = clip._text.transformer.resblocks[0].ln_1.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape[1])
        )
        clip.encode_prompts(torch.randn(1, 10, clip.text_width))
        handle.remove()
    assert seen == [16, 16, 16]  # start, "a photo of", 10 vectors, full stop, end; SigLIP: its whole context
    assert build_frozen("CLIP").layout(30, "a photo of {}.", None).ids.shape == (36,)
    assert len(build_frozen("SigLIP").layout(3, "a photo of {}.", None).ids) == 16


@pytest.mark.parametrize(("kind", "room"), [("CLIP", 71), ("CustomTextCLIP", 71), ("SigLIP", 11)])
def test_prompts_fill_the_context_and_no_more(kind, room):
    clip = build_frozen(kind)
    clip.encode_prompts(torch.randn(1, room, clip.text_width))
    with pytest.raises(ValueError, match=f"has room for 1 to {room}"):
        clip.encode_prompts(torch.randn(1, room + 1, clip.text_width))


def test_the_releases_suffix_token_replaces_the_full_stop():
    clip = build_frozen()
    layout = clip.layout(3, "a photo of {}.", (13,))
    assert layout.ids[layout.start + 3 :].tolist() == [13, 49407]
    vectors = torch.randn(1, 3, clip.text_width)
    released = clip.encode_prompts(vectors, suffix_ids=(13,))
    assert not torch.allclose(released, clip.encode_prompts(vectors), atol=1e-4)
    with pytest.raises(ValueError, match="suffix_ids"):
        clip.encode_prompts(vectors, suffix_ids=(13, 14))


@pytest.mark.parametrize("words", [["a", "photo", "of", "<unk>"], ["<unk>"]])
def test_word_tokenizers_work_where_they_can_tell_words_apart(words):
    def tokenizer(texts):
        rows = [
            [10, *(words.index(w) if w in words else len(words) for w in t.replace(".", " .").split()), 60]
            for t in texts
        ]
        return torch.tensor([row + [61] * (20 - len(row)) for row in rows])

    model = build_clip(context_length=20, vocab_size=62, pool_type="eos", eos_id=60)
    clip = FrozenClip(model, tokenizer)
    if len(words) == 1:
        with pytest.raises(ValueError, match="single tokens"):
            clip.encode_prompts(torch.randn(2, 4, 64))
    else:
        assert clip.encode_prompts(torch.randn(2, 4, 64)).shape == (2, 32)


def test_the_signature_tells_clips_apart_and_not_precisions():
    reference = build_frozen(seed=1).signature()
    half = FrozenClip(build_clip(seed=1).bfloat16(), open_clip.get_tokenizer("ViT-B-32")).signature()
    # Even with every weight in bfloat16; `BackgroundPrompts.check_belongs_to` asks for 0.98.
    assert reference @ half > 0.99 and reference @ build_frozen(seed=2).signature() < 0.9


def test_models_that_take_no_prompts_are_refused_by_name():
    multimodal = {"context_length": 76, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 1}
    coca = open_clip.CoCa(
        32,
        vision_cfg={**VISION, "attentional_pool": True, "attn_pooler_heads": 2},
        text_cfg={**TEXT, "context_length": 76, "embed_cls": True},
        multimodal_cfg=multimodal,
    )  # fmt: skip
    with pytest.raises(TypeError, match="CoCa"):
        FrozenClip(coca, open_clip.get_tokenizer("ViT-B-32"))

    class HFTextEncoder(torch.nn.Module):
        pass

    model = build_clip("CustomTextCLIP")
    model.text = HFTextEncoder()
    with pytest.raises(TypeError, match="Hugging Face text tower"):
        FrozenClip(model, open_clip.get_tokenizer("ViT-B-32"))
    with pytest.raises(TypeError, match="got Linear without token_embedding"):
        FrozenClip(torch.nn.Linear(2, 2), open_clip.get_tokenizer("ViT-B-32"))


def test_wrong_inputs_are_named():
    clip = build_frozen()
    with pytest.raises(ValueError, match=r"takes \[B, 3, 32, 32\]"):
        clip.encode_images(torch.randn(1, 3, 64, 64))
    with pytest.raises(TypeError, match="floating"):
        clip.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match="list of strings"):
        clip.encode_texts("a photo of a cat.")
    with pytest.raises(ValueError, match="width 64, got 32"):
        clip.encode_prompts(torch.randn(1, 4, 32))
    with pytest.raises(ValueError, match="template"):
        clip.encode_prompts(torch.randn(1, 4, 64), template="a photo")
    with pytest.raises(ValueError, match="tokenizer does not belong"):
        FrozenClip(build_clip(vocab_size=100), open_clip.get_tokenizer("ViT-B-32")).encode_texts(["a cat"])


def test_an_overflow_in_half_precision_names_its_cause():
    clip = FrozenClip(build_clip().half(), open_clip.get_tokenizer("ViT-B-32"))
    images = torch.randn(2, 3, 32, 32)
    assert clip.encode_images(images).isfinite().all()
    clip.model.visual.proj.data.fill_(60000)
    clip.model.text_projection.data.fill_(60000)
    for encode, what in (
        (lambda: clip.encode_images(images), "images"),
        (lambda: clip.encode_texts(["a cat"]), "texts"),
        (lambda: clip.encode_prompts(torch.randn(1, 2, clip.text_width)), "prompts"),
    ):
        with pytest.raises(
            ValueError, match=f'overflows in fp16, its features of {what} .* precision "bf16" or "fp32"'
        ):
            encode()
