"""hfcompress: prune, distill and quantize Hugging Face models, and see what it costs."""

__version__ = "0.1.0"
