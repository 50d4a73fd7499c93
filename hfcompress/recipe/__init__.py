"""Former place of recipes, steps and sweep; `hfcompress.recipe.sweep` is kept for one release."""
