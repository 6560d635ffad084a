"""The README and the pages in `docs/`: links lead somewhere, messages are the source's, names exist, code runs."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from semples_plugin import FrozenClip, LossWeights, SemPLeSRegularizer
from semples_plugin.cli.app import COMMANDS, build_parser
from semples_plugin.demo.data import OBJECTS, make_scenes
from semples_plugin.demo.network import CamNet, normalize_images

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "examples", "semples_plugin")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
GAP = "…"


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def source_files() -> list[Path]:
    files = [*(ROOT / "semples_plugin").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    return [*files, *(ROOT / "examples/patches").glob("*.py")]


def source_messages() -> str:
    """Every string of the source, what is filled in when it runs being `GAP`."""
    found = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[ds]", GAP, node.value))
    return "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    for target in targets:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_the_site_shows_every_page_once():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_no_paragraph_stands_twice():
    places: dict[str, Path] = {}
    for page in PAGES:
        for paragraph in re.split(r"\n\s*\n", load_generator().BLOCK.sub("", page.read_text())):
            text = " ".join(paragraph.split())
            if len(text) > 120:
                assert text not in places, f"{page} repeats {places.get(text)}: {text[:80]}"
                places[text] = page


def test_the_messages_of_troubleshooting_are_the_sources():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    entries = re.findall(r"^- ((?:`[^`]+`(?:,\s+|\s+and\s+)?)+):", text, re.MULTILINE)
    quotes = [" ".join(quote.split()) for entry in entries for quote in re.findall(r"`([^`]+)`", entry)]
    assert len(entries) > 100 and len(entries) == len(re.findall(r"^- ", text, re.MULTILINE))
    messages = source_messages()
    assert [quote for quote in quotes if quote not in messages] == []


def test_every_name_of_the_reference_exists():
    directives = {}
    for page in (ROOT / "docs/reference").glob("*.md"):
        for module, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text(), re.MULTILINE):
            directives[module] = re.findall(r"\w+", (re.findall(r"members: \[(.*)\]", options) or [""])[0])
    assert len(directives) > 30
    for module, members in directives.items():
        if module.startswith("semples_plugin.adapters.mmseg"):
            pytest.importorskip("mmseg")
        found = importlib.import_module(module)
        assert [name for name in members if not hasattr(found, name)] == [], module


def test_every_command_is_described():
    described = re.findall(
        r"^\| `semples ([\w-]+)` \|", (ROOT / "docs/reference/commands.md").read_text(), re.MULTILINE
    )
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert described == list(commands) and len(commands) == len(COMMANDS)


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell_lines(text: str) -> list[str]:
    """The commands of all blocks of shell, without those that are generated."""
    text = load_generator().BLOCK.sub("", text)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_generated_commands_are_up_to_date():
    """Where it fails: python docs/generate.py."""
    generator = load_generator()
    for guide in (ROOT / "docs").glob("*.md"):
        text = guide.read_text()
        assert generator.generated(text) == text, guide
        assert text.count("<!-- generated by") == len(generator.BLOCK.findall(text)), guide


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_semples_command_of_the_guides_is_one(page):
    for line in shell_lines(page.read_text()):
        words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
        if words[:1] == ["semples"]:
            build_parser().parse_args(words[1:])


@pytest.mark.parametrize("guide", ["hosts.md", "recipes.md"])
def test_the_hosts_guides_hold_no_command_of_a_host_that_is_not_generated(guide):
    words = [shlex.split(line, comments=True)[:1] for line in shell_lines((ROOT / "docs" / guide).read_text())]
    assert {word for line in words for word in line} <= {"semples", "pip"}


def test_the_first_cam_lies_on_its_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks("docs/index.md")
    names: dict = {}
    exec(compile(block, "index.md", "exec"), names)
    masks, scenes = names["masks"], names["scenes"]
    shown = F.interpolate(masks.maps.detach()[:, None], scenes.images.shape[1:3], mode="bilinear")[:, 0].numpy()
    objects = scenes.objects[masks.image_index.numpy()] == masks.class_index.numpy()[:, None, None] + 1
    assert shown[objects].mean() > 2 * shown[~objects].mean()
    assert {path.name for path in tmp_path.iterdir()} == {"image.png", "cam.png"}


@pytest.fixture
def own():
    """What a reader of `extend.md` has: images, labels, CAMs and a regularizer."""
    scenes = make_scenes(4, seed=0)
    images, labels = normalize_images(scenes.images), torch.from_numpy(scenes.labels).float()
    regularizer = SemPLeSRegularizer(FrozenClip.load("demo"), OBJECTS, weights=LossWeights(background=0.4))
    torch.manual_seed(0)
    return {"images": images, "labels": labels, "cams": CamNet(len(OBJECTS))(images), "regularizer": regularizer}


def test_what_one_writes_by_extend_works(own, tmp_path):
    from semples_plugin.data.cam_files import read_cams

    for block in python_blocks("docs/extend.md"):
        exec(compile(block, "extend.md", "exec"), own)
    images, labels, cams = own["images"], own["labels"], own["cams"].detach()

    adapter = own["LastLayerAdapter"](own["regularizer"], width=40)
    logits = cams.permute(0, 2, 3, 1).clone().requires_grad_()
    loss = adapter.loss(images, logits, labels)
    loss.backward()
    painted = images.clone()
    painted[:, :, :, 40:] = 2.0  # padding of another colour
    assert torch.allclose(adapter.loss(painted, logits, labels), loss)
    assert logits.grad.abs().sum() > 0

    term, masks = own["known_background_loss"], own["masks"]
    similarity = own["regularizer"].clip.encode_images(own["regularizer"].views(images, masks)[: len(masks)])
    expected = -torch.log1p(-(similarity @ own["KNOWN_BACKGROUNDS"].T).clamp(1e-4, 0.9999)).mean()
    assert torch.allclose(term(images, masks), expected, atol=1e-6)
    assert term(images, masks[:0]) == 0

    own["convert"](tmp_path / "a.npy", cams[0, :2].numpy(), [1, 3])
    assert read_cams(tmp_path / "a.npy").class_index == (1, 3)
    assert own["mine"].weights == LossWeights(background=2.4, text=0.02, refine=0.1)
    assert own["mine"].prompt_length == 16 and own["other"].class_names == own["mine"].class_names
