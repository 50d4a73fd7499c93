"""Looks at a model and at its predictions; never changes the model."""
