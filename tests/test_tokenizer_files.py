"""A tokenizer's files say what its tokens are for, as transformers writes and reads them."""
import json
from types import SimpleNamespace

import pytest
import tokenizers
from tokenizers import models

import pyllama
from pyllama.errors import UserError
from pyllama.text import frames, special
from pyllama.text.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat", "a rat"]
UNUSUAL = ["[EOS]", "<|im_start|>", "<|im_end|>", "<blank>"]


def settings_of(tokenizer, **options):
    return json.loads(tokenizer.files(**options)["tokenizer_config.json"])


# Roles of special tokens

def test_a_tokenizer_says_the_roles_of_its_special_tokens_and_a_class_that_changes_nothing():
    learned = settings_of(special.byte_pairs(TEXTS, 300, ["<mask>", "<e1>"]))
    roles = {role: token for role, token in learned.items() if role.endswith("_token")}
    assert roles == {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    assert learned["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert learned["clean_up_tokenization_spaces"] is False             # else decoding turns "a ." into "a."
    assert not any(role.endswith("_token") for role in settings_of(Tokenizer.bytes()))


@pytest.mark.parametrize(("types", "inputs"), [(False, ["input_ids", "attention_mask"]),
                                               (True, ["input_ids", "token_type_ids", "attention_mask"])])
def test_only_a_model_with_token_types_is_given_them(types, inputs):
    assert settings_of(Tokenizer.bytes(), types=types)["model_input_names"] == inputs


@pytest.mark.parametrize("place", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("spelling", [str, lambda token: {"content": token, "special": True, "lstrip": False}])
def test_the_files_beside_a_tokenizer_say_which_token_ends_a_text(place, spelling, tmp_path):
    Tokenizer.byte_pairs(TEXTS, 300, UNUSUAL).save(tmp_path)
    assert Tokenizer.load(tmp_path).eos_id == 0                         # [EOS], by its name
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / place).write_text(json.dumps({"eos_token": spelling("<|im_end|>"), "bos_token": spelling("<blank>"),
                                              "pad_token": None}))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert (loaded.eos_id, loaded.bos_id, loaded.pad_id) == (2, 3, None)
    loaded.save(tmp_path / "again")
    assert (Tokenizer.load(tmp_path / "again").eos_id, settings_of(loaded)["eos_token"]) == (2, "<|im_end|>")


def test_a_named_token_that_the_vocabulary_lacks_has_no_role(tmp_path):
    Tokenizer.byte_pairs(TEXTS, 300, ["</s>"]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|absent|>", "pad_token": "<|absent|>"}')
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.eos_id, loaded.pad_id) == (0, None)


def test_a_file_with_another_name_does_not_take_the_settings_of_the_folder(tmp_path):
    Tokenizer.byte_pairs(TEXTS, 300, UNUSUAL).save(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert Tokenizer.load(tmp_path / "mine.json").eos_id == 0


def test_a_chat_template_is_kept_and_a_file_of_its_own_comes_first(tmp_path):
    Tokenizer.bytes().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old", "model_max_length": 7, "auto_map": {}}')
    assert Tokenizer.load(tmp_path).settings["chat_template"] == "old"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.settings["chat_template"] == "{{ messages }}"
    kept = settings_of(loaded)
    assert (kept["chat_template"], kept["model_max_length"]) == ("{{ messages }}", 7)
    assert "auto_map" not in kept                                       # it names Python code of the other folder


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\udcff"])
def test_settings_that_cannot_be_read_are_refused(content, tmp_path):
    Tokenizer.bytes().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("content", "reason"), [
    (b"{", "tokenizers library can read: EOF while parsing"), (b'{"a": "\xff"}', "because it is not UTF-8")])
def test_a_tokenizer_that_cannot_be_read_is_refused_with_the_reason(content, reason, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"tokenizer\.json is not a tokenizer\.json,? .*{reason}"):
        Tokenizer.load(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_not_part_of_a_file(name, tmp_path):
    Tokenizer.byte_pairs(TEXTS, 300).save(tmp_path)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert Tokenizer.load(tmp_path).eos_id == 0


# The frame: special tokens around a text

@pytest.mark.parametrize(("tokens", "end", "single", "pair"), [
    (("<s>", "</s>"), True, [[0], [1]], [[0], [1], [1]]),
    (("<s>", "</s>"), False, [[0], []], [[0], [], []]),
    (("<|endoftext|>",), True, [[0], [0]], [[0], [0], [0]]),            # GPT-2's is both
    (("[EOS]",), True, [[], [0]], [[], [0], [0]]),
    (("[BOS]",), True, [[0], []], [[0], [], []]),
    ((), True, [[], []], [[], [], []])])
def test_a_frame_is_the_start_token_and_the_end_token_behind_each_text(tokens, end, single, pair):
    framed = special.framed(Tokenizer.byte_pairs(TEXTS, 300, tokens), end)
    assert (special.around(framed), special.around(framed, texts=2)) == (single, pair)
    body = framed.encode("the cat").tolist()
    assert framed.encode("the cat", add_special_tokens=True).tolist() == [*single[0], *body, *single[1]]
    both = framed.rust.encode("the cat", "the cat")
    assert both.ids == [*pair[0], *body, *pair[1], *body, *pair[2]]
    assert both.type_ids == [0] * len([*pair[0], *body, *pair[1]]) + [1] * len([*body, *pair[2]])
    assert special.framed(framed) is framed


def test_the_characters_of_a_framed_byte_level_token_are_without_its_space():
    """transformers takes the start and the end of an entity or an answer from them."""
    framed = special.framed(special.byte_pairs(["in Maine"] * 9, 300))
    encoding = framed.rust.encode("in Maine,")
    assert encoding.offsets == [(0, 0), (0, 2), (3, 8), (8, 9), (0, 0)]


def test_a_frame_leaves_the_original_and_the_rest_of_a_post_processor_alone():
    plain = Tokenizer.byte_pairs(TEXTS, 300, ["<s>", "</s>"])
    plain.rust.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    framed = special.framed(plain)
    assert plain.encode("a", add_special_tokens=True).size == 1
    assert framed.rust.encode("a  cat").offsets[2] == plain.rust.encode("a  cat").offsets[1]


def test_a_frame_can_be_seen_though_no_text_can_be_encoded():
    mute = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1}, []))
    mute.add_special_tokens(["<s>", "</s>"])
    assert special.around(special.framed(Tokenizer(mute))) == [[0], [1]]


@pytest.mark.parametrize(("settings", "before", "wanted"), [
    ({"add_bos_token": True}, (None, None), [[0], []]),
    ({"add_bos_token": True, "add_eos_token": True}, (None, None), [[0], [1]]),
    ({"add_bos_token": True, "add_eos_token": False}, (None, "</s>"), [[0], []]),
    ({"add_bos_token": False}, ("<s>", None), [[], []]),
    ({"add_eos_token": True}, ("<s>", None), [[0], [1]]),
    ({"add_bos_token": None}, ("<s>", "</s>"), [[0], [1]]),
    ({"add_bos_token": True, "bos_token": "[CLS]"}, (None, None), [[2], []]),
    ({"add_bos_token": False}, ("[CLS]", "</s>"), [[2], [1]]),          # not the start token: BERT's are its own matter
])
def test_settings_decide_about_the_start_and_end_tokens_around_a_text(settings, before, wanted, tmp_path):
    plain = Tokenizer.byte_pairs(TEXTS, 300, ["<s>", "</s>", "[CLS]"]).rust
    Tokenizer(frames.framed(plain, *before)).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = Tokenizer.load(tmp_path)
    assert special.around(loaded) == wanted
    loaded.save(tmp_path / "again")
    assert special.around(Tokenizer.load(tmp_path / "again")) == wanted


def test_a_model_says_which_token_ends_a_text_where_the_tokenizer_does_not():
    tokenizer = Tokenizer.byte_pairs(TEXTS, 300, ["<|stop|>", "<|go|>", "<|empty|>"])
    config = SimpleNamespace(eos_token_id=[0, 1], bos_token_id=1, pad_token_id=300)
    known = special.knowing(tokenizer, config)
    assert (known.eos_id, known.bos_id, known.pad_id) == (0, 1, None)
    assert special.frame(known).behind == [0]
    ordinary = SimpleNamespace(eos_token_id=65, bos_token_id=None)      # not a special token
    assert special.knowing(tokenizer, ordinary) is tokenizer
    named = Tokenizer.byte_pairs(TEXTS, 300, ["<|stop|>", "</s>"])
    assert special.knowing(named, config).eos_id == 1


def test_a_model_of_a_task_is_saved_with_the_frame_and_the_limit_of_its_texts(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
    model = pyllama.create("bert", tmp_path / "rows.csv", tokenizer="bpe", vocab_size=300, hidden_size=8)
    settings = pyllama.Settings(max_steps=1, batch_size=2, warmup_steps=0)
    assert len([*pyllama.finetune(model, tmp_path / "rows.csv", "classify", settings, max_length=12)]) == 1
    model.save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    assert saved.settings["model_max_length"] == 12
    assert saved.settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    ids, = special.encode(saved, ["a fine film"])
    assert saved.rust.encode("a fine film").ids == ids.tolist()
    assert [ids[0], ids[-1]] == [saved.bos_id, saved.eos_id]
