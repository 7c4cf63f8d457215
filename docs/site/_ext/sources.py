"""Files of the repository that pages link to: each is a page of the site, with a place for each line.

A link to one is `repo:PATH` in a page.  They are not documents: the search and the translation leave them out.
"""
from collections.abc import Iterator
from html import escape
from pathlib import Path

from docutils import nodes
from places import ROOT
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

SCHEME = "repo:"
LEXERS = {".py": "python", ".c": "c", ".md": "markdown", ".toml": "toml"}
linked: set[str] = set()                                    # by the pages that are written in this build


def link(path: str, line: int = 0) -> nodes.reference:
    anchor = f"#line-{line}" if line else ""
    return nodes.reference("", "", nodes.literal(path, path), refuri=f"{SCHEME}{path}{anchor}")


class RepositoryLinks(SphinxPostTransform):
    """Lead links to files of the repository to their pages."""
    default_priority = 200
    formats = ("html",)

    def run(self, **options):
        for reference in self.document.findall(nodes.reference):
            if reference.get("refuri", "").startswith(SCHEME):
                path, mark, anchor = reference["refuri"].removeprefix(SCHEME).partition("#")
                if not (ROOT / path).is_file():
                    raise ExtensionError(f"{self.env.docname}: {path} does not exist; name a file of the project")
                linked.add(path)
                page = self.app.builder.get_relative_uri(self.env.docname, page_of(path))
                reference["refuri"] = page + mark + anchor


def page_of(path: str) -> str:
    return f"source/{path}"


def pages(app) -> Iterator[tuple[str, dict[str, str], str]]:
    """(name, context, template) of the page of each linked file."""
    for path in sorted(linked):
        lexer = LEXERS.get(Path(path).suffix, "text")
        text = (ROOT / path).read_text("utf-8")
        listing = app.builder.highlighter.highlight_block(text, lexer, linespans="line")
        body = f'<h1><code>{escape(path)}</code></h1>\n<div class="file highlight-{lexer}">{listing}</div>'
        yield page_of(path), {"title": path, "body": body}, "page.html"
