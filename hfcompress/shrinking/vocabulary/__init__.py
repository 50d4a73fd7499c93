"""Tokens that a corpus does not use leave the embedding."""
