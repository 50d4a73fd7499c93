"""Save compressed models so that from_pretrained loads them."""
