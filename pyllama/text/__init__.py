"""Text: documents, tokenizers, tokens, corruption, n-gram models, readability."""
