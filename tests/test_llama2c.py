"""llama2.c's files: trained weights give known results, and every number survives a round trip."""
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama import params
from pyllama.errors import UserError
from pyllama.formats import llama2c
from pyllama.generation import GenerationConfig, generate, stream
from pyllama.models import llama
from tests.shared import SHARED, needs

STORIES = SHARED / "fixtures/stories260K"
TEXTS = SHARED / "data/quickstart/lm_en_tinystories.txt"
SHAKESPEARE = SHARED / "data/tinyshakespeare/input.txt"


@pytest.fixture(scope="module")
def trained():
    """(config, parameters, tokenizer) of stories260K."""
    return *llama2c.read(STORIES / "stories260K.bin"), llama2c.read_tokenizer(STORIES / "tok512.bin")


def stories():
    return [story.strip() for story in TEXTS.read_text().split("<|endoftext|>") if story.strip()]


# Trained weights

@needs(STORIES)
def test_the_trained_model_tells_its_story(trained):
    c, p, tokenizer = trained
    story = generate(p, c, [[]], tokenizer, GenerationConfig(max_new_tokens=40))[0]
    assert story.text.startswith("Once upon a time, there was a little girl named Lily.")
    assert "".join(stream(p, c, [], tokenizer, GenerationConfig(max_new_tokens=40))) == story.text


@needs(STORIES)
def test_a_continuation_joins_its_prompt(trained):
    """SentencePiece drops the space of a first word: only a prompt's first word is one."""
    c, p, tokenizer = trained
    prompt = [1, *tokenizer.encode("Once upon a time")]
    result, = generate(p, c, [prompt], tokenizer, GenerationConfig(max_new_tokens=8))
    assert result.text == ", there was a little girl"
    result, = generate(p, c, [prompt[:3]], tokenizer, GenerationConfig(max_new_tokens=8))
    assert tokenizer.decode(prompt[:3]) + result.text == tokenizer.decode(prompt[:3] + result.ids)


def mean_nll(c, p, windows):
    """Mean negative log-likelihood in nats of every token but the first of each window."""
    total = sum(float(llama.loss(ids[None], ids[None], p, c)[0]) * (ids.size - 1) for ids in windows)
    return total / sum(ids.size - 1 for ids in windows)


@needs(STORIES, TEXTS)
def test_the_trained_model_knows_stories(trained):
    """The first 10 stories, each from <s>, 3,521 tokens.  All 462 give 1.305; random weights log 512 = 6.24."""
    c, p, tokenizer = trained
    windows = [np.array([1, *tokenizer.encode(story)])[:512] for story in stories()[:10]]
    assert mean_nll(c, p, windows) == pytest.approx(1.25924, abs=2e-5)           # float64 gives 1.259241


@needs(STORIES, SHAKESPEARE)
def test_the_trained_model_does_not_know_shakespeare(trained):
    """Of the whole text cut into windows of <s> and 511 tokens, every 200th.  All 1,357 windows give 4.814."""
    c, p, tokenizer = trained
    ids = tokenizer.encode(SHAKESPEARE.read_text()).astype(int)
    windows = [np.array([1, *ids[start:start + 511]]) for start in range(0, ids.size, 511 * 200)]
    assert mean_nll(c, p, windows) == pytest.approx(4.77238, abs=2e-5)           # float64 gives 4.772376


# The tokenizer

def slow_encode(text, pieces):
    """llama2.c's rule as it stands: while two neighbors make a piece, join those with the highest score, leftmost."""
    at = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens = []
    for character in " " + text if text else "":
        tokens += [at[character]] if character in at else [byte + 3 for byte in character.encode()]
    while True:
        best, where = -np.inf, None
        for i, (left, right) in enumerate(pairwise(tokens)):
            joined = at.get(pieces[left][0] + pieces[right][0])
            if joined is not None and pieces[joined][1] > best:
                best, where, into = pieces[joined][1], i, joined
        if where is None:
            return tokens
        tokens[where:where + 2] = [into]


def pieces_of(path):
    data, at, pieces = path.read_bytes(), 4, []
    while at < len(data):
        score, n = struct.unpack_from("<fi", data, at)
        pieces.append((data[at + 8:at + 8 + n].decode(), score))
        at += 8 + n
    return pieces


def write_pieces(path, pieces, longest=None):
    encoded = [(piece.encode(), score) for piece, score in pieces]
    longest = max(len(piece) for piece, _ in encoded) if longest is None else longest
    path.write_bytes(struct.pack("<I", longest) + b"".join(struct.pack("<fi", score, len(piece)) + piece
                                                            for piece, score in encoded))
    return path


FIXED = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]


@st.composite
def vocabularies(draw):
    """Scored pieces over few letters, so that they overlap in many ways; the space is always one, as in real ones."""
    words = sorted({" ", *draw(st.sets(st.text("ab é", min_size=1, max_size=5), max_size=25))})
    return [(word, -float(rank)) for word, rank in zip(words, draw(st.permutations(range(len(words)))), strict=True)]


@given(scored=vocabularies(), text=st.text("ab é€", max_size=12))
def test_encoding_is_the_greedy_joining_by_scores_for_any_vocabulary(tmp_path_factory, scored, text):
    pieces = [*FIXED, *scored]
    tokenizer = llama2c.read_tokenizer(write_pieces(tmp_path_factory.getbasetemp() / "tokenizer.bin", pieces))
    assert tokenizer.encode(text).tolist() == slow_encode(text, pieces)


@needs(STORIES)
@example(text="  two spaces before, and one behind ")
@given(text=st.text().filter(lambda text: "▁" not in text) | st.text(" aehnost.,\n“é—"))       # ▁ stands for the space
def test_encoding_is_the_greedy_joining_by_scores_for_the_trained_vocabulary(text, trained):
    ids = trained[2].encode(text)
    assert ids.tolist() == slow_encode(text, pieces_of(STORIES / "tok512.bin"))
    assert trained[2].decode(ids) == text


@needs(STORIES, TEXTS)
def test_stories_are_encoded_by_greedy_joining(trained):
    pieces = pieces_of(STORIES / "tok512.bin")
    for story in stories()[::20]:
        assert trained[2].encode(story[:500]).tolist() == slow_encode(story[:500], pieces)


@needs(STORIES, TEXTS)
def test_the_tokenizer_gives_the_stories_back(trained):
    tokenizer = trained[2]
    for story in stories():
        assert tokenizer.decode(tokenizer.encode(story)) == story
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 512)
    assert tokenizer.encode("a", add_special_tokens=True)[0] == 1


def test_a_tokenizer_without_bytes_encodes_other_characters_as_unknown(tmp_path):
    special = [(piece, 0.0) for piece in ("<unk>", "\n<s>\n", "\n</s>\n")]
    path = write_pieces(tmp_path / "tokenizer.bin", [*special, (" ", -1.0), ("a", -2.0), ("b", -3.0), ("ab", -0.5)])
    tokenizer = llama2c.read_tokenizer(path)
    assert tokenizer.encode("ab 日本 b", add_special_tokens=True).tolist() == [1, 3, 6, 3, 0, 3, 5]
    assert tokenizer.decode([3, 6, 3, 5]) == "ab b"
    assert tokenizer.vocab_size == 7


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data[:-1], "piece 259 would have 1 bytes"),
    (lambda data: data[:-7], "unpack"),
    (lambda data: b"", "unpack"),
    (lambda data: data[4:], "piece 0 would have"),
    (lambda data: struct.pack("<I", 0) + data[4:], "piece 0 would have 5 bytes"),
    (lambda data: data.replace(b"<0x41>", b"<0x42>"), "ids 3 to 258 are not the 256 bytes"),
    (lambda data: data[:-1] + b"\xff", "can't decode byte 0xff"),
    (lambda data: data + data[-9:], "a piece occurs twice"),
], ids=["cut", "cut in a header", "empty", "no longest", "longer than the longest", "bytes", "not UTF-8", "twice"])
def test_a_file_that_is_not_a_tokenizer_is_named(tmp_path, change, message):
    path = write_pieces(tmp_path / "tokenizer.bin", [*FIXED, ("a", -1.0)])
    assert llama2c.read_tokenizer(path).decode([259]) == "a"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=f"not a llama2.c tokenizer, or is truncated: .*{message}"):
        llama2c.read_tokenizer(path)


# The model

def small(dtype="float32", **changes):
    """(config, parameters), every number different."""
    c = llama.LlamaConfig(**dict(vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=3,
                                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=9,
                                 rms_norm_eps=1e-5, rope_interleaved=True, bos_token_id=1,
                                 eos_token_id=[1, 2]) | changes)
    tree, rng = llama.init(c, 0, dtype), np.random.default_rng(1)
    return c, params.rebuild(tree, (rng.standard_normal(a.shape).astype(dtype) for _, a in params.leaves(tree)))


def assert_equal(tree, expected):
    tree, expected = dict(params.leaves(tree)), dict(params.leaves(expected))
    assert list(tree) == list(expected), "the same names in the same order: a flat vector depends on it"
    for name in expected:
        np.testing.assert_array_equal(tree[name], expected[name], err_msg=name)
        assert tree[name].dtype == expected[name].dtype


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_as_it_was_written(tmp_path, tied):
    c, p = small(tie_word_embeddings=tied)
    llama2c.write(tmp_path / "model.bin", c, p)
    again, q = llama2c.read(tmp_path / "model.bin")
    assert again == c
    assert_equal(q, p)
    assert q["model"]["norm"]["weight"].flags.writeable, "an optimizer works in place"
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_a_model_with_halves_is_written_as_pairs(tmp_path):
    c, p = small(rope_interleaved=False)
    llama2c.write(tmp_path / "model.bin", c, p)
    q, again = llama2c.to_halves(*reversed(llama2c.read(tmp_path / "model.bin")))
    assert again == c
    assert_equal(q, p)


@needs(STORIES)
def test_the_trained_file_is_written_byte_for_byte(tmp_path, trained):
    """But for the angles, which nobody reads: theirs were rounded on the way."""
    c, p, _ = trained
    llama2c.write(tmp_path / "model.bin", c, p)
    ours, theirs = (tmp_path / "model.bin").read_bytes(), (STORIES / "stories260K.bin").read_bytes()
    angles = 2 * c.max_position_embeddings * c.head_width // 2 * 4
    assert ours[:-angles] == theirs[:-angles]
    np.testing.assert_allclose(*(np.frombuffer(data[-angles:], "<f4") for data in (ours, theirs)), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_version_1_is_read(tmp_path, tied):
    """Written here by the order in which export.py lists the tensors."""
    c, p = small(tie_word_embeddings=tied)
    layers = p["model"]["layers"]
    tensors = [*(layer["input_layernorm"] for layer in layers),
               *(layer["post_attention_layernorm"] for layer in layers),
               p["model"]["norm"], p["model"]["embed_tokens"],
               *(layer["self_attn"][f"{name}_proj"] for name in "qkvo" for layer in layers),
               *(layer["mlp"][f"{name}_proj"] for name in ("gate", "down", "up") for layer in layers),
               *([] if tied else [p["lm_head"]])]
    header = struct.pack("<Ii7i?", 0x616b3432, 1, 16, 12, 3, 4, 2, 11, 9, tied).ljust(256, b"\0")
    path = tmp_path / "model.bin"
    path.write_bytes(header + b"".join(tensor["weight"].tobytes() for tensor in tensors))
    again, q = llama2c.read(path)
    assert again == c
    assert_equal(q, p)
    path.write_bytes(struct.pack("<Ii", 0x616b3432, 2).ljust(300, b"\0"))
    with pytest.raises(UserError, match=r"version 2, .*export it with --version 1"):
        llama2c.read(path)


@pytest.mark.parametrize("heads", [dict(num_attention_heads=4, num_key_value_heads=4),
                                   dict(num_attention_heads=4, num_key_value_heads=2),
                                   dict(num_attention_heads=2, num_key_value_heads=1, attention_bias=True),
                                   dict(num_attention_heads=6, num_key_value_heads=3, head_dim=4)])
def test_halves_have_the_scores_of_pairs(heads):
    """1e-12 of the largest: three layers of sums of at most 16 terms, each rounded by 1e-16, grow 100 times."""
    c, p = small("float64", **heads)
    ids = np.random.default_rng(2).integers(0, c.vocab_size, (2, 9))
    q, halves = llama2c.to_halves(p, c)
    z, expected = llama.logits(ids, q, halves)[0], llama.logits(ids, p, c)[0]
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert np.abs(llama.logits(ids, p, halves)[0] - expected).max() > 0.1, "without the permutation it is another model"
    assert llama2c.to_halves(q, halves) == (q, halves)


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data[:-4], r"model.bin has [\d,]+ bytes, but its header, Header\(dim=16.*, implies [\d,]+; it is "
                             r"truncated"),
    (lambda data: data + b"\0", r"implies [\d,]+; it is truncated or not a llama2.c model"),
    (lambda data: data[:20], "has 20 bytes, but the header of a llama2.c model has 28"),
    (lambda data: b"", "has 0 bytes"),
    (lambda data: b"Once upon a time, there was a little girl named Lily.",
     "not a llama2.c model: its header .*; give the folder of a model, or a .bin file"),
    (lambda data: struct.pack("<7i", *[2**30] * 4, 1, 2**30, 2**30), "not a llama2.c model: its header"),
    (lambda data: struct.pack("<7i", *[2**30] * 3, 2**29, 1, 2**30, 2**30), "implies"),
    (lambda data: data[:16] + struct.pack("<i", 3) + data[20:], "not a llama2.c model"),
], ids=["cut", "too long", "cut in the header", "empty", "a text", "nonsense", "beyond int64", "3 groups of 4 heads"])
def test_a_file_that_is_not_a_model_is_named(tmp_path, change, message):
    path = tmp_path / "model.bin"
    llama2c.write(path, *small())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        llama2c.read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for read in (llama2c.read, llama2c.read_tokenizer):
        with pytest.raises(UserError, match=r"cannot read .*absent.bin: No such file"):
            read(tmp_path / "absent.bin")
        with pytest.raises(UserError, match="Is a directory"):
            read(tmp_path)


@pytest.mark.parametrize("changes", [dict(rope_theta=5e5), dict(rms_norm_eps=1e-6), dict(sliding_window=4),
                                     dict(attention_bias=True), dict(mlp_bias=True), dict(head_dim=6),
                                     dict(hidden_size=18, head_dim=4),
                                     dict(rope_scaling={"rope_type": "linear", "factor": 2.0})])
def test_what_the_format_cannot_say_is_refused_and_the_old_file_kept(tmp_path, changes):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=r"requires .*Hugging Face files instead"):
        llama2c.write(path, *small(**changes))
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
