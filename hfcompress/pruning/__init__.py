"""Unstructured pruning: weights become zero."""
