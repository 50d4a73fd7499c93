"""What may be asked: recipes, their steps and grids."""
