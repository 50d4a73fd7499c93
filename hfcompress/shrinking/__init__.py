"""Structured pruning: smaller matrices instead of zeros."""
