"""Recipes: how one is run, stopped, continued and reported, with steps of milliseconds; and the real ones' data."""

import fcntl
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from semples_plugin.cli import main
from semples_plugin.cli.app import build_parser
from semples_plugin.recipes import book
from semples_plugin.recipes.common import HELP, data_check
from semples_plugin.recipes.jobs import Job, Record, describe_change, jobs_of, why_to_run
from semples_plugin.recipes.recipe import Figure, Recipe, Step, options_of, placeholders
from semples_plugin.recipes.small_clip import write_small_clip
from semples_plugin.recipes.small_lists import write_small_lists
from semples_plugin.recipes.voc_layout import write_voc_layout
from semples_plugin.recipes.yaml_config import write_yaml_config

WRITE = "import sys; from pathlib import Path; Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]) + chr(10))"
JUDGED = {
    "cams": {
        "miou": 0.5, "background": "constant", "chosen": 0.4, "split": "lists/train.txt", "images": 8,
        "chosen on these masks": True,
    }
}  # fmt: skip
TINY = Recipe(
    "tiny",
    "weaktr",
    "two files and a judgement",
    "Table 1",
    (
        Step("weights", "what only you can get", makes=("{voc}/weights.pt",), source="a form at example.org"),
        Step("lists", "for all seeds", f'python -c "{WRITE}" lists.txt {{size}}', "{shared}",
             makes=("{shared}/lists.txt",), once=True),
        Step("train", "of one seed", f'python -c "{WRITE}" {{out}}/model.pt {{seed}} {{size}}', "{shared}",
             needs=("{shared}/lists.txt", "{voc}/weights.pt"), makes=("{out}/model.pt",), hours=2.5),
        Step("judge", "the model", f'python -c "{WRITE}" {{out}}/eval.json x',
             "{shared}", needs=("{out}/model.pt",), makes=("{out}/eval.json",),
             figures=(Figure("CAMs", "+ SemPLeS", "Table 1", 68.7, file="{out}/eval.json", note="a note"),
                      Figure("network", "+ SemPLeS", "Table 2", 73.9, pattern=r"mIoU: ([\d.]+)"))),
    ),
    paths={"runs": "runs", "voc": "VOC2012"},
    values={"size": "--epochs 60"},
    miniature={"size": "--epochs 1"},
    help={"voc": "PASCAL VOC"},
)  # fmt: skip


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A recipe whose files are all there, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(book.RECIPES, "tiny", TINY)
    Path("VOC2012").mkdir()
    Path("VOC2012/weights.pt").write_text("weights")
    return tmp_path


def with_command(name: str, command: str, **changes) -> Recipe:
    """The tiny recipe with another command in one of its steps."""
    steps = [
        Step(**{**vars(step), "command": command, **changes}) if step.name == name else step for step in TINY.steps
    ]
    return Recipe(**{**vars(TINY), "steps": tuple(steps)})


def jobs(seeds: int = 1, miniature: bool = False):
    return jobs_of(book.RECIPES["tiny"], {}, seeds, miniature)


def printed_commands(text: str) -> list[list[str]]:
    """The words of each command that `show` prints."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith(("#", "mkdir"))]


def test_what_show_prints_is_what_run_executes(tiny, capfd):
    assert main(["recipe", "show", "tiny", "--seeds", "2"]) == 0
    printed = printed_commands(capfd.readouterr().out)
    assert main(["recipe", "run", "tiny", "--seeds", "2"]) == 0
    records = [job.read_record() for job in jobs(2) if job.words]
    assert [record.command for record in records] == printed and len(printed) == 5
    assert Path("runs/tiny/seed1/model.pt").read_text() == "1 --epochs 60\n"


def test_the_printed_commands_run_in_a_shell(tiny, capfd):
    main(["recipe", "show", "tiny"])
    script = capfd.readouterr().out
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    Path("runs/tiny/seed0").mkdir(parents=True)
    subprocess.run(["bash", "-e", "-c", script], check=True, env=environment)
    assert Path("runs/tiny/seed0/model.pt").read_text() == "0 --epochs 60\n"


def test_steps_can_be_chosen(tiny, capfd):
    main(["recipe", "show", "tiny", "--only", "judge", "lists"])
    assert [words[3].split("/")[-1] for words in printed_commands(capfd.readouterr().out)] == ["lists.txt", "eval.json"]
    main(["recipe", "show", "tiny", "--from", "train"])
    assert [words[3].split("/")[-1] for words in printed_commands(capfd.readouterr().out)] == ["model.pt", "eval.json"]


def test_a_second_run_does_nothing(tiny, capfd):
    main(["recipe", "run", "tiny"])
    before = [job.read_record() for job in jobs()]
    capfd.readouterr()
    assert main(["recipe", "run", "tiny"]) == 0
    assert [job.read_record() for job in jobs()] == before
    assert re.findall(r"\[\d/4\] (\S+): done", capfd.readouterr().out) == [
        "weights-seed0",
        "lists",
        "train-seed0",
        "judge-seed0",
    ]


@pytest.mark.parametrize("change", ["gone", "empty", "setting", "record", "before"])
def test_what_changed_runs_again_and_all_that_builds_on_it(tiny, change):
    main(["recipe", "run", "tiny"])
    model = Path("runs/tiny/seed0/model.pt")
    options = []
    if change == "gone":
        model.unlink()
    elif change == "empty":
        model.write_text("")
    elif change == "setting":
        options = ["--set", "size=--epochs 3"]
    elif change == "record":
        jobs()[2].record_file.write_text("{")
    else:
        Path("runs/tiny/lists.txt").unlink()
        assert main(["recipe", "run", "tiny", "--only", "lists"]) == 0
        assert why_to_run(jobs()[2], jobs()) == "lists ran again"
    before = jobs()[3].read_record().ended
    assert main(["recipe", "run", "tiny", *options]) == 0
    assert model.read_text() == ("0 --epochs 3\n" if options else "0 --epochs 60\n")
    assert jobs()[3].read_record().ended != before


def test_a_failure_stops_and_the_same_command_goes_on(tiny, monkeypatch, capfd):
    failing = with_command("train", 'python -c "import sys; print(12345); sys.exit(3)"')
    monkeypatch.setitem(book.RECIPES, "tiny", failing)
    assert main(["recipe", "run", "tiny"]) == 1
    text = capfd.readouterr().err
    assert "train-seed0 ended with exit status 3" in text and "`semples recipe run tiny` goes on from here" in text
    assert (
        f"cd {tiny}/runs/tiny && python -c" in text and "12345" in Path("runs/tiny/steps/train-seed0.log").read_text()
    )
    assert not Path("runs/tiny/seed0/eval.json").exists()
    monkeypatch.setitem(book.RECIPES, "tiny", TINY)
    assert main(["recipe", "run", "tiny"]) == 0 and Path("runs/tiny/seed0/eval.json").exists()


def test_options_that_a_host_asks_for_are_told_as_the_recipes_settings(tiny, monkeypatch, capfd):
    monkeypatch.setitem(book.RECIPES, "tiny", with_command("train", 'python -c "exit(1)" {device} --epochs {size}'))
    changes = {"values": {**TINY.values, "device": ""}, "help": {"device": HELP["device"], "size": "of the training"}}
    monkeypatch.setitem(book.RECIPES, "tiny", Recipe(**{**vars(book.RECIPES["tiny"]), **changes}))
    assert main(["recipe", "run", "tiny"]) == 1
    error = capfd.readouterr().err
    assert (
        "\n  device: options of `semples run`: --set device=--device=cpu " in error and "of the training" not in error
    )
    for recipe in book.RECIPES.values():  # the two of which hosts and CLIP's loader speak
        for step in recipe.steps if recipe.name != "tiny" else ():
            told = options_of(step, recipe)
            assert ("{device}" in step.command) == ("--set device=--device=cpu" in told.get("device", ""))
            assert ("{clip}" in step.command.split()) == ("pretrained" in told.get("clip", ""))


def test_a_step_that_makes_nothing_is_told(tiny, monkeypatch, capfd):
    monkeypatch.setitem(book.RECIPES, "tiny", with_command("train", 'python -c "0"'))
    assert main(["recipe", "run", "tiny"]) == 1
    assert f"made no {tiny}/runs/tiny/seed0/model.pt" in capfd.readouterr().err


SLOW = """import sys, time
from pathlib import Path
Path("left").write_text("half")
print("started", flush=True)
if "--resume" not in sys.argv:
    time.sleep(60)
Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
"""


def test_what_was_left_of_older_input_is_not_resumed(tiny, monkeypatch):
    failing = (
        f"""python -c "import sys; {WRITE.replace("sys.argv[1]", "'left'")}; sys.exit('--resume' not in sys.argv)" x"""
    )
    resume = ("{shared}/left", "--resume")
    monkeypatch.setitem(book.RECIPES, "tiny", with_command("train", failing, resume=resume, makes=("{shared}/left",)))
    assert main(["recipe", "run", "tiny"]) == 1
    Path("runs/tiny/lists.txt").unlink()
    assert main(["recipe", "run", "tiny"]) == 1  # the lists are new: it begins anew, and fails again
    assert Path("runs/tiny/left").read_text() == "\n"
    main(["recipe", "run", "tiny"])
    assert Path("runs/tiny/left").read_text() == "--resume\n"


def test_a_need_that_is_named_later_runs_nothing_again(tiny, monkeypatch):
    main(["recipe", "run", "tiny"])
    more = ("{out}/model.pt", "{shared}/lists.txt")
    monkeypatch.setitem(book.RECIPES, "tiny", with_command("judge", TINY.steps[3].command, needs=more))
    assert [why_to_run(job, jobs()) for job in jobs()] == [""] * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_loses_nothing_and_the_same_command_resumes(tiny, number):
    Path("slow.py").write_text(SLOW)
    slow = with_command(
        "train", "python {runs}/../slow.py {out}/model.pt", resume=("{shared}/left", "--resume {shared}/left")
    )
    Path("driver.py").write_text(DRIVER)
    Path("recipe.pkl").write_bytes(pickle.dumps(slow))
    process = subprocess.Popen([sys.executable, "driver.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "started\n":
            break
    process.send_signal(number)
    start = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 130 and "`semples recipe run tiny` goes on" in errors and time.monotonic() - start < 10
    assert not Path("runs/tiny/seed0/model.pt").exists()
    done = subprocess.run([sys.executable, "driver.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("runs/tiny/seed0/model.pt").read_text() == f"--resume {tiny}/runs/tiny/left"
    assert "lists: done" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_while_a_command_is_started_leaves_none_behind(tiny, monkeypatch, number):
    monkeypatch.setitem(book.RECIPES, "tiny", with_command("train", "sleep 60"))
    before, started = signal.getsignal(number), []

    class Interrupted(subprocess.Popen):
        def __init__(self, words, **options):
            super().__init__(words, **options)
            if words == ["sleep", "60"]:
                started.append(self)
                signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert main(["recipe", "run", "tiny"]) == 130
    assert started[0].wait(timeout=10) == -signal.SIGINT and jobs()[2].read_record().status == "interrupted"
    assert signal.getsignal(number) is before


KILLED = f"""python -c "import os, sys, signal; {WRITE}; os.kill(os.getppid(), signal.SIGKILL)" {{out}}/model.pt half"""
DRIVER = (
    "import pickle, sys\nfrom semples_plugin.cli import main\nfrom semples_plugin.recipes import book\n"
    "book.RECIPES['tiny'] = pickle.load(open('recipe.pkl', 'rb'))\nsys.exit(main(['recipe', 'run', 'tiny']))\n"
)


def test_a_run_that_was_killed_is_not_taken_for_the_one_before(tiny):
    main(["recipe", "run", "tiny"])
    Path("recipe.pkl").write_bytes(pickle.dumps(with_command("train", KILLED)))
    assert subprocess.run([sys.executable, "-c", DRIVER], capture_output=True).returncode == -signal.SIGKILL
    with Path("runs/tiny/steps/lock").open("w") as file:  # until its command has ended as well
        fcntl.flock(file, fcntl.LOCK_EX)
    assert Path("runs/tiny/seed0/model.pt").read_text() == "half\n"
    assert why_to_run(jobs()[2], jobs()) == "it was not finished"
    assert main(["recipe", "run", "tiny"]) == 0
    assert Path("runs/tiny/seed0/model.pt").read_text() == "0 --epochs 60\n"


def test_files_of_another_setting_are_set_aside_and_never_resumed(tiny, monkeypatch):
    monkeypatch.setitem(
        book.RECIPES, "tiny", with_command("train", TINY.steps[2].command, resume=("{out}/model.pt", "--resume"))
    )
    main(["recipe", "run", "tiny"])
    quiet = with_command("train", 'python -c "0" {size}', resume=("{out}/model.pt", "--resume"))
    monkeypatch.setitem(book.RECIPES, "tiny", quiet)
    assert main(["recipe", "run", "tiny"]) == 1  # nothing new was made, and the old one doesn't count
    assert Path("runs/tiny/seed0/model.pt.before").read_text() == "0 --epochs 60\n"
    assert main(["recipe", "run", "tiny"]) == 1
    assert jobs()[2].read_record().seconds < 5 and "--resume" not in Path("runs/tiny/steps/train-seed0.log").read_text()


FILL = "import sys; from pathlib import Path; p = Path('cams'); p.mkdir(exist_ok=True)"
FILL += "; (p / sys.argv[1]).write_text('x'); sys.exit('fails' in sys.argv)"


def test_folders_of_another_setting_are_set_aside_and_an_interrupted_run_goes_on_in_its_own(tiny, monkeypatch):
    def names(folder: str) -> list[str]:
        return sorted(path.name for path in Path("runs/tiny", folder).iterdir())

    def run(options: str, failing: bool = False) -> None:
        command = f'python -c "{FILL}" {options}'
        recipe = with_command("train", command, makes=("{shared}/cams",))
        monkeypatch.setitem(book.RECIPES, "tiny", recipe)
        assert main(["recipe", "run", "tiny", "--only", "lists", "train"]) == failing

    run("a")
    run("b")
    assert names("cams") == ["b"] and names("cams.before") == ["a"]
    run("c fails", failing=True)
    assert names("cams") == ["c"] and names("cams.before2") == ["b"]
    Path("runs/tiny/cams/half").write_text("x")
    run("c fails", failing=True)  # the same command fills what it left
    assert names("cams") == ["c", "half"] and not Path("runs/tiny/cams.before3").exists()
    Path("runs/tiny/lists.txt").unlink()  # its input is made anew
    run("c fails", failing=True)
    assert names("cams") == ["c"] and names("cams.before3") == ["c", "half"]


def test_nothing_that_was_set_aside_is_lost(tiny):
    for epochs in (1, 2, 3):
        main(["recipe", "run", "tiny", "--set", f"size=--epochs {epochs}"])
    texts = [Path(f"runs/tiny/seed0/model.pt{end}").read_text() for end in (".before", ".before2", "")]
    assert texts == [f"0 --epochs {epochs}\n" for epochs in (1, 2, 3)]


COPY = "import sys; from pathlib import Path; Path(sys.argv[2]).write_text(str(Path(sys.argv[1]).absolute()) + chr(10))"


@pytest.fixture
def moved(tiny, monkeypatch):
    """A recipe that ran, one of whose steps wrote the folder's path into a file, and the folder moved."""
    link = f'python -c "{COPY}" {{shared}}/lists.txt {{shared}}/link.txt'
    steps = [*TINY.steps, Step("link", "a path", link, "{shared}", makes=("{shared}/link.txt",), placed=True)]
    steps += [Step("use", "it", f'python -c "{WRITE}" {{out}}/used.txt --in={{shared}}/link.txt', "{shared}",
                   needs=("{shared}/link.txt",), makes=("{out}/used.txt",))]  # fmt: skip
    monkeypatch.setitem(book.RECIPES, "tiny", Recipe(**{**vars(TINY), "steps": tuple(steps)}))
    main(["recipe", "run", "tiny", "--set", "runs=runs"])
    Path("seeds/of/all").mkdir(parents=True)
    Path("runs").rename("seeds/of/all/runs.2")
    return tiny / "seeds/of/all/runs.2"


def test_a_folder_that_was_moved_counts_as_done_and_paths_in_it_are_made_anew(tiny, moved, capfd):
    command = ["recipe", "run", "tiny", "--set", "runs=seeds/of/all/runs.2"]
    before = {path: path.read_bytes() for path in (moved / "tiny/steps").glob("*.json")}
    capfd.readouterr()
    assert main(command) == 0
    said = capfd.readouterr().out
    assert re.findall(r"(\S+): done", said) == ["weights-seed0", "lists", "train-seed0", "judge-seed0", "use-seed0"]
    assert "link-seed0: a path (the folder was moved, and what it made holds paths)" in said
    assert (moved / "tiny/link.txt").read_text() == f"{moved}/tiny/lists.txt\n"
    assert not list(moved.rglob("*.before*"))
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == ["link-seed0.json"]
    assert main(command) == 0
    assert capfd.readouterr().out.count(": done") == 6


def test_a_report_of_a_folder_that_was_moved_has_its_figures(tiny, moved, capfd):
    (moved / "tiny/seed0/eval.json").write_text(json.dumps(JUDGED))
    main(["recipe", "report", "tiny", "--set", f"runs={moved}"])
    assert "50.0 (1 seed)" in capfd.readouterr().out


def test_a_folder_that_was_moved_runs_again_where_something_else_differs(tiny, moved, capfd):
    def reasons(*options: str) -> dict[str, str]:
        recipe = book.RECIPES["tiny"]
        given = dict(option.split("=", 1) for option in (f"runs={moved}", *options))
        all_jobs = jobs_of(recipe, given, 1, False)
        return {job.key: why for job in all_jobs if (why := why_to_run(job, all_jobs))}

    assert list(reasons()) == ["link-seed0"]
    assert "--epochs 60 became --epochs 61" in reasons("size=--epochs 61")["lists"]
    (moved / "tiny/seed0/model.pt").unlink()
    assert reasons()["train-seed0"] == f"{moved}/tiny/seed0/model.pt is gone"


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [("a.py --in=RUNS/x RUNS", "a.py --in=NEW/x NEW", True), ("a.py local-dir:RUNS/x", "a.py local-dir:NEW/x", True),
     ("a.py RUNS/x", "a.py RUNS/x", True), ("a.py RUNS2/x", "a.py NEW2/x", False),
     ("a.py /old/RUNS/x", "a.py /old/NEW/x", False), ("a.py RUNS/x", "a.py NEW/y", False),
     ("a.py RUNS/x -y", "a.py NEW/x", False), ("a.py RUNS/x", "a.py NEW/x -y", False)],
)  # fmt: skip
def test_a_moved_path_is_whole_or_none(tiny, monkeypatch, before, now, same):
    job = jobs()[2]
    there = job.folder.relative_to(job.settings.texts["runs"])
    record = Record(before.replace("RUNS", "/old.1/runs").split(), f"/old.1/runs/{there}", "done", 1.0, "")
    now = now.replace("NEW", job.settings.texts["runs"]).replace("RUNS", "/old.1/runs")
    monkeypatch.setattr(Job, "words", now.split())
    assert (describe_change(record, job) == "") is same


def test_a_step_that_ran_elsewhere_in_the_folder_says_so(tiny):
    job = jobs()[2]
    record = Record(job.words, "/old/runs/tiny/seed0", "done", 1.0, "")
    assert describe_change(record, job) == f"it ran in /old/runs/tiny/seed0, and would run in {job.folder}"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [("a.py --lr 1 -x", "a.py --lr 1 -x -y", "nothing became -y"), ("a.py -x", "a.py", "-x became nothing"),
     ("a.py --lr 1 2", "a.py --lr 1 3", "--lr 1 2 became --lr 1 3"), ("a.py", "b.py", "a.py became b.py")],
)  # fmt: skip
def test_what_differs_between_commands_is_named(tiny, monkeypatch, before, now, said):
    job = jobs()[2]
    record = Record(before.split(), str(job.folder), "done", 1.0, "")
    monkeypatch.setattr(Job, "words", now.split())
    assert describe_change(record, job) == said


def test_figures_of_stale_steps_are_not_reported(tiny, capfd):
    main(["recipe", "run", "tiny"])
    Path("runs/tiny/seed0/eval.json").write_text(json.dumps(JUDGED))
    main(["recipe", "report", "tiny"])
    assert "50.0 (1 seed)" in capfd.readouterr().out
    main(["recipe", "report", "tiny", "--set", "size=--epochs 3"])
    assert "50.0" not in capfd.readouterr().out
    states = {step["step"]: step["state"] for step in json.loads(Path("runs/tiny/report.json").read_text())["steps"]}
    assert states["train-seed0"] == "its command changed: --epochs 60 became --epochs 3"
    assert states["judge-seed0"] == "train-seed0 has to run first"
    assert main(["recipe", "run", "tiny", "--set", "size=--epochs 3", "--only", "judge"]) == 0
    assert "judge-seed0 builds on train-seed0: its command changed: --epochs" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", '{"cams": {"miou": NaN}}', '{"cams": {"miou": null}}', "x"])
def test_a_damaged_figure_is_none(tiny, capfd, content):
    main(["recipe", "run", "tiny"])
    Path("runs/tiny/seed0/eval.json").write_text(content)
    assert main(["recipe", "report", "tiny"]) == 0 and "not yet" in capfd.readouterr().out


def test_a_daemon_and_a_lost_reader_end_nothing(tiny, monkeypatch):
    daemon = "import subprocess; subprocess.Popen(['sleep', '20'], start_new_session=True)"
    monkeypatch.setitem(
        book.RECIPES, "tiny", with_command("train", f'python -c "{daemon}; {WRITE}" {{out}}/model.pt x')
    )
    start = time.monotonic()
    assert main(["recipe", "run", "tiny"]) == 0 and time.monotonic() - start < 15


def test_two_at_once_are_refused(tiny, capfd):
    main(["recipe", "run", "tiny", "--only", "lists"])
    with Path("runs/tiny/steps/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["recipe", "run", "tiny"]) == 1
    assert "another `semples recipe run` is at work in" in capfd.readouterr().err
    assert main(["recipe", "run", "tiny"]) == 0


def test_a_full_disk_is_told_and_the_same_command_goes_on(tiny, capfd):
    log = Path("runs/tiny/steps/train-seed0.log")
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    book.RECIPES["tiny"] = with_command("train", f'python -c "print(1); {WRITE}" {{out}}/model.pt')
    assert main(["recipe", "run", "tiny"]) == 1
    assert re.search(r"No space left on device: '\S+train-seed0.log'", capfd.readouterr().err)
    log.unlink()
    assert main(["recipe", "run", "tiny"]) == 0


def test_what_only_the_user_can_get_is_asked_for_before_anything_runs(tiny, capfd):
    Path("VOC2012/weights.pt").unlink()
    assert main(["recipe", "run", "tiny"]) == 1
    error = capfd.readouterr().err
    assert f"{tiny}/VOC2012/weights.pt (what only you can get: a form at example.org)" in error
    assert main(["recipe", "run", "tiny", "--set", "size=--weights local-dir:/no/clip"]) == 1
    assert "/no/clip (named by a setting)" in capfd.readouterr().err
    assert not Path("runs/tiny/lists.txt").exists()


def test_incomplete_data_is_told_before_anything_runs(tiny, monkeypatch, capfd):
    steps = (*TINY.steps[:2], data_check("weaktr", "voc", "{shared}/lists.txt"))
    monkeypatch.setitem(book.RECIPES, "tiny", Recipe(**{**vars(TINY), "steps": steps}))
    names = ["2007_000032", "2007_000039"]
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClassAug"):
        Path("VOC2012", name).mkdir(parents=True)
    Path("VOC2012/ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in names))
    Path(f"VOC2012/JPEGImages/{names[0]}.jpg").write_text("x")
    Path("VOC2012/weights.pt").unlink()
    assert main(["recipe", "run", "tiny"]) == 1
    error = capfd.readouterr().err
    assert f"images for 1 of the 2 of {tiny}/VOC2012/ImageSets/Segmentation/train.txt: {names[1]}.jpg in" in error
    assert f"{tiny}/VOC2012/JPEGImages: 1 files; VOC 2012 has 17,125\n" in error
    assert "masks for 2 of the 2 of" in error and "weights.pt (what only you" in error  # all in one go
    assert not Path("runs/tiny/lists.txt").exists()
    Path("VOC2012/weights.pt").write_text("weights")
    assert main(["recipe", "run", "tiny", "--miniature"]) == 0  # which takes a few images of any folder


def test_missing_input_is_told_with_its_origin(tiny, capfd):
    assert main(["recipe", "run", "tiny", "--only", "train"]) == 1
    assert "lists.txt, which isn't there: it comes from lists, which hasn't run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tinny"], "there is no recipe 'tinny'; expected one of"),
        (["run", "tiny", "--only", "trai"], "there is no step 'trai'; expected one of weights, lists, train, judge"),
        (["show", "tiny", "--set", "vocc=/data"], "expected NAME=VALUE with a name of tiny: runs, voc, size"),
        (["show", "tiny", "--set", "voc"], "--set voc: expected NAME=VALUE"),
        (["show", "tiny", "--settings", "none.toml"], "none.toml"),
        (["show", "tiny", "--settings", "not.toml"], "not.toml: expected TOML, lines such as"),
        (["show", "tiny", "--settings", "name.toml"], "name.toml: vocc is no name of any recipe"),
        (["show", "tiny", "--settings", "list.toml"], "list.toml: voc: expected a text or a number, got ['a']"),
    ],
)
def test_bad_input(tiny, capfd, arguments, message):
    Path("not.toml").write_text("voc = /data")
    Path("name.toml").write_text('vocc = "/data"')
    Path("list.toml").write_text('voc = ["a"]')
    assert main(["recipe", *arguments]) == 1
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_settings_come_from_the_file_and_options_win(tiny, capfd):
    Path("semples.toml").write_text('voc = "~/VOC"\nsize = "--epochs 7"\nruns = "elsewhere"\n')
    assert main(["recipe", "show", "tiny", "--set", "size=--epochs 8"]) == 0
    text = capfd.readouterr().out
    assert f'voc = "{Path("~/VOC").expanduser()}"  (PASCAL VOC)' in text
    assert [f"{tiny}/elsewhere/tiny/seed0/model.pt", "0", "--epochs", "8"] == printed_commands(text)[1][3:]


def test_the_report_puts_the_papers_figures_beside_the_measured_ones(tiny, capfd, monkeypatch):
    noisy = with_command(
        "judge",
        f"python -c \"import sys; print('mIoU: 10.0 mIoU: 7' + sys.argv[2]); {WRITE}\" {{out}}/eval.json {{seed}}",
    )
    monkeypatch.setitem(book.RECIPES, "tiny", noisy)
    main(["recipe", "run", "tiny", "--seeds", "2"])
    for seed in range(2):
        content = {"cams": {**JUDGED["cams"], "miou": 0.5 + seed / 50}}
        Path(f"runs/tiny/seed{seed}/eval.json").write_text(json.dumps(content))
    capfd.readouterr()
    assert main(["recipe", "report", "tiny", "--seeds", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert re.split("  +", lines[1]) == [
        "CAMs", "+ SemPLeS", "68.7 (Table 1)", "51.0 ± 1.4 (2 seeds)",
        "train.txt, 8 images; background score 0.4, chosen there",
    ]  # fmt: skip
    assert re.split("  +", lines[2]) == ["network", "+ SemPLeS", "73.9 (Table 2)", "70.5 ± 0.7 (2 seeds)"]
    content = json.loads(Path("runs/tiny/report.json").read_text())
    assert content["figures"][0]["mean"] == pytest.approx(51) and not content["miniature"]
    assert [step["state"] for step in content["steps"]] == ["done"] * 7
    assert content["environments"][0]["steps"] == ["lists", "train-seed0", "judge-seed0", "train-seed1", "judge-seed1"]
    page = Path("runs/tiny/report.html").read_text()
    assert "68.7" in page and "51.0 ± 1.4 (2 seeds)" in page and "miniature" not in page and "a note" in page


def test_without_seeds_all_that_ran_are_reported(tiny, capfd):
    main(["recipe", "run", "tiny", "--seeds", "3"])
    for seed in range(3):
        Path(f"runs/tiny/seed{seed}/eval.json").write_text(json.dumps(JUDGED))
    for command, count in (["report", "tiny"], 3), (["run", "tiny"], 3), (["report", "tiny", "--seeds", "2"], 2):
        assert main(["recipe", *command]) == 0
        assert f"({count} seeds)" in capfd.readouterr().out
        assert f"({count} seeds)" in Path("runs/tiny/report.html").read_text(encoding="utf-8")


def test_paths_in_another_alphabet_are_reported_in_a_locale_without_it(tiny):
    (tiny / "caf\xe9").mkdir()
    command = [sys.executable, "-m", "semples_plugin", "recipe", "report", "weaktr-voc"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, cwd=tiny / "caf\xe9", env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    page = (tiny / "caf\xe9/runs/weaktr-voc/report.html").read_text(encoding="utf-8")
    assert f"{tiny}/caf\xe9/runs" in page and f"{tiny}/caf\xe9/runs".encode() in done.stdout
    assert b"2012" in subprocess.run([*command[:4], "list"], env=environment, capture_output=True, check=True).stdout


def test_a_miniature_is_apart_and_says_so(tiny, capfd):
    assert main(["recipe", "run", "tiny", "--miniature"]) == 0
    assert Path("runs/tiny-miniature/seed0/model.pt").read_text() == "0 --epochs 1\n" and not Path("runs/tiny").exists()
    page = Path("runs/tiny-miniature/report.html").read_text()
    assert "tiny: a miniature" in page and "not to be compared with the paper" in page and "no mistake" not in page
    assert json.loads(Path("runs/tiny-miniature/report.json").read_text())["miniature"]


def test_equal_rows_of_a_miniature_and_formulas_are_explained_and_set(tiny, monkeypatch):
    rows = [Figure("CAMs", row, "Table 5", 67.7, pattern=r"mIoU: (\d+)") for row in ("+ L_prompt^T", "<L_match>")]
    same = with_command("judge", f"python -c \"print('mIoU: 7'); {WRITE}\" {{out}}/eval.json x", figures=tuple(rows))
    monkeypatch.setitem(book.RECIPES, "tiny", same)
    assert main(["recipe", "run", "tiny", "--miniature"]) == main(["recipe", "run", "tiny"]) == 0
    page = Path("runs/tiny-miniature/report.html").read_text()
    assert "+ <i>L</i><sub>prompt</sub><sup>T</sup>" in page and "&lt;<i>L</i><sub>match</sub>&gt;" in page
    assert "Rows of the same figure are no mistake" in page
    assert "no mistake" not in Path("runs/tiny/report.html").read_text()


def test_before_anything_ran_the_report_says_so(tiny, capfd):
    assert main(["recipe", "report", "tiny"]) == 0
    assert "not yet" in capfd.readouterr().out and "Nothing ran yet." in Path("runs/tiny/report.html").read_text()


def test_small_lists(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    assert write_small_lists(tmp_path, tmp_path / "out", 2) == {"train": ["a", "b"], "val": ["c"]}
    assert (tmp_path / "out/val.txt").read_text() == "c\n"
    with pytest.raises(ValueError, match="more than 3 names"):
        write_small_lists(tmp_path, tmp_path / "out", 3)
    (tmp_path / "val.txt").write_text("d\ne\nf\n")
    assert write_small_lists(tmp_path, tmp_path / "out", 2)["val"] == ["d", "e"]


def test_voc_layout(tmp_path):
    for name in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    (tmp_path / "voc/JPEGImages/2007_000001.jpg").write_text("x")
    (tmp_path / "train.txt").write_text("2007_000001\n2007_000002\n")
    (tmp_path / "val.txt").write_text("2007_000003\n")
    lists = {"train": tmp_path / "train.txt", "val": tmp_path / "val.txt"}
    out = tmp_path / "out"
    for _ in range(2):
        write_voc_layout(tmp_path / "voc", out, **lists)
        assert (out / "JPEGImages/2007_000001.jpg").read_text() == "x"
        assert (out / "ImageSets/Segmentation/train_aug.txt").read_text() == "2007_000001\n2007_000002\n"
        assert (out / "ImageSets/Segmentation/val.txt").read_text() == "2007_000003\n"
    with pytest.raises(FileNotFoundError, match="it has no JPEGImages"):
        write_voc_layout(tmp_path, tmp_path / "other", **lists)
    with pytest.raises(FileExistsError, match="JPEGImages is no link, and stays"):
        write_voc_layout(out, tmp_path / "voc", **lists)
    assert (tmp_path / "voc/JPEGImages/2007_000001.jpg").is_file()


def test_yaml_config(tmp_path):
    pytest.importorskip("omegaconf")
    config = tmp_path / "a.yaml"
    config.write_text("SOLVER:\n  STEPS: 20\n  LR: 2.5e-4\nBASE: # None\nROOT: /path\n")
    out = tmp_path / "new/b.yaml"
    write_yaml_config(config, out, ["SOLVER.STEPS=2", "ROOT=/my images/a=b", "BASE=3"])
    assert out.read_text() == "SOLVER:\n  STEPS: 2\n  LR: 0.00025\nBASE: 3\nROOT: /my images/a=b\n"
    for wrong in ("SOLVER.STEP=2", "ROOT"):
        with pytest.raises(ValueError, match="expected KEY=VALUE with a key of"):
            write_yaml_config(config, out, [wrong])


def test_the_small_clip_is_one_model_for_both_readers(tmp_path, monkeypatch):
    import packaging.version
    import torch
    from safetensors.torch import load_file

    from semples_plugin.clip.loading import load_open_clip

    write_small_clip(tmp_path / "clip")
    openai = torch.load(tmp_path / "clip/openai.pt", weights_only=True)
    assert load_file(tmp_path / "clip/open_clip_model.safetensors").keys() == openai.keys()
    model = load_open_clip(f"local-dir:{tmp_path / 'clip'}", None, precision="fp32", cache_dir=None)[0].eval()
    image = torch.rand(1, 3, 224, 224)
    assert model.encode_image(image).shape[-1] == 64
    monkeypatch.setitem(sys.modules, "pkg_resources", SimpleNamespace(packaging=packaging))
    clip = pytest.importorskip("clip")  # of a host
    theirs = clip.load(str(tmp_path / "clip/openai.pt"), device="cpu")[0]
    torch.testing.assert_close(theirs.encode_image(image), model.encode_image(image), atol=1e-5, rtol=0)


REAL = [(name, miniature) for name in book.RECIPES for miniature in (False, True)]


@pytest.mark.parametrize(("name", "miniature"), REAL)
def test_the_data_of_the_real_recipes_fits_together(name, miniature):
    recipe = book.RECIPES[name]
    steps = recipe.steps_of(miniature)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and recipe.name == name
    known = {*recipe.paths, *recipe.values, "shared", "out", "checkout", "seed"}
    assert not recipe.miniature.keys() - recipe.values.keys() and not recipe.help.keys() - known
    used = {placeholder for step in steps for placeholder in placeholders(step)}
    assert used <= known, used - known
    assert all(step.source for step in steps if not step.command)
    all_jobs = jobs_of(recipe, {}, 2, miniature)
    for job in all_jobs:
        made = {path for other in all_jobs[: all_jobs.index(job)] for path in other.makes}
        inside = [path for path in job.needs if job.settings.folder in path.parents]
        lost = [path for path in inside if not any(path == m or m in path.parents or path in m.parents for m in made)]
        assert not lost, f"{job.key} needs {lost}, which no step makes"
        if job.words and job.words[0] == "semples":
            build_parser().parse_args(job.words[1:])
