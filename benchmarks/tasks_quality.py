"""Models of other tasks than classification, compressed, in the metric of their task.

    python -m benchmarks.tasks_quality --trecqa FOLDER --stsb FOLDER --json FILE

FOLDER has train.tsv and dev.tsv; dev.tsv is measured. TrecQA (query, passage, label): the reranker
is all-MiniLM-L6-v2 of its pip package, fine-tuned as the recipe ``reranker`` says. STS-B
(sentence1, sentence2, score): the same model's embeddings, as the recipe ``embeddings-shrink``
makes them smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks._figures import Figure, parse_arguments, report
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe
from hfcompress.sweep.run import run
from hfcompress.utils import quiet_libraries

INT8_POINTS, HALF_POINTS = -0.5, -0.7


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, trecqa="folder of TrecQA", stsb="folder of STS-B", work="runs, kept and resumed"
    )
    if not (arguments.trecqa or arguments.stsb):
        raise SystemExit("give --trecqa FOLDER or --stsb FOLDER")
    work = None if arguments.work is None else Path(arguments.work)
    figures = list(reranking(arguments.trecqa)) if arguments.trecqa else []
    if arguments.stsb:
        figures += embeddings(arguments.stsb, None if work is None else work / "embeddings")
    report(figures, "tasks_quality", arguments.json)


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


def embeddings(folder: str, output: Path | None) -> Iterator[Figure]:
    """Rank correlation of the embeddings at half of the multiply-accumulates, and the minutes."""
    recipe = load_recipe(find_recipe("embeddings-shrink"), [f"data.path={folder}"])
    recipe = recipe.replace(save_models=output is not None)
    dense, shrunk, distilled = run(recipe, output).rows
    yield Figure(f"STS-B Spearman of {dense['n']} pairs, dense", 100 * dense["value"], "points")
    share = distilled["macs"] / dense["macs"]
    yield Figure("... multiply-accumulates that are left", share, "", target="<= 0.51")
    yield Figure("... after removing heads and neurons", -100 * shrunk["drop"], "points")
    low, high = (-100 * distilled[key] for key in ("drop_high", "drop_low"))
    target = f">= {HALF_POINTS}"
    yield Figure("... distilled, no labels", -100 * distilled["drop"], "points", low, high, target)
    minutes = sum(row["seconds"] for row in (dense, shrunk, distilled)) / 60
    yield Figure("... all of it", minutes, "min", target="<= 15")


if __name__ == "__main__":
    main()
