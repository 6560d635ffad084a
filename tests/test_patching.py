import subprocess

import pytest

from semples_plugin import patching
from semples_plugin.cli import main


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
    with pytest.raises(ValueError, match=r"a folder inside of the checkout; give .*host"):
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
    assert files == [f"configs/semples/{stage}/cfg.py" for stage in ("match", "prompts", "refine")]
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
    for folder in ("semples/match", "semples/prompts", "semples", "."):
        (checkout / "configs" / folder).rmdir()  # what the test itself emptied; nothing else is left
    assert git(checkout, "status", "--porcelain") == ""
