"""The message catalogues: brought up to date, and what is still to be translated.

    python docs/site/_ext/catalogues.py              # update docs/site/locale, then list what is missing

Catalogues have neither dates nor places in files, so a change of one is a change of a message.
"""
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from places import ROOT, SITE

LOCALE = SITE / "locale" / "zh_CN" / "LC_MESSAGES"
FORMULA = re.compile(r"`[^`]*`")
WIDTH = 116
OTHERS = "sphinx", "guides", "notebooks", "reference"       # words of templates, kept by hand; pages in English


def collected(folder: Path) -> dict[str, Catalog]:
    """name -> the messages of the site as it is now, of each catalogue; `folder` is for temporary files."""
    subprocess.run([sys.executable, "-m", "sphinx", "-E", "-q", "-W", "-b", "gettext", SITE, folder],
                   cwd=ROOT, check=True)
    return of_pages(folder.glob("*.pot"))


def translated() -> dict[str, Catalog]:
    """name -> the messages with their translations, as they are in the repository."""
    return of_pages(LOCALE.glob("*.po"))


def of_pages(paths: Iterable[Path]) -> dict[str, Catalog]:
    return {path.stem: read(path) for path in sorted(paths) if path.stem not in OTHERS}


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file)


def update(templates: dict[str, Catalog]) -> None:
    """Rewrite the catalogues: new messages are empty, changed ones fuzzy, and those that are gone are left out."""
    old = translated()
    LOCALE.mkdir(parents=True, exist_ok=True)
    for name in old.keys() - templates.keys():
        (LOCALE / f"{name}.po").unlink()
    for name, template in templates.items():
        catalog = old.get(name, Catalog())
        catalog.update(template)
        with (LOCALE / f"{name}.po").open("wb") as file:
            write_po(file, catalog, WIDTH, no_location=True, omit_header=True, ignore_obsolete=True)


def complaints(templates: dict[str, Catalog]) -> Iterator[str]:
    """What is wrong with the catalogues, a sentence for each message."""
    old = translated()
    for name in sorted(templates.keys() | old.keys()):
        template, catalog = templates.get(name, Catalog()), old.get(name, Catalog())
        for message in template:
            if message.id:
                yield from (f"{name}.po: {message.id!r} {wrong}" for wrong in faults(catalog.get(message.id)))
        yield from (f"{name}.po: {message.id!r} is obsolete" for message in catalog
                    if message.id and message.id not in template)
        yield from (f"{name}.po: {text!r} is obsolete" for text in catalog.obsolete)


def faults(message) -> Iterator[str]:
    if message is None or not message.string:
        yield "is not translated"
    elif message.fuzzy:
        yield "is fuzzy"
    elif formulas(message.id) != formulas(message.string):
        yield f"has other formulas in its translation: {message.string!r}"


def formulas(text: str) -> list[str]:
    """In any order, because the order of words is another in every language."""
    return sorted(FORMULA.findall(text))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        templates = collected(Path(folder))
    update(templates)
    wrong = list(complaints(templates))
    print("\n".join(wrong) or f"{sum(map(len, templates.values()))} messages are translated")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
