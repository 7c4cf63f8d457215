"""Fit Kneser-Ney n-gram models to the characters of a text: a baseline for a neural model to beat.

    python -m bench.ngram --data TEXT [--orders 8]

The last tenth is held out, as `pyllama train` does.
"""
import argparse
import time

import numpy as np

from pyllama.text import corpus, ngram
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import joined, split


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a text file, or python-docs")
    parser.add_argument("--orders", type=int, default=8, help="the longest n-gram")
    options = parser.parse_args()
    texts = [text for _, text in corpus.documents(options.data)]
    tokenizer = Tokenizer.characters("".join(texts))
    training, held_out = split(joined(tokenizer.encode_batch(texts)), 0.1)
    print(f"{'order':>5}  {'nats a character':>16}  {'perplexity':>10}  {'seconds to fit':>14}")
    for order in range(1, options.orders + 1):
        begin = time.perf_counter()
        model = ngram.fit(training, order, tokenizer.vocab_size)
        seconds = time.perf_counter() - begin
        loss = -model.log_probability(held_out).mean()
        print(f"{order:>5}  {loss:>16.4f}  {np.exp(loss):>10.3f}  {seconds:>14.2f}")


if __name__ == "__main__":
    main()
