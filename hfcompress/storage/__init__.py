"""Folders that outlive a run: caches within a limit, and what a killed run left behind."""
