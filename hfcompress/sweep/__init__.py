"""Run a recipe: trials, rows, caches."""
