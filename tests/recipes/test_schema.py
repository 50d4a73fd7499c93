"""A recipe is checked whole, without loading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import ConfigError
from hfcompress.pruning.config import PruningConfig
from hfcompress.recipes.schema import Recipe, expand, load_recipe, parse_recipe
from hfcompress.recipes.step_configs import STEP_CONFIGS
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.steps.registry import STEPS

BASE: dict[str, Any] = {
    "model": "org/model",
    "data": {"path": "org/data"},
    "steps": [{"finetune": {"epochs": 1}}, {"prune": {"method": "magnitude"}}],
    "grid": {"prune.sparsity": [0, 0.5], "prune.scope": ["layer", "global"]},
}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe({**BASE, **changes})


def test_every_step_has_one_function() -> None:
    assert set(STEP_CONFIGS.values()) == set(STEPS)


def test_a_grid_is_every_combination() -> None:
    trials = expand(recipe())
    assert [trial.settings for trial in trials] == [
        {"prune.sparsity": sparsity, "prune.scope": scope}
        for sparsity in (0, 0.5)
        for scope in ("layer", "global")
    ]
    last = trials[3].steps[1].config
    assert isinstance(last, PruningConfig)
    assert (last.sparsity, last.scope) == (0.5, "global")


def test_a_list_of_grids_is_their_union() -> None:
    grids = [{"prune.sparsity": [0]}, {"prune.sparsity": [0.5, 0.9], "seed": [1, 2]}]
    trials = expand(recipe(grid=grids))
    assert [trial.seed for trial in trials] == [0, 1, 2, 1, 2]
    assert [trial.index for trial in trials] == list(range(5))


def test_any_field_of_any_step_and_the_seed_can_vary() -> None:
    for name, config in STEP_CONFIGS.items():
        for field in config.model_fields:
            message = ""
            try:
                recipe(
                    steps=[{"prune": {"sparsity": 0.5}}] if name == "prune" else [{name: {}}],
                    grid={f"{name}.{field}": [object]},
                )
            except ConfigError as error:
                message = str(error)
            assert "has no field" not in message
            assert field in message  # the value is what is refused


def test_a_step_that_stands_twice_is_named_by_place() -> None:
    steps = [{"prune": {"sparsity": 0.1}}, {"prune": {"sparsity": 0.2}}]
    with pytest.raises(ConfigError, match=r"could mean several steps; write steps\[0\]"):
        recipe(steps=steps, grid={"prune.sparsity": [0.5]})
    trials = expand(recipe(steps=steps, grid={"steps[1].prune.sparsity": [0.5]}))
    assert [step.config.to_dict()["sparsity"] for step in trials[0].steps] == [0.1, 0.5]


def test_plain_reads_back_as_the_same_trials(tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(recipe().to_dict()))
    again = load_recipe(path)
    assert expand(again) == expand(recipe())
    assert again.to_dict() == recipe().to_dict()


def test_plain_leaves_to_the_grid_what_the_grid_varies(tmp_path: Path) -> None:
    """A value of one part of the grid must not leak into the others."""
    grid = [
        {"prune.sparsity": [0, 0.5]},
        {"prune.method": ["sparsegpt"], "prune.pattern": ["2:4"], "prune.seed": [1]},
    ]
    before = recipe(steps=[{"prune": {"seed": 7}}], grid=grid)
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(before.to_dict()))
    assert expand(load_recipe(path)) == expand(before)


def test_a_new_option_leaves_old_results_valid() -> None:
    plain = PruningConfig(sparsity=0.5)
    assert plain.non_default_fields() == {"sparsity": 0.5}
    assert PruningConfig(sparsity=0.5, scope="layer").non_default_fields() == {
        "sparsity": 0.5, "scope": "layer",
    }  # fmt: skip
    assert PruningConfig(sparsity=0.5, seed=0).non_default_fields() == plain.non_default_fields()


def write(tmp_path: Path, data: dict[str, Any]) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(dump_yaml(data))
    return path


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("model=folder", lambda r: r.model.path == "folder"),
        ("model.trust_remote_code=true", lambda r: r.model.trust_remote_code),
        ("data.path=x.tsv", lambda r: r.data.path == "x.tsv"),
        ("finetune.learning_rate=3e-4", lambda r: r.steps[0]["finetune"]["learning_rate"] == 3e-4),
        ("steps[0].finetune.epochs=2", lambda r: r.steps[0]["finetune"]["epochs"] == 2),
        ("grid.prune.sparsity=[0.25]", lambda r: r.grid[0]["prune.sparsity"] == (0.25,)),
        ("grid.seed=[1,2,3]", lambda r: len(expand(r)) == 12),
        ("seed=7", lambda r: r.seed == 7),
        ("measure.metric=f1", lambda r: r.measure.metric == "f1"),
    ],
)
def test_overrides(override: str, read: Any, tmp_path: Path) -> None:
    assert read(load_recipe(write(tmp_path, BASE), [override]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "recipe has no field 'modle'; did you mean 'model'?"),
        ({"data": {"path": "x", "lable": "y"}}, "recipe.data has no field 'lable'; did you mean"),
        ({"data": {"text": "y"}}, "recipe.data needs the field 'path'"),
        ({"steps": [{"prun": {}}]}, "steps[0]: there is no step 'prun'; did you mean 'prune'?"),
        ({"steps": [{"prune": {"sparsty": 1}}], "grid": {}}, "no field 'sparsty'; did you mean 's"),
        ({"steps": ["prune"], "grid": {}}, "recipe.steps[0] should be a mapping, not 'prune'"),
        ({"steps": [{"prune": {}, "finetune": {}}], "grid": {}}, "must be one step and its fields"),
        ({"steps": [{"prune": 3}], "grid": {}}, "steps[0].prune must be a mapping"),
        ({"steps": [{"prune": False}], "grid": {}}, "steps[0].prune must be a mapping"),
        ({"steps": [{"prune": [1, "a"]}]}, "steps[0].prune must be a mapping"),
        ({"steps": [{"prune": ""}]}, "steps[0].prune must be a mapping"),
        ({"grid": {"prune.sparsity": [1.0]}}, "should be less than 1, not 1.0 (at the grid's"),
        ({"grid": {"prune.sparsity": [-0.1]}}, "should be greater than or equal to 0, not -0.1"),
        ({"grid": {"prune.sparsity": ["half"]}}, "steps[1].prune.sparsity should be"),
        ({"grid": {"prune.sparsty": [0]}}, "grid.prune.sparsty: prune has no field 'sparsty'"),
        ({"grid": {"distill.alpha": [0]}}, "grid.distill.alpha names no field"),
        ({"grid": {"prune.sparsity": []}}, "grid.prune.sparsity is empty"),
        ({"grid": {"prune.sparsity": 0.5}}, "should be a list, not 0.5"),
        ({"grid": {"seed": ["a"], "prune.sparsity": [0]}}, "grid.seed contains 'a'"),
        ({"task": "text-clasification"}, "did you mean 'text-classification'?"),
        ({"seed": 1.5}, "recipe.seed should be a valid integer"),
        ({"measure": {"batch_size": 0}}, "recipe.measure.batch_size should be greater"),
        ({"reference": {"source": "x", "values": {"a": 1}}}, "recipe.reference.values"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys() -> None:
    with pytest.raises(ConfigError, match="needs the field 'model'"):
        parse_recipe({"data": "x"})
    with pytest.raises(ConfigError, match="sparsity is missing"):
        recipe(grid={})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nonsense", "write key=value"),
        ("prune.scop=layer", "--set prune.scop: prune has no field 'scop'"),
        ("modle=x", "--set modle names no field"),
        ("model=[", "cannot parse YAML"),
        ("steps[7].prune.scope=layer", "there are 2 steps, counted from 0"),
        ("seed.x=1", "seed has no fields"),
    ],
)
def test_bad_overrides(override: str, message: str, tmp_path: Path) -> None:
    data = {**BASE, "seed": 1}
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, data), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "must be a mapping with model, data and steps, not list"),
        (b"", "not an empty file"),
        (b"a: !!python/name:os.system\n", "no tags"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "name", ["../x", "../../x", "a/../../x", "/x", "C:\\x", "C:x", "\\\\host\\share", "..\\x", "..",
             ".", "a\nb", "a\0b", "a\x1b[2J", "x" * 201, "~/../x"]
)  # fmt: skip
def test_a_name_that_leaves_the_output_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.name") as caught:
        recipe(name=name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["tiny", "sst2, 50 %", "team/run 1", "ähnlich", "a..b"])
def test_a_name_inside_the_output_folder_is_kept(name: str) -> None:
    assert recipe(name=name).name == name


def test_a_wrong_value_is_shown_shortened() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(description=["x" * 1000] * 1000)
    assert len(str(caught.value)) < 400


def test_a_grid_has_a_bounded_number_of_points() -> None:
    with pytest.raises(ConfigError, match="the grid has 1,000,000 points; write 10,000 at most"):
        recipe(grid={"prune.sparsity": [0.5] * 1000, "prune.seed": list(range(1000))})


@pytest.mark.parametrize(
    ("grid", "override", "left"),
    [
        ({"prune.sparsity": [0.1, 0.2]}, "prune.sparsity=0.5", [{}]),
        ({"steps[1].prune.sparsity": [0.1, 0.2]}, "prune.sparsity=0.5", [{}]),
        ({"prune.sparsity": [0.1, 0.2]}, "steps[1].sparsity=0.5", [{}]),
        ({"seed": [1, 2], "prune.sparsity": [0.5]}, "seed=7", [{"prune.sparsity": 0.5}]),
        (
            [{"prune.sparsity": [0.1]}, {"prune.sparsity": [0.2], "prune.scope": ["global"]}],
            "prune.sparsity=0.5",
            [{}, {"prune.scope": "global"}],
        ),
    ],
)
def test_set_takes_the_place_of_the_grids_values(
    grid: Any, override: str, left: list[dict[str, Any]], tmp_path: Path
) -> None:
    notes: list[str] = []
    found = load_recipe(write(tmp_path, {**BASE, "grid": grid}), [override], notes.append)
    trials = expand(found)
    assert [trial.settings for trial in trials] == left
    assert {getattr(trial.steps[1].config, "sparsity", None) for trial in trials} == {0.5}
    assert len(notes) == 1
    assert override in notes[0]
    assert "replaces the grid's values" in notes[0]


def test_set_inside_of_a_field_that_the_grid_varies_is_refused(tmp_path: Path) -> None:
    steps = [{"distill": {"distillation": {"alpha": 1}}}]
    grid = {"distill.distillation": [{"alpha": 1}, {"temperature": 2}]}
    with pytest.raises(ConfigError, match=r"the grid varies distill\.distillation; use --set grid"):
        load_recipe(
            write(tmp_path, {**BASE, "steps": steps, "grid": grid}),
            ["distill.distillation.temperature=3"],
        )


def test_set_of_a_whole_field_takes_the_place_of_its_parts_in_the_grid(tmp_path: Path) -> None:
    grid = {"distill.distillation.temperature": [1, 2]}
    path = write(tmp_path, {**BASE, "steps": [{"distill": {}}], "grid": grid})
    found = load_recipe(path, ["distill.distillation={temperature: 4}"])
    assert len(expand(found)) == 1


def test_trust_changes_no_hash() -> None:
    assert recipe(measure={"trust_remote_code": True}).measure.non_default_fields() == {}
