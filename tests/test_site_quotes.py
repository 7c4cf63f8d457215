"""What the chapters of the site read from the sources: quoted lines, constants of kernels, recorded steps of models."""
import pytest

pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
pytest.importorskip("sympy", reason="the extra 'docs' is not installed")

TEXT = "int f() {\n    int x = 1;\n        return x;\n}\n"


def module(name):
    """A fixture: the module of this name beside the chapters."""
    @pytest.fixture(scope="module")
    def imported(site):
        return site(name)
    return imported


quotes, kernel_tables, model_tables = map(module, ("quotes", "kernel_tables", "model_tables"))


@pytest.mark.parametrize(("lines", "number"), [
    (["int f() {"], 1),
    (["int x = 1;", "    return x;"], 2),                          # without the indentation that both share
    (["    return x;", "}"], 0),                                    # their indentation differs by more
    (["return x;"], 3),
])
def test_quoted_lines_are_found_as_they_are_indented(quotes, lines, number):
    if number:
        assert quotes.place(lines, TEXT, "f.c") == number
    else:
        with pytest.raises(ValueError, match=r"f\.c does not have the quoted lines that begin with 'return x;'"):
            quotes.place(lines, TEXT, "f.c")


@pytest.mark.parametrize("lines", [["int x = 2;"], ["int f() {", "    return x;"], ["x = 1;"], ["}", "}"]])
def test_lines_that_changed_or_do_not_follow_each_other_are_gone(quotes, lines):
    with pytest.raises(ValueError, match="quote it as it is"):
        quotes.place(lines, TEXT, "f.c")


def test_a_quote_is_text_and_not_html(quotes):
    assert "a &lt; b &amp;&amp; c" in quotes.figure("f.c", 3, ["    a < b && c"])


def test_a_tile_that_does_not_fit_into_the_registers_is_refused(kernel_tables, tmp_path, monkeypatch):
    text = (kernel_tables.CPU / "tile.h").read_text("utf-8")
    monkeypatch.setattr(kernel_tables, "CPU", tmp_path)
    for old, new, complaint in (("MR = 9", "MR = 10", "does not fit"), ("MR = 9, ", "", "does not have the sizes")):
        (tmp_path / "tile.h").write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match=complaint):
            kernel_tables.tiles()


@pytest.mark.parametrize(("text", "sentence"), [
    ("/* See pyllama/ops/x.py for the derivation. */\n", ""),
    ("/* See pyllama/ops/x.py for the derivation.  One pass.  Another. */\n", "One pass."),
    ("/* See pyllama/ops/x.py for the derivation.\n *\n * (a) One\n *     pass.\n * (b) Two. */\n", "One pass."),
    ("// See pyllama/ops/x.py for the derivation.  After y.cu.\n//\n// A block for a row.  Two.\nint x;\n",
     "A block for a row."),
    ("int x;\n", ""),
])
def test_the_first_sentence_of_a_kernel(kernel_tables, tmp_path, text, sentence):
    (tmp_path / "x.c").write_text(text, "utf-8")
    assert kernel_tables.opening(tmp_path / "x.c") == sentence


@pytest.mark.parametrize(("names", "groups"), [
    ("a a b", [("a", 2), ("b", 1)]),
    ("a a b a b a b c", [("a", 1), ("ab", 3), ("c", 1)]),           # the second a begins a pair
    ("a b a b", [("a", 1), ("b", 1), ("a", 1), ("b", 1)]),          # twice is not yet a pattern
    ("", []),
])
def test_names_that_repeat_are_counted(model_tables, names, groups):
    assert [("".join(one), times) for one, times in model_tables.runs(names.split())] == groups


@pytest.mark.parametrize(("kind", "norm", "bias"), [
    ("llama", "RMSNorm, before each branch", "none"),
    ("qwen2", "RMSNorm, before each branch", "`q_proj k_proj v_proj`"),
    ("gpt2", "LayerNorm, before each branch", "all"),
    ("bert", "LayerNorm, after each residual", "all"),
    ("bart", "LayerNorm, after each residual", "all"),
])
def test_what_differs_is_read_from_a_step(model_tables, kind, norm, bias):
    texts = model_tables.row(kind)
    assert texts[0] == [norm]
    assert texts[4] == [bias]


def test_what_a_query_sees_is_read_from_a_step(model_tables):
    assert model_tables.row("mistral")[2] == ["the last 4,096 tokens"]
    assert model_tables.row("transformer")[2] == ["all tokens", "earlier tokens", "the whole source"]
