"""Groups of settings, their former flat names, and the hashes that both keep."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import ConfigError
from hfcompress.pruning.config import AlpsConfig, OwlConfig, PruningConfig, SparseGPTConfig
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import Recipe, expand, load_recipe, parse_recipe
from hfcompress.recipes.yaml import dump_yaml, parse_yaml
from hfcompress.sweep.experiment import content_hash

Data = dict[str, Any]

# (groups, former flat spelling, what hashes were made of before there were groups)
SPELLINGS: list[tuple[Data, Data, Data]] = [
    ({"sparsity": 0.5}, {"sparsity": 0.5}, {"sparsity": 0.5}),
    (
        {"method": "alps", "sparsity": 0.8, "allocation": "optimal", "alps": {
            "iterations": 45, "damping": 0.03, "output_importance": 0.5, "token_importance": 0.8,
        }},
        {"method": "alps", "sparsity": 0.8, "allocation": "optimal",
         "iterations": 45, "damping": 0.03, "output_importance": 0.5, "token_importance": 0.8},
        {"method": "alps", "sparsity": 0.8, "allocation": "optimal",
         "iterations": 45, "damping": 0.03, "output_importance": 0.5, "token_importance": 0.8},
    ),
    (
        {"method": "alps", "sparsity": 0.8, "allocation": "uniform", "alps": {
            "iterations": 60, "damping": 0.01, "output_importance": 0, "token_importance": 0,
        }},
        {"method": "alps", "sparsity": 0.8, "allocation": "uniform",
         "iterations": 60, "damping": 0.01, "output_importance": 0, "token_importance": 0,
         "output_coupling": 0},
        {"method": "alps", "sparsity": 0.8},
    ),
    (
        {"method": "sparsegpt", "pattern": "2:4", "seed": 3, "sparsegpt": {
            "block_size": 64, "damping": 0.1, "output_importance": 0.5, "token_importance": 0.25,
        }},
        {"method": "sparsegpt", "pattern": "2:4", "seed": 3,
         "block_size": 64, "damping": 0.1, "output_importance": 0.5, "token_importance": 0.25},
        {"method": "sparsegpt", "pattern": "2:4", "seed": 3,
         "block_size": 64, "damping": 0.1, "output_importance": 0.5, "token_importance": 0.25},
    ),
    (
        {"method": "obert", "sparsity": 0.5, "obert": {"block": 10, "damping": 1e-5}},
        {"method": "obert", "sparsity": 0.5, "fisher_block": 10, "fisher_damping": 1e-5},
        {"method": "obert", "sparsity": 0.5, "fisher_block": 10, "fisher_damping": 1e-5},
    ),
    (
        {"method": "wanda", "sparsity": 0.5, "allocation": "owl",
         "owl": {"multiple": 7, "spread": 0.1}},
        {"method": "wanda", "sparsity": 0.5, "allocation": "owl",
         "owl_multiple": 7, "owl_spread": 0.1},
        {"method": "wanda", "sparsity": 0.5, "allocation": "owl",
         "owl_multiple": 7.0, "owl_spread": 0.1},
    ),
    (
        {"sparsity": 0.5, "allocation": "optimal", "optimal": {"max_sparsity": 0.9},
         "sparsegpt": {"damping": 0.5}},
        {"sparsity": 0.5, "allocation": "optimal", "max_sparsity": 0.9, "damping": 0.5},
        {"sparsity": 0.5, "allocation": "optimal", "max_sparsity": 0.9, "damping": 0.5},
    ),
]  # fmt: skip


def quietly(data: Data) -> PruningConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PruningConfig.from_dict(data)


@pytest.mark.parametrize(("grouped", "flat", "hashed"), SPELLINGS, ids=str)
def test_both_spellings_are_one_config_with_the_former_hash(
    grouped: Data, flat: Data, hashed: Data
) -> None:
    config = PruningConfig.from_dict(grouped)
    assert config == quietly(flat)
    assert config.non_default_fields() == hashed
    assert PruningConfig.from_dict(config.to_dict()) == config


PUBLISHED: Data = {
    "iterations": 45, "damping": 0.03, "output_importance": 0.5, "token_importance": 0.8,
}  # fmt: skip
ALPS: list[tuple[Data, Data, Data]] = [  # short spelling, long spelling, what is hashed
    ({"sparsity": 0.8}, {"allocation": "optimal"}, {"allocation": "optimal"}),
    ({"pattern": "16x1", "sparsity": 0.8}, {"allocation": "optimal"}, {"allocation": "optimal"}),
    ({"pattern": "2:4"}, {"allocation": "uniform"}, {}),
    ({"scope": "global", "sparsity": 0.8}, {"allocation": "uniform"}, {}),
]


@pytest.mark.parametrize(("short", "added", "hashed"), ALPS, ids=str)
def test_alps_alone_is_the_published_setting(short: Data, added: Data, hashed: Data) -> None:
    alone = PruningConfig.from_dict({"method": "alps", **short})
    spelled = PruningConfig.from_dict({"method": "alps", **short, **added, "alps": PUBLISHED})
    expected = {"method": "alps", **short, **PUBLISHED, **hashed}
    assert alone.non_default_fields() == spelled.non_default_fields() == expected
    assert alone.resolved_allocation == spelled.resolved_allocation == added["allocation"]
    assert alone.alps == spelled.alps


def test_recipes_of_the_published_rows_keep_their_hashes() -> None:
    rest = {"calibration_rows": 1024, "allocation": "optimal"}
    for name, sparsity in (("recover-80", 0.8), ("recover-90", 0.9)):
        (config,) = prunings(expand(load_recipe(find_recipe(name))))
        expected = {"method": "alps", "sparsity": sparsity, **rest, **PUBLISHED}
        assert config.non_default_fields() == expected
    rows = prunings(expand(load_recipe(find_recipe("oneshot-methods"))))
    alps = [config.non_default_fields() for config in rows if config.method == "alps"]
    patterns = [fields for fields in alps if "pattern" in fields]
    assert len(alps) == 21
    assert all(fields.items() >= PUBLISHED.items() for fields in alps)
    assert [fields.get("allocation") for fields in patterns] == [None] * 3


def test_dense_statistics_weigh_all_tokens_alike() -> None:
    dense = PruningConfig(method="alps", sparsity=0.5, statistics="dense", bias_repair=False)
    assert dense.resolved_token_importance == 0
    assert "token_importance" not in dense.non_default_fields()
    assert PruningConfig(method="alps", sparsity=0.5).resolved_token_importance == 0.8
    with pytest.raises(ConfigError, match="token_importance needs statistics: sequential"):
        PruningConfig(
            method="sparsegpt", sparsity=0.5, statistics="dense",
            sparsegpt=SparseGPTConfig(token_importance=0.5),
        )  # fmt: skip


def test_defaults_of_alps_leave_hashes_of_other_methods_alone() -> None:
    for method in ("magnitude", "wanda", "sparsegpt"):
        for alps in (PUBLISHED, {**PUBLISHED, "iterations": 60}):
            config = PruningConfig.from_dict({"method": method, "sparsity": 0.5, "alps": alps})
            expected = {} if method == "magnitude" else {"method": method}
            assert config.non_default_fields() == {"sparsity": 0.5, **expected}


def test_a_former_name_warns_with_the_current_one() -> None:
    expected = "write alps.damping instead of damping, obert.block instead of fisher_block"
    for data in ({"damping": 0.1, "fisher_block": 9}, {"fisher_block": 9, "damping": 0.1}):
        with pytest.warns(FutureWarning, match=expected) as caught:
            PruningConfig.from_dict({"method": "alps", "sparsity": 0.5, **data})
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_a_former_name_works_as_a_python_keyword_and_in_replace() -> None:
    flat: Any = PruningConfig
    with pytest.warns(FutureWarning, match=r"write owl\.spread instead of owl_spread"):
        config = flat(sparsity=0.5, allocation="owl", owl_spread=0.2)
    assert config.owl == OwlConfig(spread=0.2)
    with pytest.warns(FutureWarning, match=r"write owl\.spread instead of owl_spread"):
        assert config.replace(owl_spread=0.3).owl == OwlConfig(spread=0.3)


def test_refuses_two_spellings_of_one_field_and_removed_coupling() -> None:
    with pytest.raises(ConfigError, match=r"former name of owl\.spread, which is given, too"):
        PruningConfig.from_dict({"sparsity": 0.5, "owl_spread": 0.1, "owl": {"spread": 0.2}})
    with pytest.raises(ConfigError, match="output_coupling was removed; leave it out"):
        PruningConfig.from_dict({"sparsity": 0.5, "output_coupling": 0.5})


def recipe(prune: Data, grid: Any) -> Recipe:
    data: Data = {"model": "org/model", "data": {"path": "org/data"}, "grid": grid}
    return parse_recipe({**data, "steps": [{"prune": {"sparsity": 0.5, **prune}}]})


FORMER_GRIDS: list[tuple[Data, Any]] = [
    ({}, {"prune.method": ["sparsegpt", "alps"], "prune.damping": [0.02, 0.05]}),
    ({"damping": 0.05}, {"prune.method": ["sparsegpt", "alps"]}),
    ({"iterations": 9}, [{"prune.method": ["alps"], "prune.iterations": [5]}, {"seed": [0, 1]}]),
    ({"method": "obert"}, {"prune.fisher_block": [10, 20]}),
    ({"method": "obert", "obert": {"damping": 1e-5}}, {"prune.fisher_block": [10, 20]}),
]


@pytest.mark.filterwarnings("ignore:PruningConfig. write:FutureWarning")
@pytest.mark.parametrize(("prune", "grid"), FORMER_GRIDS, ids=str)
def test_a_recipe_with_former_names_reads_back_as_the_same_trials(prune: Data, grid: Any) -> None:
    before = recipe(prune, grid)
    again = parse_recipe(parse_yaml(dump_yaml(before.to_dict()), "again"))
    assert expand(again) == expand(before)
    for one, other in zip(expand(again), expand(before), strict=True):
        hashes = [
            content_hash([step.config.non_default_fields() for step in trial.steps])
            for trial in (one, other)
        ]
        assert hashes[0] == hashes[1]


def prunings(trials: list[Trial]) -> list[PruningConfig]:
    return [
        step.config
        for trial in trials
        for step in trial.steps
        if isinstance(step.config, PruningConfig)
    ]


def test_former_names_in_a_grid_take_effect_by_method() -> None:
    with pytest.warns(FutureWarning, match="instead of damping"):
        trials = expand(recipe({"damping": 0.5}, {"prune.method": ["sparsegpt", "alps"]}))
    found = [(config.sparsegpt.damping, config.alps.damping) for config in prunings(trials)]
    assert found == [(0.5, AlpsConfig().damping), (SparseGPTConfig().damping, 0.5)]


def test_an_override_takes_both_spellings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe({"method": "alps"}, {}).to_dict()))
    (now,) = prunings(expand(load_recipe(path, ["prune.obert.block=9"])))
    assert now.obert.block == 9
    path.write_text("model: m\ndata: d\nsteps: [prune: {sparsity: 0.5, method: obert}]")
    with pytest.warns(FutureWarning, match=r"write obert\.block instead of fisher_block"):
        (former,) = prunings(expand(load_recipe(path, ["prune.fisher_block=9"])))
    assert former.obert.block == 9


def test_a_grid_varies_a_field_of_a_group_that_is_a_config() -> None:
    config = AlpsConfig(iterations=7)
    trials = expand(recipe({"method": "alps", "alps": config}, {"prune.alps.damping": [0.1, 0.2]}))
    groups = [pruning.alps for pruning in prunings(trials)]
    assert groups == [AlpsConfig(iterations=7, damping=value) for value in (0.1, 0.2)]
