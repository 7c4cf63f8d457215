"""One module a derivation, named after the op or the part of a model that it derives."""
