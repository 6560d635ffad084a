"""Two gloo processes give the gradients and the prompts of one."""

import copy
import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import build_frozen

from semples_plugin import BackgroundPrompts, ClassMasks, SemPLeSRegularizer, learn_background_prompts, wrap
from semples_plugin.adapters import clims
from semples_plugin.regularizer import sum_of
from semples_plugin.utils import distributed

NAMES = ["train", "boat", "bird"]


class Cams(torch.nn.Module):
    """A linear CAM model, so that gradients compare to rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.layer(images)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Five images: pairs 2, 1, 0, 3, 1."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    return torch.randn(5, 3, 32, 32, generator=generator).clamp(-1, 1), labels


def build(**options) -> SemPLeSRegularizer:
    clip = build_frozen()
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=clip.token_std)
    prompts.learned = True
    return SemPLeSRegularizer(clip, NAMES, prompts=prompts, input_mean=None, input_std=None, **options)


def step(model, regularizer, images, labels) -> torch.Tensor:
    loss = sum_of(regularizer(images, ClassMasks.from_dense(model(images), labels).sigmoid()))
    loss.backward()
    return loss.detach()


def spawn(function, *arguments, backend="gloo") -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(function, port, arguments, backend), nprocs=2)


def _rank(rank, function, port, arguments, backend) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=2)
    try:
        function(rank, *arguments)
    finally:
        time.sleep(0.3)  # torch 2.6 waits here for threads that want the interpreter's lock for their last tensors
        dist.destroy_process_group()


def _accumulate(model, regularizer, images, labels, no_sync=nullcontext) -> list[torch.Tensor]:
    """Gradients of three batches, of which the last alone is exchanged."""
    model.zero_grad()
    for context, factor in ((no_sync, 1.0), (no_sync, 0.5), (nullcontext, 0.25)):
        with context():
            step(model, regularizer, images * factor, labels)
    return [parameter.grad.clone() for parameter in model.parameters()]


UNEVEN = {"3 and 4 pairs": (2, 1), "2 and 5": (1, 1), "0 and 4": (3, 0)}  # images of rank 0, labels of the first three


def _train(rank, out) -> None:
    for name, (split, first) in UNEVEN.items():
        images, labels = batch()
        labels[:3] *= first
        part = slice(0, split) if rank == 0 else slice(split, None)
        model = torch.nn.parallel.DistributedDataParallel(Cams())  # no flags: every parameter takes part in every step
        regularizer = build()
        loss = step(model, regularizer, images[part], labels[part])
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        regularizer.max_pairs = 2 - rank  # ranks may choose for themselves, and reach it or don't
        if split == 1:
            regularizer.compile(backend="eager")
        gathered = _accumulate(model, regularizer, images[part], labels[part], model.no_sync)
        torch.save((loss, gradients, gathered), f"{out}/{name} {rank}.pt")
        if rank == 0:  # one rank alone may look at its losses
            with torch.no_grad():
                regularizer(images, ClassMasks.from_dense(model.module(images), labels).sigmoid())


def test_uneven_ranks_give_the_gradient_of_the_whole_batch(tmp_path):
    spawn(_train, str(tmp_path))
    for name, (_, first) in UNEVEN.items():
        images, labels = batch()
        labels[:3] *= first
        model = Cams()
        loss = step(model, build(), images, labels)
        found = [torch.load(tmp_path / f"{name} {rank}.pt") for rank in range(2)]
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        for _, gradients, gathered in found:
            torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(gathered, _accumulate(model, build(), images, labels), atol=1e-6, rtol=0)
        assert float(found[0][0] + found[1][0]) / 2 == pytest.approx(float(loss), rel=1e-5)


def _steps(model, regularizer, images, labels, part=slice(None)) -> tuple[list[float], list[torch.Tensor]]:
    """lambda after each of a few steps, and the gradients of the last; the second step has no pair on any rank."""
    weights = []
    for factor, labelled in ((1.0, 1), (0.9, 0), (0.5, 1), (0.25, 1)):
        model.zero_grad()
        step(model, regularizer, images[part] * factor, labels[part] * labelled)
        weights.append(regularizer.refine_weight)
    return weights, [parameter.grad.clone() for parameter in model.parameters()]


def _measure(rank, out) -> None:
    for name, (split, first) in UNEVEN.items():
        images, labels = batch()
        labels[:3] *= first
        part = slice(0, split) if rank == 0 else slice(split, None)
        model = torch.nn.parallel.DistributedDataParallel(Cams())
        torch.save(_steps(model, build(refine_share=0.3), images, labels, part), f"{out}/{name} {rank}.pt")


def test_ranks_measure_one_lambda_that_of_the_whole_batch(tmp_path):
    spawn(_measure, str(tmp_path))
    for name, (_, first) in UNEVEN.items():
        images, labels = batch()
        labels[:3] *= first
        expected, gradients = _steps(Cams(), build(refine_share=0.3), images, labels)
        ranks = [torch.load(tmp_path / f"{name} {rank}.pt") for rank in range(2)]
        assert ranks[0][0] == ranks[1][0] and expected[0] == expected[1] != expected[2]
        for weights, found in ranks:
            assert weights == pytest.approx(expected, rel=1e-4)
            torch.testing.assert_close(found, gradients, atol=1e-6, rtol=0)


def _walk(indices):
    images, labels = batch()
    for i in indices:
        cams = torch.nn.functional.interpolate(images[i : i + 1], (8, 8)).abs()
        yield images[i : i + 1], ClassMasks.from_dense(cams / cams.max(), labels[i : i + 1]), [i]


def _stopped(indices):
    yield from list(_walk(indices))[:1]
    raise ValueError("the disk is gone")


def _learn(rank, parts, out) -> None:
    regularizer = build()
    try:  # one rank stops in its walk: all of them keep what they have encoded
        learn_background_prompts(
            regularizer, _stopped(parts[1]) if rank else _walk(parts[0]), progress=False, work_dir=f"{out}/work"
        )
    except (RuntimeError, ValueError) as error:
        assert "the disk is gone" in str(error)
    calls, inner = [], regularizer.pair_features
    regularizer.pair_features = lambda *batch: (calls.append(1), inner(*batch))[1]
    history = learn_background_prompts(
        regularizer, _walk(parts[rank]), epochs=3, lr=0.02, batch_size=4, progress=False,
        work_dir=f"{out}/work", save_to=f"{out}/prompts.safetensors",
    )  # fmt: skip
    assert len(calls) == rank  # rank 1's second image alone: its third is rank 0's first
    torch.save((regularizer.prompts.vectors.detach(), history.to_dict()), f"{out}/{rank}.pt")


@pytest.mark.filterwarnings("ignore:these prompts were learned already")
def test_ranks_learn_the_prompts_of_one_process_from_each_image_once(tmp_path):
    spawn(_learn, ((0, 2, 4), (1, 3, 0)), str(tmp_path))  # a sampler repeats image 0 to make the parts equal
    (first, history), (second, _) = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert torch.equal(first, second) and history["pairs"] == [2, 3, 2]
    alone = build()
    options = {"epochs": 3, "lr": 0.02, "batch_size": 4, "progress": False, "work_dir": tmp_path / "alone"}
    learn_background_prompts(alone, _walk(range(5)), **options)
    torch.testing.assert_close(first, alone.prompts.vectors.detach(), atol=1e-5, rtol=0)
    assert torch.equal(BackgroundPrompts.load(tmp_path / "prompts.safetensors").vectors, first)
    assert not (tmp_path / "work").exists()


def _learn_apart(rank, parts, out) -> None:
    """As on two machines, each with a folder of its own."""
    distributed._CHUNK_BYTES = 100  # several chunks of each file
    options = {"epochs": 3, "lr": 0.02, "batch_size": 4, "progress": False, "work_dir": f"{out}/work{rank}"}
    regularizer = build()
    start = copy.deepcopy(regularizer.prompts.state_dict())
    inner = regularizer.prompt_losses_of

    def interrupted(*_):
        raise KeyboardInterrupt

    regularizer.prompt_losses_of = interrupted
    with pytest.raises(KeyboardInterrupt):  # after the walk
        learn_background_prompts(regularizer, _walk(parts[rank]), **options)
    regularizer.prompt_losses_of = inner
    left = {path.name: path.read_bytes() for path in Path(out, f"work{rank}").iterdir()}
    dist.barrier()
    if rank == 1:  # one machine's copy is lost: it comes again from what the other has, and is not encoded again
        next(Path(out, "work1").glob("features.part-0-*.bin")).unlink()
    dist.barrier()
    calls, inner = [], regularizer.pair_features
    regularizer.pair_features = lambda *batch: (calls.append(1), inner(*batch))[1]
    regularizer.prompts.load_state_dict(start)
    history = learn_background_prompts(regularizer, _walk(parts[rank]), **options)
    torch.save((regularizer.prompts.vectors.detach(), history.pairs, left, len(calls)), f"{out}/{rank}.pt")
    memory = build()
    learn_background_prompts(memory, _walk(parts[rank]), **{**options, "work_dir": None})
    torch.save((memory.prompts.vectors.detach(), distributed.gather_rows(_rows(rank))), f"{out}/memory{rank}.pt")


def _rows(rank) -> torch.Tensor:
    """33 rows of float32, and 70 of float16."""
    return torch.arange(231 + 259 * rank).view(-1, 7).to(torch.float16 if rank else torch.float32)


@pytest.mark.filterwarnings("ignore:these prompts were learned already")
def test_ranks_of_several_machines_send_each_other_their_features(tmp_path):
    spawn(_learn_apart, ((0, 2, 4), (1, 3, 0)), str(tmp_path))
    loaded = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    parts = [{name: data for name, data in left.items() if ".part-" in name} for _, _, left, _ in loaded]
    assert parts[0] == parts[1] and len(parts[0]) == 4
    assert ["state.pt" in left for _, _, left, _ in loaded] == [False, False]
    options = {"epochs": 3, "lr": 0.02, "batch_size": 4, "progress": False}
    alone, memory = build(), build()
    learn_background_prompts(alone, _walk(range(5)), work_dir=tmp_path / "alone", **options)
    learn_background_prompts(memory, _walk(range(5)), **options)
    for rank, (vectors, pairs, _, encoded) in enumerate(loaded):
        assert pairs == [2, 3, 2] and encoded == 0
        torch.testing.assert_close(vectors, alone.prompts.vectors.detach(), atol=1e-5, rtol=0)
        assert not (tmp_path / f"work{rank}").exists()
        vectors, rows = torch.load(tmp_path / f"memory{rank}.pt")
        torch.testing.assert_close(vectors, memory.prompts.vectors.detach(), atol=1e-5, rtol=0)
        assert torch.equal(rows, torch.cat([_rows(0), _rows(1).float()]))


def _fail(rank, out) -> None:
    try:
        learn_background_prompts(build(), [None] if rank else _walk([0]), epochs=1, progress=False)
    except (RuntimeError, TypeError) as error:
        torch.save(str(error), f"{out}/{rank}.pt")
    if rank == 0:
        Path(out, "work").mkdir()
        Path(out, "work", "features.pt").write_text("damaged")
    dist.barrier()
    with pytest.raises(ValueError, match=r"features.pt is damaged"):  # on both: the other would wait for ever
        learn_background_prompts(build(), _walk([0]), epochs=1, progress=False, work_dir=f"{out}/work")


@pytest.mark.filterwarnings("ignore:these prompts were learned already")
def test_a_rank_that_fails_tells_the_others(tmp_path):
    spawn(_fail, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert "another rank could not walk its data: TypeError" in first and "expected pairs" in second


class SigmoidCams(Cams):
    def forward(self, images):
        return self.layer(images).sigmoid()


def _learn_with_hosts(rank, parts, out) -> None:
    images, labels = batch()
    model = torch.nn.parallel.DistributedDataParallel(SigmoidCams())  # whose ranks have other numbers of batches
    loader = [(images[i : i + 1], labels[i : i + 1], [f"image {i}"]) for i in parts[rank]]
    options = {"epochs": 3, "lr": 0.02, "batch_size": 4, "progress": False}
    wrap(model, build(), "sigmoid").learn_prompts(loader, f"{out}/wrap.safetensors", **options)
    host = object.__new__(clims.Training)  # what its patch calls, without CLIMS's own options
    host.args, host.adapter = SimpleNamespace(semples_prompts=f"{out}/clims.safetensors"), clims.ClimsAdapter(build())
    packs = [{"img": image, "label": label, "name": name} for image, label, name in loader]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clims.host_options, "learning_options", lambda args: options)
        host.learn_prompts(model, packs)


@pytest.mark.filterwarnings("ignore:these prompts were learned already", "ignore:.b. did not go well")
def test_hosts_learn_prompts_on_several_ranks(tmp_path):
    spawn(_learn_with_hosts, ((0, 2, 4), (1, 3, 0, 2)), str(tmp_path))
    images, labels = batch()
    alone = wrap(SigmoidCams(), build(), "sigmoid")
    options = {"epochs": 3, "lr": 0.02, "batch_size": 4, "progress": False}
    alone.learn_prompts([(images, labels, [f"image {i}" for i in range(5)])], tmp_path / "one.safetensors", **options)
    one, *others = (BackgroundPrompts.load(tmp_path / f"{name}.safetensors") for name in ("one", "wrap", "clims"))
    for other in others:
        torch.testing.assert_close(other.vectors, one.vectors, atol=1e-5, rtol=0)
