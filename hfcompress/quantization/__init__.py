"""Quantize models for an engine, and deploy them."""
