"""What each column of the page's table means."""

from __future__ import annotations

from collections.abc import Iterable

_MEANINGS = {
    "method": "how the model was compressed; dense is the model before the first compressing step",
    "run": "the folder that the row is from",
    "seed": "seed of sampling, initialisation and training",
    "sparsity": "share of zeros that was asked for, among the pruned weights",
    "actual": "share of zeros among the pruned weights",
    "of model": "share of zeros among all parameters of two or more dimensions",
    "parameters": "numbers in the model",
    "non-zero": "numbers that are not zero",
    "size": "bytes of the saved weights",
    "MACs": "multiply-accumulates for one example, zeros included",
    "bytes in int8": "share of the weights' bytes that became int8",
    "MACs in int8": "share of the multiply-accumulates that are computed in int8",
    "95 % interval": "of the metric, over examples: Wilson's for accuracy, bootstrap for others",
    "drop": "by how much the metric is worse than the dense model's, in points",
    "worst class": "the class that lost most against the dense model",
    "agreement": "share of examples on which it answers as the dense model does",
    "McNemar p": "probability that two equally good models differ as much on these examples",
    "paired bootstrap p": "the same, by drawing the examples anew for both models",
    "published": "the figure that the recipe's `reference` gives",
    "vs. published": "the difference, also in standard errors (s.e.)",
    "seconds": "what the trial took",
    "n": "measured examples",
}


def meanings(titles: Iterable[str], metric: str) -> dict[str, str]:
    """Title of a column -> its meaning, for the columns that a page shows.

    Args:
        titles: of the table's columns; fields of the grid have no entry.
        metric: name of the metric, whose column has that title.
    """
    known = _MEANINGS | {metric: "the metric, on the measured examples"}
    return {title: known[title] for title in titles if title in known}
