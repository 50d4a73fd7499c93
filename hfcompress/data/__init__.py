"""Data sets by name, in every form people have them in."""
