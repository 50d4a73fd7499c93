"""Metrics, sizes, operations and latency of a model."""
