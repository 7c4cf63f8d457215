"""Models whose next token is a table, so that every text is known: attention and feed-forward give 0, the embedding is
the identity, and the output matrix maps each token to the next."""
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pyllama import params
from pyllama.models import llama
from pyllama.pretrained import Model
from pyllama.text.tokenizer import Tokenizer

TOKENS = ("<|endoftext|>", "<|im_end|>", *"abcdefghi-€")
SPECIAL = TOKENS[:2]
CHAIN = {"a": "b", "b": "c", "c": "<|im_end|>", "<|im_end|>": "d", "d": "e", "e": "f", "f": "<|endoftext|>",
         "<|endoftext|>": "g", "g": "h", "h": "i", "i": "g", "-": "-"}


def tokenizer():
    """One token for each character, and the special tokens."""
    rust = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}))
    rust.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    rust.decoder = decoders.Fuse()
    rust.add_special_tokens(list(SPECIAL))
    return Tokenizer(rust)


def model(chain=CHAIN, **generation_config):
    """A LLaMA that writes the chain; after a token without a successor, the one with the lowest id.

    The scores are 5 for the successor, and fall slowly from 0 with the id, so that the order of the others is known.
    """
    V = len(TOKENS)
    c = llama.LlamaConfig(vocab_size=V, hidden_size=V + V % 2, intermediate_size=4, num_hidden_layers=1,
                          num_attention_heads=1, max_position_embeddings=16, eos_token_id=0)
    p = params.rebuild(llama.init(c), (np.zeros_like(a) for _, a in params.leaves(llama.init(c))))
    p["model"]["norm"]["weight"][:] = 1
    p["model"]["embed_tokens"]["weight"][:, :V] = np.eye(V)
    head = p["lm_head"]["weight"]
    head[:] = -0.01 * np.arange(V)[:, None]
    for token, following in chain.items():
        head[TOKENS.index(following), TOKENS.index(token)] = 5
    return Model(c, p, tokenizer(), generation_config=generation_config)
