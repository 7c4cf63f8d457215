"""The site in Chinese: each sentence is translated, with the formulas of the original."""
import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
pytest.importorskip("myst_parser", reason="the extra 'docs' is not installed")
pytest.importorskip("sympy", reason="the extra 'docs' is not installed")
from babel.messages.catalog import Catalog


@pytest.fixture(scope="module")
def catalogues(site):
    return site("catalogues")


@pytest.fixture
def changed(catalogues, monkeypatch):
    """changed(template, catalogue): the complaints if these are the messages of the site, and the translated ones."""
    def complaints(template, catalogue):
        monkeypatch.setattr(catalogues, "translated", lambda: {"ops": catalogue})
        return list(catalogues.complaints({"ops": template}))
    return complaints


def of(*messages, **options):
    catalog = Catalog()
    for text, translation in messages:
        catalog.add(text, translation, **options)
    return catalog


def test_no_message_is_missing_fuzzy_obsolete_or_has_other_formulas(catalogues, tmp_path):
    messages = catalogues.collected(tmp_path)
    assert list(catalogues.complaints(messages)) == [], "make docs-messages brings them up to date"


@pytest.mark.parametrize(("template", "catalogue", "complaint"), [
    (of(("One row.", "")), of(), "ops.po: 'One row.' is not translated"),
    (of(("One row.", "")), of(("One row.", "")), "ops.po: 'One row.' is not translated"),
    (of(("One row.", "")), of(("One row.", "一行。"), flags=["fuzzy"]), "ops.po: 'One row.' is fuzzy"),
    (of(), of(("One row.", "一行。")), "ops.po: 'One row.' is obsolete"),
    (of(("`a` and `b`.", "")), of(("`a` and `b`.", "`a` 与 `c`。")),
     "ops.po: '`a` and `b`.' has other formulas in its translation: '`a` 与 `c`。'"),
])
def test_each_fault_is_found(changed, template, catalogue, complaint):
    assert changed(template, catalogue) == [complaint]


def test_formulas_may_be_in_another_order(changed):
    assert changed(of(("`a` of `b`.", "")), of(("`a` of `b`.", "`b` 的 `a`。"))) == []
