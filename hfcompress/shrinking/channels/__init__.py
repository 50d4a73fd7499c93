"""Channels of convolutional networks."""
