"""Train a student on what a teacher says."""
