"""A reranker, compressed, in the metric of its task: MAP over queries.

    python -m benchmarks.tasks_quality --trecqa FOLDER --json FILE

FOLDER has train.tsv and dev.tsv of TrecQA (query, passage, label); dev.tsv is measured. The
reranker is all-MiniLM-L6-v2 of its pip package, fine-tuned as the recipe ``reranker`` says.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks._figures import Figure, parse_arguments, report
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe
from hfcompress.sweep.run import run
from hfcompress.utils import quiet_libraries

INT8_POINTS = -0.5


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(__doc__, trecqa="folder of TrecQA")
    if not arguments.trecqa:
        raise SystemExit("give --trecqa FOLDER")
    report(list(reranking(arguments.trecqa)), "tasks_quality", arguments.json)


def reranking(folder: str) -> Iterator[Figure]:
    """MAP of the reranker as the recipe trains it, and what int8 costs with its paired interval."""
    recipe = load_recipe(find_recipe("reranker"), [f"data.path={folder}", "save_models=false"])
    finetune, _, int8 = recipe.steps
    measure = recipe.measure.replace(every_step=False)
    (row,) = run(recipe.replace(steps=(finetune, int8), measure=measure)).rows
    dense = 100 * (row["value"] + row["drop"])
    yield Figure(f"TrecQA MAP of {row['n']} queries, dense", dense, "points")
    low, high = (-100 * row[key] for key in ("drop_high", "drop_low"))
    target = f">= {INT8_POINTS}"
    yield Figure("... int8 against dense", -100 * row["drop"], "points", low, high, target)


if __name__ == "__main__":
    main()
