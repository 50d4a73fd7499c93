"""One label for a text, or for a pair of texts."""

from hfcompress.tasks.classification import Classification

TEXT_CLASSIFICATION = Classification("text-classification", "text")
