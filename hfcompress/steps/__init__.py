"""Carry out the steps of a recipe."""
