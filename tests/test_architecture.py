"""The house: which room may look into which, and that nobody goes round in circles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import semples_plugin

ROOT = Path(semples_plugin.__file__).parent
METHOD = "the method"  # the files at the root: who has read them has read the paper
MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "clip": {"utils"},
    METHOD: {"utils", "clip", "data"},
    "prompt_learning": {"utils", "clip", METHOD},
    "evaluation": {"utils", "data"},
    "viz": {"utils", "clip", METHOD, "data", "evaluation"},
    "adapters": {"utils", "clip", METHOD, "prompt_learning", "data", "evaluation", "viz"},
    "compat": {"utils", "data", "adapters"},
    "recipes": {"utils", "data", "adapters", "viz", "compat"},
    "bench": {"utils", "clip", METHOD, "prompt_learning", "adapters"},
    "demo": {"utils", "clip", METHOD, "prompt_learning", "data", "evaluation", "viz"},
    "cli": {
        "utils",
        "clip",
        METHOD,
        "prompt_learning",
        "data",
        "evaluation",
        "viz",
        "adapters",
        "compat",
        "recipes",
        "bench",
        "demo",
    },
}
FRONT_DOORS = {"__init__", "__main__", "version"}  # they lead everywhere, or hold a number


def name_of(path: Path) -> str:
    """`semples_plugin/utils/text.py` is utils.text; a package is its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_text_files_are_utf_8_in_any_locale():
    for path in [*ROOT.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                names = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text"):
                    assert "encoding" in names, f"{path}:{node.lineno}: no encoding"
                assert "text" not in names or node.func.attr != "run", f"{path}:{node.lineno}: the locale's encoding"


def imported_by(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever it does; for type checkers alone doesn't count."""
    tree, found = ast.parse(path.read_text()), set()
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(child) for block in typing for child in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        if id(node) not in skipped:
            found |= {name.removeprefix("semples_plugin.") for name in names if name.startswith("semples_plugin.")}
    return found & set(FILES)


FILES = {name_of(path): path for path in ROOT.rglob("*.py") if not {"patches", "startup"} & set(path.parts)}
FILES |= {name_of(path): path for path in (ROOT / "adapters").glob("*.py")}  # a link, which rglob doesn't follow
GRAPH = {name: imported_by(path) for name, path in FILES.items()}


def room(name: str) -> str:
    return name.split(".")[0] if "." in name else METHOD


def test_every_room_is_known():
    assert {room(name) for name in FILES} == set(MAY_IMPORT)
    assert len(FILES) > 70 and "adapters.mmseg" in FILES


@pytest.mark.parametrize("name", sorted(set(FILES) - FRONT_DOORS))
def test_arrows_point_one_way(name):
    wrong = {other for other in GRAPH[name] - FRONT_DOORS if room(other) not in MAY_IMPORT[room(name)] | {room(name)}}
    assert not wrong, f"{name} imports {sorted(wrong)}"


def test_no_circles():
    assert list(TopologicalSorter({name: GRAPH[name] - {name} for name in GRAPH}).static_order())


@pytest.mark.parametrize("name", ["adapters.patching", "compat.run", "recipes.book", "recipes.run", "recipes.settings"])
def test_what_needs_no_torch_is_there_at_once(name):
    code = f"import sys, semples_plugin.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_root_is_the_paper():
    assert {name for name in FILES if "." not in name} - FRONT_DOORS == {
        "functional",  # the equations
        "masks",  # M
        "pair_encoder",  # v_f, v_b and u_f
        "pair_terms",  # the terms of (1) and (3)
        "loss_weights",  # the lambdas
        "refine_strength",  # lambda of (3), where it is measured: ours, and off by default
        "compiled",  # the regularizer's terms as graphs, for any number of pairs
        "regularizer",  # the objectives: where a loss of one's own goes
        "diagnostics",  # what would only clutter the regularizer: checks of batches, figures, warnings
        "prompts",  # p and u_b
        "prompt_quality",  # whether they describe backgrounds
        "presets",  # the paper's numbers
    }


def code_lines(function: ast.AST, source: list[str]) -> int:
    """Lines of a function that are neither empty, comments nor docstrings."""
    prose: set[int] = set()
    for node in ast.walk(function):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            prose.update(range(body[0].lineno, body[0].end_lineno + 1))
    lines = {i: source[i - 1].strip() for i in range(function.lineno, function.end_lineno + 1)}
    return sum(1 for i, line in lines.items() if i not in prose and line and not line.startswith("#"))


@pytest.mark.parametrize("name", sorted(FILES))
def test_functions_are_short(name):
    text = FILES[name].read_text()
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert {f.name: n for f in functions if (n := code_lines(f, text.splitlines())) > 60} == {}
