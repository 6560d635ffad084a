import contextlib
import inspect
import json

import pytest
import torch
import torchvision
from conftest import build_frozen
from torchvision.models.resnet import Bottleneck, ResNet

from semples_plugin import BackgroundPrompts, ClassMasks, SemPLeSRegularizer
from semples_plugin.adapters.weaktr import FineCam
from semples_plugin.bench import host_networks, hosts, run, steps, tables, tasks, whole, worker
from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE, PlainSteps
from semples_plugin.cli import app as cli_app
from semples_plugin.clip import fast_towers
from semples_plugin.regularizer import sum_of
from semples_plugin.utils.checks import CheckSchedule

SPEC = {
    "clip": "small",
    "device": "cpu",
    "precision": "fp32",
    "classes": 3,
    "length": 4,
    "max_pairs": None,
    "part": None,
    "seconds": 0,
}


@pytest.fixture
def scene():
    clip = build_frozen()
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=1.0)
    prompts.learned = True
    regularizer = SemPLeSRegularizer(clip, ["a", "b", "c"], prompts=prompts, input_mean=None, input_std=None)
    maps = torch.rand(4, 14, 14, requires_grad=True)
    return (
        regularizer,
        torch.randn(4, 3, 32, 32),
        ClassMasks.from_pairs(maps, torch.arange(4), torch.tensor([0, 1, 2, 1])),
    )


@pytest.mark.parametrize("waste", [[], *[[name] for name in REFINEMENT_WASTE], list(REFINEMENT_WASTE)])
def test_a_plain_refinement_step_is_the_same_step(scene, waste):
    regularizer, images, masks = scene
    plain = PlainSteps(regularizer, waste).refinement(images, masks)
    (expected,) = torch.autograd.grad(plain, masks.maps)
    ours = sum_of(regularizer(images, masks))
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, masks.maps)[0], expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("waste", [[], *[[name] for name in PROMPT_WASTE], list(PROMPT_WASTE)])
def test_a_plain_prompt_step_is_the_same_step(scene, waste):
    regularizer, images, masks = scene
    vectors = regularizer.prompts.vectors
    features = regularizer.background_features(images, masks)
    plain = PlainSteps(regularizer, waste).prompts(images, masks, features)
    (expected,) = torch.autograd.grad(plain, vectors)
    ours = sum_of(regularizer.prompt_losses_of(features, masks.class_index))
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, vectors)[0], expected, atol=1e-7, rtol=1e-5)


def test_waste_costs_operations(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    flops = {}
    for step, waste in (("refinement", REFINEMENT_WASTE), ("prompts", PROMPT_WASTE)):
        for name, names in {"ours": None, "none": [], "all": list(waste)}.items():
            row = worker.measure({**SPEC, "step": step, "pairs": 4, "waste": names})
            flops[step, name] = row["flops"]
            assert row["seconds"] > 0 and row["memory"] is not None
        assert flops[step, "ours"] == flops[step, "none"] < flops[step, "all"] / 2
    assert worker.measure({**SPEC, "step": "walk", "pairs": 4, "waste": None})["flops"] > 0
    # Both encode two views; a step goes backward, too, where a fused attention counts for more than forward.
    walk = worker.measure({**SPEC, "step": "walk", "pairs": 4, "waste": None})["flops"]
    assert 2 * walk <= flops["refinement", "ours"] < 3 * walk


def fake_rows(groups, advance=None):
    """A worker's rows: a second for each piece of waste and one more, and half of it for what is a host's own step."""
    for group in groups:
        rows = {}
        for name, task in group.items():
            seconds = 1.0 + len(task.get("waste") or []) + (task.get("without") == "attention")
            if task["step"] == "host":
                seconds = 2.0 if task["stage"] == "own" else 3.0
            rows[name] = {"seconds": seconds, "memory": 1e9 * seconds, "flops": 1e11}
            if task["step"] == "matmul":
                rows[name] = {"peak": 1e12}
            if "compile" in task:
                rows[name] = {"seconds": 0.5, "memory": 1e9, "flops": None, "first": 40.0}
                if task["pairs"] == 16:
                    rows[name] = {"failed": "no | compiler"}
            if task.get("without") == "batch norms":
                rows[name] = {"absent": True}
            if task.get("pairs") == 96 and task["waste"]:
                assert task["part"] == 24
                rows[name] = {}  # out of memory
        yield rows


def test_the_tables(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "_in_a_process", fake_rows)
    results = run.run_bench(tmp_path / "bench.json", progress=False)
    assert json.loads((tmp_path / "bench.json").read_text()) == results
    run.run_bench(tmp_path / "bench.json", progress=False)
    assert json.loads((tmp_path / "bench.json.before").read_text()) == results
    text = capsys.readouterr().out
    assert f"Earlier figures: {tmp_path}/bench.json.before\n" in text
    assert "| 6 | 1 | 10 | 10 | 1 | 10 | 0.1 | 1 | 1 | 0.1 | 10 % |" in text
    assert "| 96 | 1 | - | - | 1 | in parts of 24 | - |" in text
    assert f"| {REFINEMENT_WASTE['weight gradients']} | 9 | 10 % | 9 | 10 % |" in text
    assert "| minutes | 120 | 944 | 7.9 |" in text  # 118 walked steps and 60 x 118 of 1 s, beside 60 x 118 of 8 s
    assert f"| {tasks.FAST_PATHS['attention']} | 2 | 50 % | 2 | 50 % |  |" in text
    assert f"| {tasks.FAST_PATHS['patches']} | 1 | 0 % | 1 | 0 % | below 3 %: not to be used here |" in text
    assert tasks.FAST_PATHS["batch norms"] not in text  # as this CLIP has none
    assert "| values never checked | 1 | 1 | 1 | 1 | - |" in text
    assert "| `max_pairs=4` | 1 | 1 | 1 | 1 | - |" in text and "max_pairs=8" not in text  # 6 pairs are fewer
    assert "| `regularizer.compile()` | 0.5 | 0.5 | 1 | 1 | 40 |" in text and "reduce-overhead" not in text
    assert "host" not in text


def test_parts_are_measured_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "_in_a_process", fake_rows)
    results = run.run_bench(tmp_path / "bench.json", hosts=["weaktr", "clims"], batch=3, size=64, progress=False)
    assert list(results["measured"]) == [
        *(f"host clims {stage}" for stage in ("own", "a", "c", "refine")),
        *(f"host weaktr {stage}" for stage in ("own", "a", "c")),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert "| clims, its own step: 3 images of 64, 4 pairs | 2 |  | 2 |  |" in lines
    assert "| weaktr, with (c) | 3 | 1.5 | 3 | 1.5 |" in lines
    only = run.run_bench(tmp_path / "bench.json", only=["prompts", "modes"], progress=False)
    modes = ["as it is", "checked", "unchecked", "parts of 2", "parts of 4", "auto"]
    assert list(only["measured"])[:6] == [f"modes 6 {mode}" for mode in modes]
    assert list(only["measured"])[6:8] == ["compiled 6 eager", "compiled 6 compiled"]
    assert list(only["measured"])[8:] == ["prompts ours", "walk", "prompts without 0"]
    assert "| refinement step" not in capsys.readouterr().out


def test_numbers_of_pairs_are_those_of_all_parts_that_go_by_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "_in_a_process", fake_rows)
    chosen = run.run_bench(tmp_path / "b.json", only=["ablation", "modes", "prompts"], pairs=[16, 3], progress=False)
    counts = {tuple(name.split()[:2]) for name in chosen["measured"] if name[0] in "acm"}
    assert counts == {(part, count) for part in ("ablation", "modes", "compiled") for count in ("16", "3")}
    assert {"modes 16 parts of 8", "modes 3 parts of 2"} <= chosen["measured"].keys()
    assert not {"modes 16 parts of 16", "modes 3 parts of 4"} & chosen["measured"].keys()
    text = capsys.readouterr().out
    assert text.count("| (c), 16 pairs") == text.count("| (c), 3 pairs") == 3 and "| (c), 6 pairs" not in text
    assert "| `regularizer.compile()`: no / compiler | - | - | - | - | - |" in text
    words = "pairs: expected one of the parts that go by them, refinement, ablation, modes; got savings, host alone"
    with pytest.raises(ValueError, match=words):
        run.run_bench(tmp_path / "b.json", only=["savings", "host"], pairs=[6], progress=False)


def test_a_gpu_measures_cuda_graphs_as_well():
    groups = tasks.groups_of(["modes"], tasks.pairs_of_parts(["modes"], None, "cuda"), "cuda", {})
    assert [next(iter(group)) for group in groups] == [
        *(
            f"{part} {count} {first}"
            for part, first in (("modes", "as it is"), ("compiled", "eager"))
            for count in (6, 96)
        )
    ]
    assert groups[-1]["compiled 96 graphs"]["compile"] == {"mode": "reduce-overhead"}


def test_the_bar_moves_within_a_group(monkeypatch, tmp_path):
    class Bar:
        def __init__(self, total, **options):
            self.n, self.total, self.seen = 0, total, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, rows):
            self.n += rows
            self.seen.append(self.n)

    def steps_of(command, stdout, stderr, encoding):
        groups = json.loads(command[-1])
        lines = [f"{tasks.PROGRESS}0.5\n"] * 3 + [json.dumps(next(fake_rows(groups)))]
        return FakeProcess(lines)

    class FakeProcess(contextlib.nullcontext):
        def __init__(self, lines):
            super().__init__(self)
            self.stdout = lines

        def wait(self):
            return 0

    bars = []
    monkeypatch.setattr(run, "tqdm", Bar)
    monkeypatch.setattr(run.subprocess, "Popen", steps_of)
    run.run_bench(tmp_path / "bench.json", only=["ablation", "modes"])
    (bar,) = bars
    assert bar.total == 6 + 6 + 2
    assert bar.seen == [0.5, 1, 1.5, 6, 6.5, 7, 7.5, 12, 12.5, 13, 13.5, 14]


def test_an_interrupt_of_the_command_alone_ends_the_worker_too(monkeypatch):
    ended = []

    class Started:
        stdout = property(lambda self: interrupted())

        def kill(self):
            ended.append(self)

    def interrupted():
        yield f"{tasks.PROGRESS}0.5\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(run.subprocess, "Popen", lambda *args, **options: contextlib.nullcontext(Started()))
    with pytest.raises(KeyboardInterrupt):
        list(run._in_a_process([{"a": {}}], lambda done: None))
    assert len(ended) == 1


def test_a_worker_tells_what_it_has_measured_of_its_rows(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    common = {**SPEC, "step": "refinement", "pairs": 2, "waste": None}
    told = []
    (rows,) = worker.run_groups([{name: {**common, "seconds": 100} for name in "ab"}], told.append)
    assert told[:2] == [0.5, 0.5] and len(told) == 2 + 2 * 20 and sum(told) == pytest.approx(len(rows))


@pytest.mark.filterwarnings("ignore:refinement with prompts")
def test_a_compiled_step_is_measured_beside_others_and_says_why_it_is_not(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    common = {**SPEC, "step": "refinement", "pairs": 3, "waste": None}

    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler\nfound")

    group = {
        "eager": common,
        "compiled": {**common, "compile": {"backend": "aot_eager"}},
        "broken": {**common, "compile": {"backend": broken}},
    }
    rows = worker.measure_in_turns(group)
    assert rows["compiled"]["first"] > 3 * rows["compiled"]["seconds"] > 0  # it makes the graph
    assert rows["compiled"]["flops"] is None and rows["eager"]["flops"] > 0
    assert "No working C++ compiler found" in rows["broken"]["failed"] and "seconds" not in rows["broken"]


def test_figures_are_written_as_they_come(monkeypatch, tmp_path):
    def some(groups, advance):
        (group,) = groups
        if "modes 6 as it is" in group:
            raise KeyboardInterrupt
        yield from fake_rows(groups)

    monkeypatch.setattr(run, "_in_a_process", some)
    with pytest.raises(KeyboardInterrupt):
        run.run_bench(tmp_path / "bench.json", only=["refinement", "modes"], pairs=[6], progress=False)
    written = json.loads((tmp_path / "bench.json").read_text())["measured"]
    assert list(written) == ["matmul", "refinement 6 ours", "refinement 6 in parts", "refinement 6 plain"]


def test_a_gpus_groups_share_a_process_that_may_die(monkeypatch):
    seen = []

    def dies(groups, advance):
        seen.append(len(groups))
        yield {"first": {}}
        if len(groups) == 3:
            yield {"second": {}}  # what the process was about when it died

    monkeypatch.setattr(run, "_in_a_process", dies)
    groups = [{name: {}} for name in ("first", "second", "third")]
    assert len(list(run._measure(groups, "cuda", bool))) == 3 and seen == [3, 1]
    seen.clear()
    assert len(list(run._measure(groups, "cpu", bool))) == 3 and seen == [1, 1, 1]


def test_steps_of_a_group_take_turns_and_share_a_clip(monkeypatch):
    built, order = [], []
    monkeypatch.setattr(steps, "build", lambda *key: built.append(key) or build_frozen())
    seconds_of = worker.seconds_of
    monkeypatch.setattr(worker, "seconds_of", lambda step, device: order.append(step) or seconds_of(step, device))
    group = {name: {**SPEC, "seconds": 100, "step": "refinement", "pairs": 2, "waste": None} for name in "ab"}
    assert set(worker.measure_in_turns(group)) == {"a", "b"}
    repeats = order[6:]  # after a warm-up, one for operations and one for memory of each
    assert len(built) == 1 and repeats[0] is not repeats[1] and repeats[:2] * 20 == repeats


@pytest.mark.parametrize(("checks", "refused"), [(True, True), (False, False), (None, True)])
def test_a_mode_decides_whether_values_are_checked(monkeypatch, checks, refused):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    monkeypatch.setattr(steps, "make_batch", lambda *_: _bad_batch())
    step, _ = steps.prepare({**SPEC, "step": "refinement", "pairs": 1, "waste": None, "checks": checks})
    if refused:
        with pytest.raises(ValueError, match="NaN"):
            step()
    else:
        step()


@pytest.mark.parametrize("path", ["last block", "attention", "patches"])
def test_a_step_without_a_fast_path_is_the_same_step(monkeypatch, path):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    spec = {**SPEC, "step": "refinement", "pairs": 3, "waste": None}
    (fast, (maps, *_)), (slow, (slow_maps, *_)) = (steps.prepare(s) for s in (spec, {**spec, "without": path}))
    seen = []
    own = fast_towers.uses
    monkeypatch.setattr(fast_towers, "uses", lambda *asked: seen.append((asked[0], own(*asked))) or own(*asked))
    slow().backward()
    assert dict(seen) == {**dict.fromkeys(("last block", "attention", "patches"), True), path: False}
    fast().backward()
    assert (path, True) in seen
    torch.testing.assert_close(slow_maps.grad, maps.grad, atol=1e-7, rtol=1e-4)


def test_only_what_a_clip_has_can_be_taken_away(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    common = {**SPEC, "step": "refinement", "pairs": 1, "waste": None}
    group = {path: {**common, "without": path} for path in tasks.FAST_PATHS}
    rows = worker.measure_in_turns(group)
    absent = {path for path, row in rows.items() if row == {"absent": True}}
    assert absent == {"activations", "batch norms"}  # the small CLIP has GELU and a vision transformer
    assert set(tasks.FAST_PATHS) == set(fast_towers.PATHS)
    monkeypatch.setitem(fast_towers.PATHS, "patches", frozenset({"cuda"}))
    assert worker.measure_in_turns({"": group["patches"]}) == {"": {"absent": True}}
    assert tables.verdict("patches", {}, {}, "cpu") == "not used here"


def _bad_batch():
    images = torch.full((1, 3, 32, 32), torch.nan)
    return images, ClassMasks.from_pairs(torch.rand(1, 4, 4, requires_grad=True), torch.tensor([0]), torch.tensor([1]))


def test_a_mode_without_checks_leaves_the_schedule_alone(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    own = CheckSchedule.is_due
    step, _ = steps.prepare({**SPEC, "step": "refinement", "pairs": 1, "waste": None, "checks": False})
    step()
    assert CheckSchedule.is_due is own


def small_resnet50(weights):
    assert weights is None
    return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4)


@pytest.mark.filterwarnings("ignore::UserWarning:semples_plugin")  # random networks make flat masks
@pytest.mark.parametrize("host", hosts.HOSTS)
def test_a_hosts_step_with_semples_pulls_at_the_host_alone(monkeypatch, host):
    monkeypatch.setattr(torchvision.models, "resnet50", small_resnet50)
    spec = {**SPEC, "host": host, **hosts.settings_of(host, "cpu", 2, 32, 1.5)}
    images, labels = hosts.make_batch(spec, torch.device("cpu"))
    assert images.shape == (2, 3, 32, 32) and labels.sum(1).tolist() == [2, 1]
    gradients, losses = {}, {}
    for stage in hosts.stages_of(host):
        torch.manual_seed(0)
        clip, own_clip = build_frozen(), build_frozen(seed=1)
        step = hosts.host_step({**spec, "stage": stage}, clip, lambda precision, own_clip=own_clip: own_clip)
        built = inspect.getclosurevars(step).nonlocals["host"]
        losses[stage] = _loss_of(step, monkeypatch)
        weights = [weight for weight in built.network.parameters() if weight.requires_grad]
        gradients[stage] = torch.cat([weight.grad.flatten() for weight in weights])
        assert all(weight.grad is None for weight in clip.model.parameters())
        assert any(weight.grad is not None for weight in own_clip.model.parameters()) == (host == "clims")
    assert len({round(loss, 4) for loss in losses.values()}) == len(losses), losses  # each stage adds something
    assert all(not torch.equal(gradients["own"], gradients[stage]) for stage in losses if stage != "own")


def _loss_of(step, monkeypatch) -> float:
    """The loss that a host's step goes backward from."""
    losses = []
    backward = torch.Tensor.backward
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss.item()) or backward(loss))
        step()
    (loss,) = losses
    return loss


def test_hosts_have_their_usual_size():
    from timm import create_model

    resnet = host_networks.ResNetCams(20)
    torchvisions, its_head, ours = 25_557_032, 2049 * 1000, 2048 * 20
    assert sum(p.numel() for p in resnet.parameters()) == torchvisions - its_head + ours
    assert resnet(torch.zeros(1, 3, 64, 96)).shape == (1, 20, 4, 6)
    assert not any(p.requires_grad for module in resnet.features[:2] for p in module.parameters())
    weaktr = host_networks.WeakTrNetwork(20, 224)
    deit = create_model("deit_small_patch16_224")
    assert _sizes(weaktr.blocks) == _sizes(deit.blocks)
    assert [output.shape for output in weaktr.eval()(torch.zeros(1, 3, 224, 224))] == [(1, 20)] * 3


def _sizes(module) -> list[int]:
    return sorted(parameter.numel() for parameter in module.parameters())


def test_weaktrs_fine_cam_is_what_its_own_loss_is_of():
    network = host_networks.WeakTrNetwork(3, 64, width=64, depth=4, heads=4).eval()
    with FineCam(network) as fine:
        _, _, own = network(torch.randn(2, 3, 64, 64))
        torch.testing.assert_close(fine().mean((2, 3)), own)


def test_the_command_offers_all_parts_and_hosts():
    parser = cli_app.build_parser()
    (commands,) = (action for action in parser._actions if action.dest == "command")
    options = {action.dest: action for action in commands.choices["bench"]._actions}
    assert options["only"].choices == tuple(tasks.PARTS) and options["host"].choices == tuple(hosts.HOSTS)
    assert options["pairs_per_image"].default == hosts.PAIRS_PER_IMAGE


@pytest.mark.filterwarnings("ignore::UserWarning:semples_plugin")  # of a training that isn't one
def test_all_of_b_and_a_profile(monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "build", lambda *_: build_frozen())
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    learned = whole.learn({**SPEC, "pairs": 7, "epochs": 2, "batch": 3})
    assert 0 < learned["walk"] < learned["seconds"]
    profile = whole.profile({**SPEC, "pairs": 2, "waste": None, "trace": str(tmp_path / "trace.json")})
    names = [name for name, _, _ in profile["top"]]
    assert profile["busy"] is None and "aten::addmm" in names and any("backward" in name for name in names)
    assert [seconds for _, seconds, _ in profile["top"]] == sorted((s for _, s, _ in profile["top"]), reverse=True)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"pairs": [0]}, "pairs: expected integers from 1 up"),
        ({"pairs": [6, 6]}, "pairs: expected .* none twice, got 6, 6"),
        ({"pairs": [1.5]}, "pairs: expected integers"),
        ({"classes": 0}, "classes: expected integers from 1 up"),
        ({"length": 0}, "length: expected integers from 1 up"),
        ({"seconds": -1}, "seconds: expected a number from 0 up, got -1"),
        ({"seconds": float("nan")}, "seconds: expected a number from 0 up, got nan"),
        ({"seconds": float("inf")}, "seconds: expected a number from 0 up, got inf"),
        ({"out": "."}, "expected a file to write"),
        ({"only": ["speed"]}, "only: expected some of refinement, .*, got 'speed'"),
        ({"hosts": ["mct"]}, "hosts: expected some of clims, weaktr, resnet50, got 'mct'"),
        ({"batch": 0}, "batch: expected integers from 1 up"),
        ({"size": 100}, "size: expected a multiple of 16, got 100"),
        ({"pairs_per_image": 0.5}, "pairs_per_image: expected .* of at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_any_work(monkeypatch, tmp_path, wrong, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_in_a_process", lambda *_: pytest.fail("measured"))
    with pytest.raises((OSError, ValueError), match=words):
        run.run_bench(**{"out": tmp_path / "bench.json", "progress": False, **wrong})


def test_a_process_gives_rows_until_it_names_an_unknown_clip():
    unknown = {**SPEC, "clip": "ViT-Z", "step": "refinement", "pairs": 1, "waste": None}
    rows = run._in_a_process([{"matmul": {**SPEC, "step": "matmul"}}, {"": unknown}], bool)
    assert next(rows)["matmul"]["peak"] > 1e8
    with pytest.raises(ValueError, match=r"ViT-Z can't be measured: .*ViT-Z"):
        next(rows)


def test_a_plain_step_in_parts_is_the_whole(monkeypatch):
    monkeypatch.setattr(steps, "build", lambda *_: build_frozen())
    gradients = []
    for part in (None, 2):
        spec = {**SPEC, "step": "refinement", "pairs": 5, "waste": list(REFINEMENT_WASTE), "part": part}
        step, (maps, *others) = steps.prepare(spec)
        step().backward()
        gradients.append([maps.grad, next(weight.grad for weight in others if weight.shape == (64, 3, 16, 16))])
    for at_once, parts in zip(*gradients, strict=True):  # of the masks, and of CLIP's first weights, which nobody uses
        torch.testing.assert_close(parts, at_once, atol=1e-7, rtol=1e-4)
