"""What a model's output means: one file for each task; `registry` finds them."""
