"""The guides and the reference of the site: every public name, every command and every guide has its place."""
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
from docutils import nodes

import pyllama
import pyllama.testing
from pyllama.cli.flags import flags_of
from pyllama.cli.help import UNUSED
from pyllama.cli.main import ALIASES, COMMANDS

ROOT = Path(__file__).parents[1]
FACES = pyllama, pyllama.testing


def text_of(found):
    return [node.astext() for node in found]


# --- docstrings -------------------------------------------------------------------------------------------------------

def kinds(site, doc):
    return [type(node).__name__ for node in site("docstrings").described(doc)]


@pytest.mark.parametrize(("doc", "kind"), [
    ("A sentence.  Another one,\nwhich goes on.", "paragraph"),
    ("x     an array", "definition_list"),
    ("x     an array\n      of two axes\neps   a number", "definition_list"),
    ("eps, atol\n      two numbers", "definition_list"),
    ("A sentence\nwhich goes on", "paragraph"),
    ("The first.  A second\none and more.  The end", "paragraph"),
    ("    y = x²", "literal_block"),
    ("y = 2 x        dy = 2", "literal_block"),
    (">>> 1 + 1\n2", "literal_block"),
])
def test_a_block_of_a_docstring_is_what_it_looks_like(site, doc, kind):
    assert kinds(site, doc) == [kind]


def test_a_definition_has_the_lines_below_it(site):
    found, = site("docstrings").described("x     an array\n      of two axes\neps   a `small` number")
    assert text_of(found.findall(nodes.term)) == ["x", "eps"]
    assert text_of(found.findall(nodes.definition)) == ["an array of two axes", "a small number"]


def test_code_keeps_its_lines(site):
    example = ">>> f(x)\narray([1.,  2.])"
    assert text_of(site("docstrings").described(f"A sentence.\n\n{example}")) == ["A sentence.", example]


def public():
    return [getattr(face, name) for face in FACES for name in face.__all__ if name != "ops"]


@pytest.mark.parametrize("value", public(), ids=lambda value: value.__name__)
def test_no_word_of_a_public_docstring_is_lost(site, value):
    doc = inspect.getdoc(value)
    shown = " ".join(text_of(site("docstrings").described(doc)))
    assert "".join(shown.split()) == "".join(doc.replace("`", "").split())


# --- the reference ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_every_public_name_has_a_section(site, face):
    found = [section["ids"][0] for section in site("objects").sections(face.__name__)]
    assert {f"{face.__name__}.{name}" for name in face.__all__} <= set(found)


def test_a_signature_has_every_parameter_of_its_function(site):
    for value in public():
        head = site("objects").signature(value)
        names = inspect.signature(value).parameters if inspect.isfunction(value) else {}
        assert all(name in head for name in names), head
        assert '"""' not in head


def test_a_method_of_a_class_has_a_section_within_it(site):
    section = site("objects").section("pyllama.testing.Report", pyllama.testing.Report)
    inner = [part["ids"][0] for part in section.findall(nodes.section)]
    assert "pyllama.testing.Report.to_json" in inner
    assert not any("_repr_html_" in name for name in inner)


@pytest.mark.parametrize("value", public(), ids=lambda value: value.__name__)
def test_the_source_is_at_its_line(site, value):
    path, line = site("objects").place(value)
    source = (ROOT / path).read_text("utf-8").splitlines()[line - 1:]
    assert next(text for text in source if not text.startswith("@")).split()[1].startswith(value.__name__)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_all_its_flags(site, name):
    section = next(part for group in site("command_line").sections() for part in group.findall(nodes.section)
                   if part["ids"] == [f"pyllama-{name}"])
    entries = [term.split()[0] for term in text_of(section.findall(nodes.term))]
    assert sorted(entries) == sorted(flag.label for flag in flags_of(COMMANDS[name])
                                     if flag.name not in UNUSED.get(name, ()))


def test_an_alias_is_named_at_its_command(site):
    shown = " ".join(text_of(site("command_line").sections()))
    assert all(f"pyllama {alias}" in shown for alias in ALIASES)


# --- the guides -------------------------------------------------------------------------------------------------------

def test_every_page_of_the_docs_is_a_guide_or_a_chapter(site):
    guides = site("guide_pages")
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} == {*guides.names(), *guides.RETOLD}
    assert len(guides.names()) == len(set(guides.names()))


@pytest.mark.parametrize(("link", "moved"), [
    ("[tasks](tasks.md#triples)", "[tasks](tasks.md#triples)"),
    ("[here](#below)", "[here](#below)"),
    ("[far](https://example.org/a.md)", "[far](https://example.org/a.md)"),
    ("[the block](textbook.md)", "[the block](../textbook.md)"),
    ("[the reader](kernels/check_vectors.c)", "[the reader](repo:docs/kernels/check_vectors.c)"),
    ("[a test](../tests/test_ops.py)", "[a test](repo:tests/test_ops.py)"),
    ("[the kernels](kernels)", "the kernels"),
    ("![losses](demo.svg)", "![losses](../../demo.svg)"),
    ("```python\nf[x](tasks.py)\n```", "```python\nf[x](tasks.py)\n```"),
])
def test_a_link_of_a_guide_leads_to_its_place_on_the_site(site, link, moved):
    assert site("guide_pages").of_site(f"See\n{link}\nand more") == f"See\n{moved}\nand more"


@pytest.mark.parametrize(("language", "page", "wrapped"), [
    ("zh_CN", "guides/testing", True), ("zh_CN", "reference/ops", True), ("zh_CN", "source/pyllama/api.py", True),
    ("zh_CN", "training", False), ("en", "guides/testing", False)])
def test_the_chinese_site_says_which_pages_are_english(site, language, page, wrapped):
    app, context = SimpleNamespace(config=SimpleNamespace(language=language)), {"body": "One row.", "toc": ""}
    site("manual").in_english(app, page, "page.html", context, None)
    assert context["body"] == ('<div lang="en">One row.</div>' if wrapped else "One row.")


def test_the_catalogues_leave_out_what_stays_english(site, tmp_path):
    for name in ("guides", "reference", "ops"):
        (tmp_path / f"{name}.pot").write_text('msgid "One row."\nmsgstr ""\n')
    assert list(site("catalogues").of_pages(tmp_path.glob("*.pot"))) == ["ops"]
