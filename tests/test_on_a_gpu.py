"""`make gpu` without a GPU: what a part says, what it does when one fails, and a run of the smallest of it."""

import json
import time
from importlib import metadata
from pathlib import Path

import on_a_gpu
import pytest
import torch
from on_a_gpu import Outcome, RanOverError, Settings
from packaging.requirements import Requirement
from test_bench import fake_rows

from semples_plugin.bench import run, tasks

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_there_is_a_sentence_and_an_error(capsys, tmp_path):
    assert on_a_gpu.main(["--out", str(tmp_path / "out")]) == 1
    assert "There is no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        on_a_gpu.main(["--device", "cpu", "--out", str(tmp_path / "out")])


def test_a_part_that_fails_or_runs_over_is_a_row_and_the_others_run(monkeypatch, tmp_path):
    def good(settings, outcome, limit):
        outcome.rows.append(("a step", "1 s", "below 2 s"))

    def bad(settings, outcome, limit):
        outcome.rows.append(("half of it", "2 s", ""))
        raise KeyError("a | b")

    def slow(settings, outcome, limit):
        time.sleep(0.3)
        raise RanOverError("ended after 0.2 s")

    parts = {"bad": (bad, 5), "slow": (slow, 0.2), "good": (good, 5), "late": (good, 5)}
    monkeypatch.setattr(on_a_gpu, "PARTS", parts)
    outcomes = on_a_gpu.run_parts(Settings(tmp_path, "cpu"), ["bad", "slow", "good"])
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "ran over", "done"]
    table = (tmp_path / "gpu.md").read_text().splitlines()
    assert table[2:] == [
        "| part | what | figure | aim |",
        "|---|---|---|---|",
        "| bad | **failed** | KeyError: 'a / b' | |",
        "| bad | half of it | 2 s |  |",
        "| slow | **ran over** | ended after 0.2 s | |",
        "| good | a step | 1 s | below 2 s |",
    ]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["parts"]["good"]["rows"] == [["a step", "1 s", "below 2 s"]]
    assert 0.3 < written["parts"]["slow"]["seconds"] < written["seconds"]
    late = on_a_gpu.run_parts(Settings(tmp_path, "cpu"), ["slow", "late"], total=1.2)["late"]
    assert (late.status, late.message) == ("ran over", "no time was left of 1.2 s")


def test_a_part_may_take_what_those_before_it_left(monkeypatch, tmp_path):
    limits = {}

    def part(name, budget):
        return lambda settings, outcome, limit: limits.update({name: limit}), budget

    monkeypatch.setattr(
        on_a_gpu, "PARTS", {name: part(name, budget) for name, budget in {"a": 10, "b": 20, "c": 30}.items()}
    )
    on_a_gpu.run_parts(Settings(tmp_path, "cpu"), "abc", total=60)
    assert [round(limit) for limit in limits.values()] == [10, 30, 60]
    on_a_gpu.run_parts(Settings(tmp_path, "cpu", patience=2.0), "ac", total=50)
    assert [round(limits[name]) for name in "ac"] == [40, 100]
    on_a_gpu.run_parts(Settings(tmp_path, "cpu"), "abc", total=25)  # less than all of them together
    assert [round(limit) for limit in limits.values()] == [10, 20, 25]


def test_parts_fit_into_ten_minutes():
    assert sum(budget for _, budget in on_a_gpu.PARTS.values()) <= on_a_gpu.TOTAL == 600


def test_a_command_that_runs_over_is_ended_with_its_children(tmp_path):
    with pytest.raises(RanOverError, match="ended after 1 s"):
        on_a_gpu._call(["sh", "-c", "sleep 60 & echo $!; wait"], 1, tmp_path / "log")
    child = int((tmp_path / "log").read_text())
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives")


def bench_that_writes(monkeypatch, part, status=0):
    """`semples bench` without measuring; it ends with `status` after its figures were written."""

    def call(command, limit, log):
        out = Path(command[command.index("--out") + 1])
        log.write_text("words\nout of patience\n")
        with monkeypatch.context() as patch:
            patch.setattr(run, "_in_a_process", fake_rows)
            hosts = None if part != "host" else command[command.index("--host") + 1 : command.index("--host") + 4]
            pairs = [6, 16] if part in tasks.PAIRS else None
            run.run_bench(out, only=[part], pairs=pairs, hosts=hosts, progress=False)
        return status

    monkeypatch.setattr(on_a_gpu, "_call", call)


ROWS = {
    "refinement": (
        "step of (c), 6 pairs",
        "1e+03 ms, 1 GB, a plain step takes 10.0 times as long, 10 % of the matmul peak",
        "above 40 %",
    ),
    "ablation": (
        "instead of attention's projections on a batch that torch turns around, 6 pairs",
        "50.0 % of the time and 50.0 % of the memory saved",
        "",
    ),
    "modes": ("step of (c), 16 pairs, `max_pairs=8`", "1 times the usual step", ""),
    "host": ("clims, with (c)", "3e+03 ms, 3 GB: 1.50 times its own step", "at most 1.5"),
    "savings": ("what each saving saves", "in savings.md", ""),
}


@pytest.mark.parametrize(("part", "row"), ROWS.items())
@pytest.mark.parametrize("status", [0, 1])
def test_rows_of_the_bench(monkeypatch, tmp_path, part, row, status):
    bench_that_writes(monkeypatch, part, status)
    outcome, settings = Outcome(), Settings(tmp_path, "cpu", pairs=(6, 16))
    if status:  # it failed after these figures were written
        with pytest.raises(on_a_gpu.PartFailedError, match=rf"out of patience \({part}.log\)"):
            on_a_gpu.PARTS[part][0](settings, outcome, 60)
    else:
        on_a_gpu.PARTS[part][0](settings, outcome, 60)
    assert row in outcome.rows
    assert not any("batch norms" in what for what, _, _ in outcome.rows)  # the CLIP has none
    assert outcome.figures["measured"]
    if part == "savings":
        assert "| gradients for CLIP's weights, which nobody uses | 9 | 10 % |" in (tmp_path / "savings.md").read_text()


def test_compiled_steps_are_told_apart_and_why_there_are_none(monkeypatch, tmp_path):
    bench_that_writes(monkeypatch, "modes")
    outcome = Outcome()
    on_a_gpu.run_modes(Settings(tmp_path, "cpu"), outcome, 60)
    compiled = "step of (c), 6 pairs, `regularizer.compile()`"
    assert (compiled, "0.5 times the usual step; the first step takes 40 s", "") in outcome.rows
    assert (compiled.replace("6", "16"), "no / compiler", "") in outcome.rows


def test_savings_that_ran_out_of_time_point_to_nothing_that_is_empty(monkeypatch, tmp_path):
    def call(command, limit, log):
        log.write_text("")
        raise RanOverError("ended after 60 s")

    monkeypatch.setattr(on_a_gpu, "_call", call)
    outcome = on_a_gpu.run_parts(Settings(tmp_path, "cpu"), ["savings"])["savings"]
    assert outcome.rows == [("what each saving saves", "out of time, nothing measured yet", "")]
    assert (outcome.status, outcome.message) == ("ran over", "ended after 60 s")
    assert not (tmp_path / "savings.md").exists()


REPORT = """<testsuites><testsuite>
<testcase name="test_a"/><testcase name="test_b"><{tag} message="needs two CUDA devices, has 1"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("tag", ["failure", "error", "skipped"])
def test_what_pytest_said(monkeypatch, tmp_path, tag):
    monkeypatch.setattr(on_a_gpu, "_call", lambda *_: (tmp_path / "tests.xml").write_text(REPORT.format(tag=tag)))
    outcome = Outcome()
    if tag == "skipped":
        on_a_gpu.run_tests(Settings(tmp_path), outcome, 60)
        assert outcome.rows == [("tests/test_gpu.py", "1 passed, 0 failed, 1 skipped", "none fails")]
    else:
        with pytest.raises(on_a_gpu.PartFailedError, match="1 passed, 1 failed, 0 skipped: test_b"):
            on_a_gpu.run_tests(Settings(tmp_path), outcome, 60)


def test_all_of_b_is_extended_from_the_epochs_that_were_run(monkeypatch, tmp_path):
    def call(command, limit, log):
        (group,) = json.loads(command[-1])
        assert {**group["learning"], "pairs": 24, "epochs": 2, "classes": 3} == group["learning"]
        log.write_text('a warning\n{"learning": {"seconds": 72.0, "walk": 12.0}}\n')
        return 0

    monkeypatch.setattr(on_a_gpu, "_call", call)
    outcome = Outcome()
    on_a_gpu.run_learning(Settings.quick(tmp_path, "cpu"), outcome, 60)
    figure = "2.2 minutes: 12 s encode 48 views, an epoch takes 30 s (2 were run)"
    assert outcome.rows == [("all of (b), 24 pairs, 4 epochs", figure, "below 10 minutes")]


def test_the_smallest_run(tmp_path, capsys):
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--only", "nccl", "profile"]
    assert on_a_gpu.main(arguments) == 0, capsys.readouterr().out
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["nccl"]["status"] == "skipped" and "needs" in parts["nccl"]["message"]
    assert "| nccl | **skipped** | needs" in (tmp_path / "gpu.md").read_text()
    assert any("backward" in name for name, _, _ in parts["profile"]["figures"]["top"])
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def wanted() -> dict[str, Requirement]:
    lines = (line.split(" #")[0].strip() for line in (ROOT / "requirements-gpu.txt").read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {_canonical(requirement.name): requirement for requirement in requirements}


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def test_requirements_of_a_bare_machine_are_complete():
    listed = wanted()
    assert {"open-clip-torch", "pytest"} <= set(listed) and not {"torch", "torchvision"} & set(listed)
    for text in metadata.requires("semples-plugin"):
        ours = Requirement(text)
        pin = listed.get(_canonical(ours.name))
        if pin is not None and ours.marker is None and str(pin.specifier).startswith("=="):
            assert ours.specifier.contains(str(pin.specifier).removeprefix("==")), text
    for name, requirement in listed.items():
        if not requirement.specifier.contains(metadata.version(name)):
            continue  # another version may need other packages
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert _canonical(needed.name) in {*listed, "torch", "torchvision"}, f"{name} needs {text}"
