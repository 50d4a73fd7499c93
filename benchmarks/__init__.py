"""Scripts on the public API; each prints a table and writes its figures as JSON."""
