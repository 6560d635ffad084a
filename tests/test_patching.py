import os
import shutil
import subprocess
from pathlib import Path

import pytest

from semples_plugin.adapters import patching
from semples_plugin.cli.app import main


def git(folder, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of blank lines as long as CLIMS's files, at "the pinned commit"."""
    folder = tmp_path / "host"
    for name in ("run_sample.py", "run_sample_coco.py", "step/train_clims.py", "step_coco/train_clims.py", "other.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"# {i}\n" for i in range(300)))
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "host")
    monkeypatch.setitem(patching.COMMITS, "clims", git(folder, "rev-parse", "HEAD").strip())
    return folder


def test_in_and_out_again(checkout, capsys):
    assert main(["patch", "clims", str(checkout), "--check"]) == 0
    assert "not patched; the patch fits" in capsys.readouterr().out
    assert main(["patch", "clims", str(checkout)]) == 0
    assert "patched run_sample.py" in capsys.readouterr().out
    lines = (checkout / "step/train_clims.py").read_text().splitlines()
    assert lines[104] == "# 104" and lines[105] == "    from semples_plugin.adapters import clims"
    assert lines[168] == "            loss = loss + semples(img, x, label)"
    assert main(["patch", "clims", str(checkout), "--check"]) == 0
    assert "is patched" in capsys.readouterr().out
    (checkout / "other.py").write_text("changed, but not by us")
    step = checkout / "step/train_clims.py"
    step.write_text(step.read_text().replace("# 61\n", "# 61, n_classes=5\n"))  # as for classes of one's own
    assert main(["patch", "clims", str(checkout)]) == 1 and "patched already" in capsys.readouterr().err
    assert main(["patch", "clims", str(checkout), "--revert"]) == 0
    assert git(checkout, "status", "--porcelain").split() == ["M", "other.py", "M", "step/train_clims.py"]
    assert git(checkout, "diff", "--stat", "step").split()[2] == "2"  # one line out, one in
    assert main(["patch", "clims", str(checkout), "--revert"]) == 1 and "not patched" in capsys.readouterr().err


def test_what_is_not_safe_is_refused_and_nothing_changes(checkout, tmp_path, monkeypatch):
    (checkout / "run_sample.py").write_text("mine")
    with pytest.raises(ValueError, match=r"local changes .* \(M run_sample.py\)"):
        patching.patch("clims", checkout)
    assert (checkout / "run_sample.py").read_text() == "mine"
    with pytest.raises(ValueError, match=r"a folder inside of the checkout .*host; give that"):
        patching.patch("clims", checkout / "step")
    git(checkout, "commit", "--quiet", "-am", "mine")
    with pytest.raises(ValueError, match="is at commit"):
        patching.patch("clims", checkout)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ValueError, match="empty is no git checkout; clone clims"):
        patching.patch("clims", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        patching.patch("clims", tmp_path / "nowhere")
    monkeypatch.setitem(patching.COMMITS, "clims", "1" * 40)
    with pytest.raises(ValueError, match="has no commit 111111111111: it is not clims"):
        patching.patch("clims", checkout)
    assert git(checkout, "status", "--porcelain") == ""


def test_a_committed_patch_is_found_and_edited_lines_are_named(checkout):
    patching.patch("clims", checkout)
    git(checkout, "commit", "--quiet", "-am", "SemPLeS")
    assert "is patched" in patching.patch("clims", checkout, "check")
    step = checkout / "step/train_clims.py"
    step.write_text(step.read_text().replace("semples(img, x, label)", "semples(img, x, label) * 2"))
    for action in ("check", "revert", "apply"):
        with pytest.raises(
            ValueError, match=r"edited: .*step/train_clims.py.*; git -C .* checkout \w+ -- run_sample.py"
        ):
            patching.patch("clims", checkout, action)
    git(checkout, "checkout", "--", "step/train_clims.py")
    assert "took the patch out" in patching.patch("clims", checkout, "revert")
    assert git(checkout, "diff", "HEAD~1") == ""


def test_fma_wsss_gets_a_config_for_each_stage(checkout, tmp_path, monkeypatch):
    monkeypatch.setitem(patching.COMMITS, "fma-wsss", patching.COMMITS["clims"])
    assert "fits" in patching.patch("fma-wsss", checkout, "check")
    assert "configs/VOC/cls/cfg.py" in patching.patch("fma-wsss", checkout)
    files = sorted(path.relative_to(checkout).as_posix() for path in checkout.glob("configs/**/*.py"))
    parts = [*(f"{data}/{stage}" for data in ("coco", "voc") for stage in ("match", "prompts", "refine")), "voc/sams"]
    assert files == [f"configs/semples/{part}/cfg.py" for part in parts]
    assert len({(checkout / file).read_text() for file in files}) == 2  # all stages are one file
    assert "refine/cfg.py" in patching.patch("fma-wsss", checkout, "check")
    with pytest.raises(ValueError, match="there already"):
        patching.patch("fma-wsss", checkout)
    mine = checkout / files[0]
    mine.write_text(mine.read_text() + "# mine\n")
    (checkout / files[1]).unlink()
    found = patching.patch("fma-wsss", checkout, "check")
    assert f"edited: {mine}" in found and f"missing: {checkout / files[1]}" in found
    assert f"left {mine}, edited since" in patching.patch("fma-wsss", checkout, "revert")
    assert mine.read_text().endswith("# mine\n") and list(checkout.glob("configs/**/*.py")) == [mine]
    mine.unlink()
    with pytest.raises(ValueError, match="nothing to take out"):
        patching.patch("fma-wsss", checkout, "revert")
    for folder in ("semples/coco/match", "semples/coco/prompts", "semples/coco", "semples", "."):
        (checkout / "configs" / folder).rmdir()  # what the test itself emptied; nothing else is left
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.parametrize("action", ["apply", "check", "revert"])
@pytest.mark.parametrize("link", ["configs/semples/voc/prompts/cfg.py", "configs/semples/coco", "configs"])
def test_fma_wsss_configs_are_written_through_no_link(checkout, tmp_path, monkeypatch, action, link):
    monkeypatch.setitem(patching.COMMITS, "fma-wsss", patching.COMMITS["clims"])
    (checkout / link).parent.mkdir(parents=True, exist_ok=True)
    (checkout / link).symlink_to(tmp_path / "elsewhere")
    if not link.endswith(".py"):
        (tmp_path / "elsewhere").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{link} is a link"):
        patching.patch("fma-wsss", checkout, action)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_that_is_no_text_in_utf8_was_edited(checkout, monkeypatch):
    monkeypatch.setitem(patching.COMMITS, "fma-wsss", patching.COMMITS["clims"])
    patching.patch("fma-wsss", checkout)
    mine = checkout / "configs/semples/voc/match/cfg.py"
    mine.write_bytes(b"# caf\xe9\n")
    assert f"edited: {mine}" in patching.patch("fma-wsss", checkout, "check")
    assert f"left {mine}, edited since" in patching.patch("fma-wsss", checkout, "revert")
    assert mine.read_bytes() == b"# caf\xe9\n"


def snapshot(folder):
    """Content, mode of every file, and the folders, but for git's own."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mode)
        for path in folder.rglob("*")
        if ".git" not in path.parts
    }


@pytest.mark.parametrize("action", ["apply", "revert"])
@pytest.mark.parametrize("host", ["clims", "fma-wsss"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_files_change_all_or_none(checkout, monkeypatch, host, action, stop, capsys):
    monkeypatch.setitem(patching.COMMITS, "fma-wsss", patching.COMMITS["clims"])
    (checkout / "run_sample.py").chmod(0o755)
    git(checkout, "config", "core.fileMode", "false")
    (checkout / "configs").mkdir()
    if action == "revert":
        patching.patch(host, checkout)
        if host == "fma-wsss":
            (checkout / "configs/semples/voc/match/cfg.py").chmod(0o600)
    before, steps = snapshot(checkout), {"clims": 4, "fma-wsss": 7}[host]
    name = "unlink" if (host, action) == ("fma-wsss", "revert") else "replace"
    genuine = getattr(Path, name)
    for good in range(steps):
        left = [good]

        def fails_once(path, *arguments, left=left, **keywords):
            left[0] -= 1
            if left[0] == -1:
                raise stop
            return genuine(path, *arguments, **keywords)

        with monkeypatch.context() as patched:
            patched.setattr(Path, name, fails_once)
            status = main(["patch", host, str(checkout), *["--revert"] * (action == "revert")])
        captured = capsys.readouterr()
        assert left[0] < 0 and snapshot(checkout) == before and captured.out == ""
        assert (status, "nothing was changed" in captured.err) in ((1, True), (130, False))
    patching.patch(host, checkout, action)
    assert snapshot(checkout) != before and (checkout / "run_sample.py").stat().st_mode & 0o777 == 0o755


def test_what_can_not_be_put_back_is_named(checkout, monkeypatch):
    genuine, left = Path.replace, [2]

    def fails_for_good(path, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(30, "Read-only file system")
        return genuine(path, target)

    monkeypatch.setattr(Path, "replace", fails_for_good)
    with pytest.raises(OSError, match=r"Read-only.*step/train_clims.py, \S*step_coco/train_clims.py could not be put"):
        patching.patch("clims", checkout)


def test_a_read_only_file_system_is_told_by_the_hosts_file(checkout, monkeypatch):
    def fails(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", fails)
    monkeypatch.setattr(Path, "unlink", fails)
    with pytest.raises(OSError, match=r"file system: '\S*host/run_sample.py'; nothing was changed$"):
        patching.patch("clims", checkout)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="needs chattr")
@pytest.mark.parametrize("action", ["apply", "revert"])
def test_an_immutable_file_stops_everything(checkout, action, capsys):
    if action == "revert":
        patching.patch("clims", checkout)
    file, before = checkout / "step/train_clims.py", snapshot(checkout)
    if subprocess.run(["chattr", "+i", str(file)], capture_output=True).returncode:
        pytest.skip("chattr doesn't work here")
    try:
        assert main(["patch", "clims", str(checkout), *["--revert"] * (action == "revert")]) == 1
    finally:
        subprocess.run(["chattr", "-i", str(file)], check=True)
    assert snapshot(checkout) == before
    assert "step/train_clims.py'; nothing was changed" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a folder to somebody else")
def test_a_checkout_of_somebody_elses_is_called_that(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in [checkout, *checkout.rglob("*")]:
        os.chown(path, 65534, 65534)
    for action in ("check", "apply", "revert"):
        with pytest.raises(ValueError, match=r"dubious ownership.*git config --global --add safe.directory \S*host$"):
            patching.patch("clims", checkout, action)


def test_a_failure_of_gits_is_told_in_its_words(checkout):
    (checkout / ".git/index").write_bytes(b"damaged")  # `git status` fails then, which is not "no local changes"
    with pytest.raises(ValueError, match=r"git says: .*index file"):
        patching.patch("clims", checkout)
