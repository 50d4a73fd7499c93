"""Search for the steps that meet a target of size, speed and accuracy."""
