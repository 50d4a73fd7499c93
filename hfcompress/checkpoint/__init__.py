"""Checkpoints of compressed models that plain ``from_pretrained`` loads."""
