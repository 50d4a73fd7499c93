"""One label for an image."""

from hfcompress.tasks.classification import Classification

IMAGE_CLASSIFICATION = Classification("image-classification", "image")
