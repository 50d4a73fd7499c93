"""Fewer tokens: embedding and tokenizer cut together."""
