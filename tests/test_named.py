"""A function by its name on a command line: what is found, and one sentence for each way to name it wrongly."""
import sys

import pytest

from pyllama.errors import UserError
from pyllama.testing.named import find, found_in


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a file that imports its neighbor when it is imported, and another when a function runs."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/neighbor_of_mine.py").write_text("two = 2\n")
    (tmp_path / "sub/late_neighbor.py").write_text("three = 3\n")
    (tmp_path / "sub/mine_to_find.py").write_text(
        "from neighbor_of_mine import two\nfrom dataclasses import dataclass\n@dataclass\nclass Pair:\n    a: int\n"
        "    def twice(self):\n        return 2 * self.a\n"
        "def double(x):\n    import late_neighbor\n    return two * x * late_neighbor.three\neps = 1e-5\n")
    return tmp_path / "sub/mine_to_find.py"


def test_a_function_of_a_module_and_of_a_file_is_found(mine):
    assert find("math:hypot")(3, 4) == 5
    assert find("sub/mine_to_find.py:double")(2) == 12
    assert find(f"{mine}:Pair.twice").__qualname__ == "Pair.twice"
    assert find("sub/mine_to_find.py:Pair")(1).twice() == 2


def test_a_module_of_the_current_folder_is_found(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    monkeypatch.delitem(sys.modules, "mine_to_find", raising=False)
    assert find("mine_to_find:double")(1) == 6
    monkeypatch.delitem(sys.modules, "mine_to_find")


def test_two_functions_of_a_file_share_their_module_and_a_changed_file_is_read_again(mine):
    module, _ = found_in(f"{mine}:double")
    assert found_in(f"{mine}:eps") == (module, 1e-5)
    mine.write_text("def double(x):\n    return 7\n")
    assert find(f"{mine}:double")(2) == 7


def test_a_file_with_the_name_of_an_imported_module_leaves_that_module_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "json.py").write_text("def dumps(x):\n    return 'mine'\n")
    import json
    assert find(f"{tmp_path}/json.py:dumps")(1) == "mine"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(("name", "sentence"), [
    ("sub/mine_to_find.py:doubel", "mine_to_find has no 'doubel'; did you mean double?"),
    ("sub/mine_to_find.py:zzz", "mine_to_find has no 'zzz'; its functions are Pair, dataclass, double"),
    ("sub/mine_to_find.py:eps", "sub/mine_to_find.py:eps is a float, not a function; name a function of mine_to_find"),
    ("sub/mine_to_fnd.py:f", "the file sub/mine_to_fnd.py does not exist; did you mean sub/mine_to_find.py?"),
    ("nowhere/mine.py:f", "the file nowhere/mine.py does not exist; there is no folder nowhere, so check the path"),
    ("no_such_module_here:f", "there is no module 'no_such_module_here'; run in the folder that contains it, or write "
                              "path/file.py:function"),
    ("json.no_such_part:f", "there is no module 'json.no_such_part'; run in the folder that contains it, or write "
                            "path/file.py:function"),
    ("sub/mine_to_find.py:double.back", "mine_to_find:double is a function, and what it defines exists only while it "
                                        "runs; define 'back' outside of it, or name mine_to_find:double"),
    ("math:hypot:f", "'math:hypot:f' has two colons; write module:function or path/file.py:function"),
    (":f", "':f' does not name a function; write module:function or path/file.py:function"),
    ("math:", "'math:' does not name a function; write module:function or path/file.py:function"),
])
def test_a_wrong_name_is_one_sentence(mine, name, sentence):
    with pytest.raises(UserError) as error:
        find(name)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("text", "sentence"), [
    ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero (line 2 of broken_one.py); fix that first"),
    ("def f(:\n", "invalid syntax (line 1 of broken_one.py); fix that first"),
    ("import no_such_package_q\n",
     "ModuleNotFoundError: No module named 'no_such_package_q' (line 1 of broken_one.py); fix that first"),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3 (line 2 of broken_one.py); fix that first"),
    ("from . import other\n", "ImportError: attempted relative import with no known parent package (line 1 of "
                              "broken_one.py); write package.broken_one:function"),
])
def test_a_file_that_cannot_be_imported_names_the_cause_and_its_line(tmp_path, monkeypatch, text, sentence):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "broken_one.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        find(f"{path}:f")
    assert str(error.value) == f"{path} cannot be imported: {sentence}"
    monkeypatch.chdir(tmp_path)
    if "relative" not in sentence:
        with pytest.raises(UserError) as error:
            find("broken_one:f")
        assert str(error.value) == f"broken_one cannot be imported: {sentence}"
