"""Data sets by name, in every form people have them in."""

from hfcompress.data.config import DataConfig
from hfcompress.data.load import Examples, examples_of, fingerprint, load_examples, load_texts

__all__ = ["DataConfig", "Examples", "examples_of", "fingerprint", "load_examples", "load_texts"]
