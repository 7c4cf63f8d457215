"""pyllama.testing beside other gradient checkers, and on functions of other libraries."""
