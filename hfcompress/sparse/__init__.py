"""Sparse inference on CPU: layers whose zeros are skipped, where that is faster."""
