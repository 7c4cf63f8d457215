"""Folders that other programs wrote: what is read as in transformers, with a note, and what is refused by name."""
import numpy as np
import pytest

from pyllama import params, pretrained
from pyllama.errors import UserError
from pyllama.models import MODELS, bart, llama, llama_config
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import optim
from tests.test_models import IDS, SMALL, small
from tests.test_pretrained import folder

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL, "num_key_value_heads": 2}


def tensors_of(c):
    return dict(params.leaves(c.model.init(c)))


def read(tmp_path, changes=None, tensors=None, **options):
    """The model of a folder of a LLaMA with these changes to its config.json and these tensors beside its own."""
    c = llama.LlamaConfig(**SMALL, num_key_value_heads=2)
    return pretrained.load(folder(tmp_path, LLAMA | (changes or {}), tensors_of(c) | (tensors or {})), **options)


def test_keys_that_are_absent_have_the_defaults_of_transformers(tmp_path):
    c = read(tmp_path).config
    assert (c.rms_norm_eps, c.rope_theta, c.bos_token_id, c.eos_token_id) == (1e-6, 10000.0, 1, 2)
    stored = {key: value for key, value in LLAMA.items() if key != "max_position_embeddings"}
    assert llama.LlamaConfig.from_dict(stored).max_position_embeddings == 2048
    assert llama_config.MistralConfig.from_dict({**stored, "model_type": "mistral"}).sliding_window == 4096


def test_a_window_of_a_llama_is_ignored_with_a_note(tmp_path):
    model = read(tmp_path, {"sliding_window": 3})
    assert "sliding_window 3 of config.json is ignored" in model.notes[0]
    assert model.config.window(0) is None
    assert model.config.to_dict()["model_type"] == "llama"


def test_a_window_of_a_run_of_0_1_0_is_kept_and_saved_as_a_mistral(tmp_path):
    ours = llama.LlamaConfig(**SMALL, num_key_value_heads=2, sliding_window=3)
    model = read(tmp_path, ours.to_dict() | {"model_type": "llama"})
    assert model.config.window(0) == 3
    assert "config.json says llama" in model.notes[0]
    model.save(tmp_path / "again")
    again = pretrained.load(tmp_path / "again")
    assert (again.config.TYPE, again.config.window(0), again.notes) == ("mistral", 3, ())
    np.testing.assert_array_equal(again.logits(IDS)[0], model.logits(IDS)[0])


@pytest.mark.parametrize("changes", [{"rope_interleaved": True}, {"sliding_window": 3, "attention_bias": True}])
def test_what_transformers_cannot_compute_has_a_type_that_it_refuses(changes, tmp_path):
    c = llama.LlamaConfig(**SMALL, **changes)
    stored = c.to_dict()
    assert stored["model_type"] == "pyllama-llama"
    model = pretrained.load(folder(tmp_path, stored, tensors_of(c)))
    assert model.config.to_dict() == stored
    assert model.notes == ()


@pytest.mark.parametrize("extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.9.mlp.up_proj.weight",
                                   "score.weight", "position_ids"])
def test_tensors_that_are_not_needed_are_a_note(extra, tmp_path):
    assert read(tmp_path, tensors={extra: np.ones(2)}).notes == (f"not used: {extra}",)


def test_the_copy_of_a_tied_matrix_that_differs_unties_it(tmp_path):
    head = np.random.default_rng(0).standard_normal((19, 12)).astype("float32")
    model = read(tmp_path, {"tie_word_embeddings": True}, {"lm_head.weight": head})
    assert model.notes == ("not tied, because they differ from the token embeddings: lm_head.weight",)
    assert model.config.to_dict()["tie_word_embeddings"] is False
    np.testing.assert_array_equal(model.params["lm_head"]["weight"], head)


def test_a_tied_matrix_may_be_stored_as_its_copy_alone(tmp_path):
    c = llama.LlamaConfig(**SMALL, tie_word_embeddings=True)
    tensors = tensors_of(c)
    copy = {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}
    model = pretrained.load(folder(tmp_path, c.to_dict(), tensors | copy))
    np.testing.assert_array_equal(model.params["model"]["embed_tokens"]["weight"], copy["lm_head.weight"])
    assert model.config.tie_word_embeddings


def randomly(tensors):
    """Other entries for tensors: every one different."""
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(a.shape) for name, a in tensors.items()}


SEQ2SEQ = dict(vocab_size=19, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
               decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_position_embeddings=7)
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("stored", [{}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("absent", TABLES)
def test_a_bart_may_have_three_tables(stored, absent, tmp_path):
    """The absent one is the shared one, where the others differ from it."""
    tensors = randomly(tensors_of(bart.BartConfig(**SEQ2SEQ)))
    shared = tensors["model.shared.weight"]
    tables = {name: shared if name == absent else shared + i for i, name in enumerate(TABLES)}
    given = tensors | {name: a for name, a in tables.items() if name != absent}
    if stored and absent == "lm_head.weight":
        given[absent] = tables[absent]                          # transformers needs it
    model = pretrained.load(folder(tmp_path, {"model_type": "bart", **SEQ2SEQ, **stored}, given), dtype="float64")
    got = dict(params.leaves(model.params))
    for name, a in tables.items():
        np.testing.assert_array_equal(got[name], a, err_msg=name)
    assert bool(model.notes) == (not stored)


def test_a_bart_from_scratch_is_an_mbart(tmp_path):
    c = small("bart", "seq2seq")
    stored = c.to_dict()
    assert (stored["model_type"], stored["architectures"]) == ("mbart", ["MBartForConditionalGeneration"])
    assert stored["init_std"] == 0.02
    assert c.decoder_start_token_id == c.eos_token_id


@pytest.mark.parametrize(("head", "kind"), [("seq2seq", "mbart"), ("classification", "pyllama-bart")])
def test_a_pre_norm_bart_of_0_1_0_computes_what_it_did_and_is_saved_under_another_type(head, kind, tmp_path):
    """transformers starts the decoder of an mBART that classifies with another token."""
    c = bart.BartConfig(**SEQ2SEQ, norm_first=True, decoder_start_token_id=1, head=head)
    tensors = randomly(tensors_of(c))
    model = pretrained.load(folder(tmp_path, c.to_dict() | {"model_type": "bart"}, tensors))
    assert f"saved again, the model is of type {kind}" in model.notes[0]
    assert model.config == c.from_dict(c.to_dict() | {"model_type": "bart"})
    model.save(tmp_path / "again")
    again = pretrained.load(tmp_path / "again")
    assert again.notes == ()
    ids = np.array([[1, 5, 7, 2]])
    np.testing.assert_array_equal(again.logits(ids)[0], model.logits(ids)[0])


def test_an_mbart_that_classifies_starts_its_decoder_with_the_last_token():
    c = bart.MBartConfig(**SEQ2SEQ, head="classification")
    ids = np.array([[1, 5, 7, 2], [1, 9, 2, 0]])
    read = bart.decoder_input(ids, c, mask=np.array([[1, 1, 1, 1], [1, 1, 1, 0]]))
    assert read.tolist() == [[2, 1, 5, 7], [2, 1, 9, 2]]


def test_the_bias_of_the_scores_does_not_decay():
    """It is a bias, though its shape is [1 V]."""
    tree = {"weight": np.ones((2, 3)), "final_logits_bias": np.ones((1, 3)), "table": np.ones((3, 1))}
    assert optim.matrix_slices(tree) == [slice(0, 6), slice(9, 12)]


def test_a_body_without_a_head_is_fine_tuned_and_not_read_as_a_writer(tmp_path):
    c = llama.LlamaConfig(**SMALL, tie_word_embeddings=True)
    body = {name.removeprefix("model."): a for name, a in tensors_of(c).items()}
    path = folder(tmp_path, LLAMA | {"architectures": ["LlamaModel"], "num_key_value_heads": 6}, body)
    with pytest.raises(UserError, match=r"the weights have no lm_head\.weight, which the head 'lm' of a llama needs"):
        pretrained.load(path)
    model = pretrained.load(path, change=lambda c: type(c)(**SMALL, head="classification"))
    assert model.notes == ("initialized at random: score.weight",)


def test_a_token_that_transformers_added_to_the_tokenizer_is_a_note(tmp_path):
    c = llama.LlamaConfig(**SMALL)
    path = folder(tmp_path, c.to_dict(), tensors_of(c))
    tokenizer = Tokenizer.characters("abcdefghijklmnopqrs")
    tokenizer.rust.add_special_tokens(["<|endoftext|>"])
    (path / "tokenizer.json").write_text(tokenizer.rust.to_str())
    note, = pretrained.load(path).notes
    assert note == ("the model does not know these tokens of the tokenizer, so texts must not have them: "
                    "<|endoftext|>")
    (path / "tokenizer.json").write_text(Tokenizer.characters("abcdefghijklmnopqrst").rust.to_str())
    with pytest.raises(UserError, match="the tokenizer has 20 tokens but the model's vocabulary has 19"):
        pretrained.load(path)


def test_the_stored_precision_is_not_kept(tmp_path):
    stored = read(tmp_path, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}).config.to_dict()
    assert not {"dtype", "torch_dtype"} & stored.keys()


@pytest.mark.parametrize(("changes", "message"), [
    ({"architectures": ["LlamaForTokenClassification"]},
     r"contains a LlamaForTokenClassification, which is not supported; .* LlamaForCausalLM, LlamaForSequenceClass"),
    ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
     r"'t5' model \(T5ForConditionalGeneration\), which is not supported; the supported types are llama, mistral"),
    ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM', but it must be a list of names"),
    ({"eos_token_id": "0"}, "eos_token_id = '0', but it must be an id or a list of ids; fix it"),
    ({"eos_token_id": [2, 999]}, "eos_token_id = .2, 999., outside the vocabulary of 19 tokens; set it"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
     "rope_parameters for each type of layer, such as 'full_attention'"),
    ({"rope_parameters": "default"}, "rope_parameters = 'default', but it must be an object"),
    ({"model_type": "mistral", "attention_bias": True}, "a mistral has no biases to switch on with attention_bias"),
    ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types is .* for each of the 2 layers"),
])
def test_what_cannot_be_read_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, changes)


def test_a_body_that_is_not_there_is_refused_by_the_name_of_its_model(tmp_path):
    c = bart.BartConfig(**SEQ2SEQ)
    decoder = {name: a for name, a in tensors_of(c).items() if name.startswith("model.decoder.")}
    path = folder(tmp_path, {"model_type": "bart", "architectures": ["BartForCausalLM"], **SEQ2SEQ}, decoder)
    with pytest.raises(UserError, match="contains a BartForCausalLM, which is not supported; of the type bart, "):
        pretrained.load(path, change=lambda c: c)


def test_many_tensors_that_are_not_used_are_counted(tmp_path):
    note, = read(tmp_path, tensors={f"model.layers.{i}.rotary_emb.inv_freq": np.ones(2) for i in range(30)}).notes
    assert note.startswith("not used: model.layers.0.rotary_emb.inv_freq, ")
    assert note.endswith(", and 22 more")


@pytest.mark.parametrize("twin", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_a_bert_whose_output_matrix_is_not_tied_is_refused_by_the_name_of_the_copy(twin, tmp_path):
    c = small("bert", "masked_lm")
    tensors = tensors_of(c)
    other = np.ones_like(tensors[c.copies()[twin]]) * 2
    with pytest.raises(UserError, match=f"{twin} differs from .*, but in a bert they are the same"):
        pretrained.load(folder(tmp_path, c.to_dict(), tensors | {twin: other}))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_without_a_head_may_lack_its_pooler(kind, tmp_path):
    c = small(kind, "none")
    tensors = {name: a for name, a in tensors_of(c).items() if ".pooler." not in name}
    note, = pretrained.load(folder(tmp_path, c.to_dict(), tensors)).notes
    assert note.startswith(f"initialized at random: {kind}.pooler.dense.weight")


def test_usual_end_tokens_outside_a_small_vocabulary_end_nothing():
    stored = small("gpt2", "lm").to_dict() | {"eos_token_id": 50256}
    assert MODELS["gpt2"].config.from_dict(stored).eos_token_id is None


def test_dropout_that_training_does_not_apply_is_a_note_of_training(tmp_path):
    model = read(tmp_path, {"attention_dropout": 0.1})
    assert model.notes == ()
    note, = model.config.training_notes()
    assert note == "dropouts of the model that training does not apply: attention_dropout 0.1"


def test_what_is_saved_has_no_dropout_that_training_did_not_apply():
    for kind, name in (("bert", "attention_probs_dropout_prob"), ("gpt2", "attn_pdrop"),
                       ("distilbert", "attention_dropout")):
        c = small(kind, next(iter(MODELS[kind].config.HEADS)))
        assert c.to_dict()[name] == 0.0
        assert c.training_notes() == ()
