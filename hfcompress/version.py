"""The version, by itself: reading it imports nothing."""

__version__ = "0.1.0"
