"""The test suite on the oldest and the newest packages that `pyproject.toml` allows, on each Python that it names.

`make versions` tries them one after the other and prints the table that stands in `docs/index.md`. `nox --list` names
them; `nox -s "versions(3.12-newest)" -- tests/test_clip.py` tries one, here with the tests of one file.
"""

from pathlib import Path
from xml.etree import ElementTree

import nox

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
RESOLUTION = {"oldest": "lowest-direct", "newest": "highest"}
# The oldest packages on the oldest and the newest Python alone: what lies between asks for nothing else.
TRIED = [(python, "oldest") for python in (PYTHONS[0], PYTHONS[-1])] + [(python, "newest") for python in PYTHONS]
SHOWN = ("torch", "torchvision", "open_clip_torch", "numpy", "onedl-mmsegmentation")
HEAD = ("Python", "packages", *SHOWN, "passed", "skipped", "failed", "minutes")
TABLE = Path(".nox/versions.md")

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True


@nox.session(venv_params=["--seed"])  # with pip, which a test calls
@nox.parametrize("python, packages", [nox.param(*tried, id="-".join(tried)) for tried in TRIED])
def versions(session: nox.Session, packages: str) -> None:
    """The suite, or what stands behind `--`; only a whole suite changes the table."""
    session.install(f"--resolution={RESOLUTION[packages]}", "--editable=.[crf,test]")
    report = Path(session.create_tmp(), "report.xml").resolve()
    suite = ("python", "-m", "pytest", "-n2", "--dist=worksteal", f"--junitxml={report}", *session.posargs)
    if session.run(*suite, success_codes=[0, 1]) is None:  # --install-only
        return
    code = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    found = str(session.run("python", "-c", code, silent=True, log=False)).split()
    counts = ElementTree.parse(report).getroot()[0].attrib
    skipped, failed = int(counts["skipped"]), int(counts["failures"]) + int(counts["errors"])
    passed, minutes = int(counts["tests"]) - skipped - failed, round(float(counts["time"]) / 60)
    row = _row(session.python, packages, *found, passed, skipped, failed, minutes)
    if session.posargs:
        print(row)
    else:
        rows = TABLE.read_text().splitlines()[2:] if TABLE.exists() else []
        others = [other for other in rows if not other.startswith(_row(session.python, packages))]
        TABLE.write_text("\n".join([_row(*HEAD), "|---" * len(HEAD) + "|", *sorted([*others, row]), ""]))
        print(TABLE.read_text())
    if failed:
        session.error(f"{failed} tests failed")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
