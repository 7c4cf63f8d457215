"""Optional packages: the message names the package and the command that installs it."""
import re
import sys
import tomllib
from pathlib import Path

import pytest

from pyllama.cli.inspect import PACKAGES
from pyllama.errors import DISTRIBUTION, EXTRAS, UserError, optional

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_distribution_has_the_name_that_pip_is_asked_for():
    assert PROJECT["name"] == DISTRIBUTION


@pytest.mark.parametrize("package", EXTRAS)
def test_extra_installs_the_package(package):
    requirements = PROJECT["optional-dependencies"][EXTRAS[package]]
    assert any(line.startswith(package.replace("_", "-")) for line in requirements)


def test_every_package_that_env_names_says_how_to_install_it():
    assert {package for package, purpose in PACKAGES.items() if purpose} <= EXTRAS.keys()


def test_absent_package_is_distinguished_from_a_broken_one(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rdflib", None)
    cure = re.escape(f"pip install '{DISTRIBUTION}[graph]'")
    with pytest.raises(UserError, match=f"^a .ttl file needs rdflib, which is not installed: {cure}$"):
        optional("rdflib", "a .ttl file")
    (tmp_path / "rdflib.py").write_text("import nowhere_to_be_seen")
    monkeypatch.delitem(sys.modules, "rdflib")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"rdflib is installed but does not load: No module named .*; remove it, then "
                                        f"{cure}"):
        optional("rdflib", "a .ttl file")
