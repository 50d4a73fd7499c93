"""Attention heads and feed-forward neurons."""
