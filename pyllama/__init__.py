"""pyllama: the LLaMA you can read, check and train."""
__version__ = "0.1.0"
