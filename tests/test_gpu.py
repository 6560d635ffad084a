"""What only a CUDA device can show; skips itself elsewhere."""

import copy

import pytest
import torch
from conftest import build_frozen
from test_distributed import Cams, batch, build, spawn
from test_distributed import step as cam_step
from test_prompt_learning import OPTIONS, Batches
from test_regularizer import LABELS, NAMES, WEIGHTS, cams, host_images

from semples_plugin import BackgroundPrompts, ClassMasks, SemPLeSRegularizer, learn_background_prompts
from semples_plugin.clip.part_size import GPU_SHARE, kept_by_a_pair
from semples_plugin.prompt_learning.epochs import LearningRun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make(device: str, **options) -> SemPLeSRegularizer:
    clip = build_frozen().to(device)
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=clip.token_std)
    return SemPLeSRegularizer(clip, NAMES, weights=WEIGHTS, prompts=prompts, **options)


def step(device: str, **options):
    maps = cams().detach().to(device).requires_grad_()
    losses = make(device, **options)(host_images().to(device), ClassMasks.from_dense(maps, LABELS).sigmoid())
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, maps.grad.cpu()


@pytest.mark.parametrize("options", [{}, {"refine_share": 0.3}])
def test_losses_and_gradients_are_the_cpus(options):
    (on_cpu, cpu_gradient), (on_gpu, gpu_gradient) = step("cpu", **options), step("cuda", **options)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)
    torch.testing.assert_close(gpu_gradient, cpu_gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_host_with_autocast_and_a_scaler_trains(dtype):
    regularizer = make("cuda")
    host = torch.nn.Conv2d(3, 3, 3, padding=1).cuda()
    before = copy.deepcopy(host.state_dict())
    optimizer, scaler = (
        torch.optim.SGD(host.parameters(), lr=0.1),
        torch.amp.GradScaler("cuda", enabled=dtype == torch.float16),
    )
    images = host_images().cuda()
    for _ in range(3):
        with torch.autocast("cuda", dtype=dtype):
            maps = host(images)
            assert maps.dtype == dtype
            losses = regularizer(images, ClassMasks.from_dense(maps, LABELS.cuda()).normalized())
        total = sum(losses.values())
        assert total.dtype == torch.float32 and total.isfinite()
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(not torch.equal(before[name], value) for name, value in host.state_dict().items())


def test_prompts_learn_on_the_device():
    regularizer = make("cuda", input_mean=None, input_std=None)
    batches = ((x.cuda(), ClassMasks.from_pairs(m.maps.cuda(), m.image_index, m.class_index)) for x, m in Batches())
    history = learn_background_prompts(regularizer, batches, **OPTIONS)
    assert history.loss[-1] < history.loss[0] and regularizer.prompts.vectors.is_cuda


def test_features_on_disk_learn_the_prompts_of_features_on_the_device(tmp_path):
    features = []
    for work_dir in (None, tmp_path / "work"):
        regularizer = make("cuda", input_mean=None, input_std=None)
        batches = ((x.cuda(), ClassMasks.from_pairs(m.maps.cuda(), m.image_index, m.class_index)) for x, m in Batches())
        learn_background_prompts(regularizer, batches, work_dir=work_dir, **OPTIONS)
        features.append(regularizer.prompt_features())
    assert torch.cosine_similarity(*features).min() > 1 - 1e-3


def test_a_clip_left_on_the_cpu_is_named():
    regularizer = make("cpu")
    masks = ClassMasks.from_dense(cams().cuda(), LABELS).sigmoid()
    with pytest.raises(ValueError, match=r"CLIP is on cpu.*regularizer\.to"):
        regularizer(host_images().cuda(), masks)
    regularizer.to("cuda")(host_images().cuda(), masks)


@pytest.mark.parametrize("stage", ["a", "c"])
@pytest.mark.parametrize("max_pairs", [None, 2])
def test_a_step_of_a_and_c_waits_for_the_device_in_no_case_but_parts_once(stage, max_pairs):
    regularizer = make("cuda", max_pairs=max_pairs)
    regularizer.prompts.learned = True
    if stage == "a":
        regularizer.prompts = None
    images = host_images().cuda()
    try:
        for number in range(8):
            maps = cams().detach().cuda().requires_grad_()
            if number > 2:  # the first three steps check their values
                torch.cuda.set_sync_debug_mode("error")
            losses = regularizer(images, ClassMasks.from_dense(maps, LABELS).normalized())
            if max_pairs is not None:  # its backward pass asks once whether the losses are weighed alike
                torch.cuda.set_sync_debug_mode("default")
            sum(losses.values()).backward()
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_of_b_waits_for_the_device_in_its_first_three_alone(monkeypatch):
    plain_step, done = LearningRun._step, []

    def step(run, chosen):
        torch.cuda.set_sync_debug_mode("error" if len(done) >= 3 else "default")
        try:
            done.append(plain_step(run, chosen))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return done[-1]

    monkeypatch.setattr(LearningRun, "_step", step)
    regularizer = make("cuda", input_mean=None, input_std=None)
    batches = ((x.cuda(), ClassMasks.from_pairs(m.maps.cuda(), m.image_index, m.class_index)) for x, m in Batches())
    learn_background_prompts(regularizer, batches, **OPTIONS)
    assert len(done) > 3


@pytest.mark.parametrize("options", [{}, {"max_pairs": 8}, {"max_pairs": "auto"}])
def test_compiled_with_cuda_graphs_it_is_the_same(options):
    torch.compiler.reset()
    plain, compiled = make("cuda"), make("cuda", **options).compile(mode="reduce-overhead")
    images, before = host_images().cuda(), []
    for pairs in (7, 8, 18, 7, 8, 18, 7, 8, 18):  # warm-up, recording, replay of each
        generator = torch.Generator().manual_seed(pairs)
        found = []
        for regularizer in (plain, compiled):
            maps = torch.rand(pairs, 32, 32, generator=generator.manual_seed(pairs)).cuda().requires_grad_()
            index = torch.arange(pairs) % 3
            losses = regularizer(images, ClassMasks.from_pairs(maps, index, index))
            sum(losses.values()).backward()
            found.append((losses, regularizer.figures, maps.grad))
        torch.testing.assert_close(found[1][:2], found[0][:2], atol=1e-6, rtol=1e-5)
        assert float((found[1][2] - found[0][2]).norm() / found[0][2].norm()) < 1e-5
        before.append((found[1], copy.deepcopy([x.detach() for x in found[1][0].values()])))
    for (losses, _, gradient), then in before:  # what a host kept isn't overwritten by later replays
        torch.testing.assert_close([x.detach() for x in losses.values()], then, atol=0, rtol=0)
        assert gradient.isfinite().all()


def test_what_a_pair_is_measured_to_need_is_what_it_takes():
    regularizer, images = make("cuda"), host_images().cuda()
    needed, peaks = kept_by_a_pair(regularizer.clip).needed, []
    for pairs in (64, 64, 256):  # the first step allocates what libraries keep
        maps, index = torch.rand(pairs, 8, 8, device="cuda").requires_grad_(), torch.arange(pairs) % 3
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sum(regularizer(images, ClassMasks.from_pairs(maps, index, index)).values()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    a_pair = (peaks[2] - peaks[1]) / (256 - 64)
    assert needed / 2 < a_pair < needed / GPU_SHARE


def test_auto_takes_small_batches_as_a_whole_and_parts_where_memory_is_short(monkeypatch):
    regularizer, images = make("cuda", max_pairs="auto"), host_images().cuda()
    maps, index = torch.rand(48, 8, 8, device="cuda").requires_grad_(), torch.arange(48) % 3
    masks, seen, encode = ClassMasks.from_pairs(maps, index, index), [], regularizer.clip.encode_images
    monkeypatch.setattr(regularizer.clip, "encode_images", lambda views: (seen.append(len(views)), encode(views))[1])
    whole = regularizer(images, masks)
    assert seen[-1] == 96
    needed = kept_by_a_pair(regularizer.clip).needed
    monkeypatch.setattr("semples_plugin.clip.part_size.free_bytes", lambda device: 17 * needed / GPU_SHARE)
    seen.clear()
    parts = regularizer(images, masks)
    assert seen == [32, 32, 32]
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def _train_on(rank, kind, out) -> None:
    """A step of DDP on three or four of seven pairs, and the gradients that came of it."""
    torch.backends.cudnn.allow_tf32 = False  # of the model's convolution
    device = f"cuda:{rank}" if kind == "cuda" else "cpu"
    images, labels = (tensor.to(device) for tensor in batch())
    part = slice(0, 2) if rank == 0 else slice(2, None)
    model = torch.nn.parallel.DistributedDataParallel(Cams().to(device))
    cam_step(model, build().to(device), images[part], labels[part])
    torch.save([parameter.grad.cpu() for parameter in model.parameters()], f"{out}/{rank}.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs two CUDA devices, has {torch.cuda.device_count()}")
def test_two_processes_over_nccl_give_the_gradients_of_one(tmp_path):
    spawn(_train_on, "cuda", str(tmp_path), backend="nccl")
    model = Cams()
    cam_step(model, build(), *batch())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()], atol=1e-6, rtol=1e-3)
