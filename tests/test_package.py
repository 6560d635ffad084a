import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from mutations import MUTATIONS

import semples_plugin

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path = ROOT) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def test_importing_stays_light():
    code = (
        "import sys, semples_plugin; "
        "print([m for m in ('open_clip', 'timm', 'mmseg', 'mmengine', 'matplotlib', 'cv2') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_the_public_names():
    assert semples_plugin.__all__ == [
        "BackgroundPrompts",
        "ClassMasks",
        "FrozenClip",
        "LossWeights",
        "Preset",
        "PromptHistory",
        "SemPLeSRegularizer",
        "__version__",
        "learn_background_prompts",
        "load_preset",
        "wrap",
        "write_cams_of",
    ]
    assert dir(semples_plugin) == semples_plugin.__all__
    for name in semples_plugin.__all__:
        assert getattr(semples_plugin, name).__doc__, name


def test_mutations_fit_the_source_and_are_as_many_as_the_readme_says():
    for name, module, old, new in MUTATIONS:
        assert old in (ROOT / "semples_plugin" / f"{module}.py").read_text() and old != new, name
    assert f"breaks the library in {len(MUTATIONS)} ways" in " ".join((ROOT / "README.md").read_text().split())


def test_every_public_function_is_documented():
    for name in semples_plugin.__all__:
        for member, value in inspect.getmembers(getattr(semples_plugin, name), inspect.isfunction):
            if value.__module__.startswith("semples_plugin") and not member.startswith("_"):
                assert value.__doc__, f"{name}.{member}"


def test_adapters_have_one_name():
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(sys.executable, "-c", "import adapters")
    assert "import semples_plugin.adapters, not adapters" in error.value.stderr
    run(sys.executable, "-c", "import semples_plugin.adapters")


def test_the_change_log_begins_with_this_version():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == semples_plugin.__version__
    assert f"\nversion: {semples_plugin.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_workflows_and_contributors_call_targets_that_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    files = [*(ROOT / ".github/workflows").glob("*.yml"), ROOT / ".ci/run", ROOT / "CONTRIBUTING.md"]
    called = {name for file in files for name in re.findall(r"\bmake ([a-z]+)\b", file.read_text())}
    assert called == {"test", "gpu", "lint", "docs", "versions", "wheel"} and called <= targets


def test_every_requirement_names_the_oldest_version_that_was_tried():
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(
        r"^(?:requires|dependencies|crf|clims|weaktr|fma-wsss|mmseg|test|docs|dev) = \[(.*?)\](?:  #[^\n]*)?$",
        project,
        re.MULTILINE | re.DOTALL,
    )
    requirements = [one for text in lists for one in re.findall(r'"([^"]+)"', re.sub(r"#.*", "", text))]
    assert len(lists) == 10 and len(requirements) > 20
    assert [one for one in requirements if not re.search(r">=\d", one)] == [
        "alchemy_cat[full]==0.0.11",
        "semples-plugin[mmseg]",
        "semples-plugin[docs,test]",
    ]


def test_linters_check_for_the_oldest_python():
    project = (ROOT / "pyproject.toml").read_text()
    tried = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)
    assert f'requires-python = ">=3.{tried[0]}"' in project
    assert f'target-version = "py3{tried[0]}"' in project and f'\npython_version = "3.{tried[0]}"' in project


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_the_wheel_holds_what_git_holds(tmp_path):
    # From a copy of what git tracks, so that leftovers in the checkout can't stand in for what the build drops.
    copy = tmp_path / "copy"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(copy))
    for name in run("git", "ls-files", "--modified", "--others", "--exclude-standard").split():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copy))
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = ("semples_plugin", "adapters", "examples/patches", "examples/mmseg")
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders).split("\n")
    moved = {"adapters/": "adapters/", "examples/patches/": "patches/", "examples/mmseg/": "mmseg_configs/"}
    tracked = {
        re.sub(f"^({'|'.join(moved)})", lambda m: f"semples_plugin/{moved[m[0]]}", name)
        for name in files
        if (ROOT / name).is_file()
    }
    assert packed == tracked
