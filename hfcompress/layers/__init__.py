"""Replacements of nn.Linear."""
