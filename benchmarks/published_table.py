"""The DistilBERT table's protocol, its published figures beside ours.

    python -m benchmarks.published_table [--data FOLDER] --json FILE

With the hub this is the table itself. With FOLDER (train.tsv and dev.tsv of SST-2) the same
protocol, L1 on every Linear, classifier included, runs on MiniLM-L6 fine-tuned on SST-2, which is
a third of DistilBERT's size and bears less: what can be compared is the shape of the curve.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks.oneshot_quality import Lines, teacher_folder
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe
from hfcompress.sweep.run import run
from hfcompress.utils import quiet_libraries


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, data="folder with train.tsv and dev.tsv", work="folder of the runs' rows"
    )
    work, overrides = Path(arguments.work or "runs/oneshot_quality"), []
    model = "DistilBERT"
    if arguments.data:
        data = f"data.path={arguments.data}"
        overrides = [f"model={teacher_folder(work, [data])}", data]
        model = "MiniLM-L6"
    recipe = load_recipe(find_recipe("distilbert-sst2-table"), overrides)
    figures = []
    for row in run(recipe, work / f"table-{model}", Lines()):
        at = f"{row['requested_sparsity']:.0%}"
        zeros = f"{row['parameters'] - row['nonzero_parameters']:,} of {row['parameters']:,} zero"
        low, high = 100 * row["low"], 100 * row["high"]
        figures += [
            Figure(f"{model}, accuracy at {at}", 100 * row["value"], "%", low, high, note=zeros),
            Figure(f"DistilBERT, published accuracy at {at}", 100 * row["reference"], "%"),
        ]
    report(figures, "published_table", arguments.json)


if __name__ == "__main__":
    main()
