"""Measure models beside each other: speed, memory, size."""
