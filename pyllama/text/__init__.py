"""Text and what is made of it: documents, tokenizers, tokens, corruption, n-gram counts, readability."""
