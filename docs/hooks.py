"""mkdocs hooks: the pages' links to files of the repository work on the site as they do on GitHub.

A link to a file outside of `docs/`, such as `../examples/quickstart.py`, leads to a page that shows the file; a picture
is copied. A paragraph `[title](../README.md#heading) <!-- shown here -->` is a link on GitHub; on the site the text
below that heading takes its place.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (".jpg", ".png")
LANGUAGES = {".py": "python", ".patch": "diff", ".toml": "toml"}
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]+)?\)")
SHOWN_HERE = re.compile(r"^\[[^]]+\]\(\.\./README\.md#([\w-]+)\) <!-- shown here -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds a page, or a picture, for each file of the repository that a page links to."""
    for path in sorted({path for file in files.documentation_pages() for path in _outside(file)}):
        if path.endswith(PICTURES):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, f"{path}.md", content=_as_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page with what it shows of the README, and with links to the files that `on_files` added."""
    file = page.file
    if file.generated_by is not None:
        return markdown
    markdown = SHOWN_HERE.sub(lambda match: section_of_readme(match[1]), markdown)
    return LINK.sub(lambda match: _on_the_site(match, file), markdown)


def section_of_readme(slug: str) -> str:
    """The text below the README's heading of that anchor, with its links as seen from `docs/`."""
    for section in re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        if re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") == slug:
            return text.strip().replace("](docs/", "](").replace("](examples/", "](../examples/")
    raise ValueError(f"README.md has no heading with the anchor #{slug}")


def _outside(file: File) -> list[str]:
    """Paths in the repository of what a page links to outside of `docs/`."""
    text = SHOWN_HERE.sub(lambda match: section_of_readme(match[1]), file.content_string)
    paths = [_in_repository(match[1], file) for match in LINK.finditer(text)]
    return [path for path in paths if not path.startswith("docs/")]


def _as_page(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
        text = f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
    return f"---\nsearch:\n  exclude: true\n---\n{text}"


def _in_repository(target: str, file: File) -> str:
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), target))


def _on_the_site(match: re.Match[str], file: File) -> str:
    path = _in_repository(match[1], file)
    if path.startswith("docs/"):
        return match[0]
    source = path if path.endswith(PICTURES) else f"{path}.md"
    return f"]({posixpath.relpath(source, posixpath.dirname(file.src_uri) or '.')})"
