"""Does llama.cpp read our GGUF files as we do?"""
