import dataclasses
from pathlib import Path
from typing import Any

import pytest

from immiscible_diffusion import MLP
from immiscible_diffusion.experiments.config import read_config
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in, overridden, parse_override, read_toml

VALUES: dict[str, Any] = {
    "source": "digits",
    "codec": "pixels",
    "coupling": {"use": "nearest", "k": 8},
    "method": {"use": "denoising", "schedule": {"use": "betas", "levels": 100}, "predict": "v"},
    "net": {"use": "unet", "channels": [8, 16]},
    "train": {"steps": 10},
    "evaluate": {"every": 5, "steps": [2], "samples": 10, "features": "classifier", "metrics": ["frechet"]},
}


def test_a_configuration_survives_its_plain_form() -> None:
    config = read_config(VALUES)
    assert read_config(config.plain()) == config
    assert config.method.schedule.levels == 100  # type: ignore[attr-defined]
    assert config.net.channels == (8, 16)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sorce", "digits", "unknown key sorce"),
        ("train.stepz", 3, r"unknown key train.stepz; there are \['steps'"),
        ("coupling.use", "hungarian", r"coupling: no coupling named 'hungarian'; there are \['assignment'"),
        ("coupling.kk", 3, "unknown key coupling.kk"),
        ("coupling.k", 0, "coupling.k is 0.0; it must be a whole number >= 1"),
        ("coupling.k", "many", "coupling.k is 'many'; it must be a number"),
        ("coupling.cost", "l3", r"coupling.cost is 'l3'; it must be one of \['l2', 'dot', 'l1', 'cosine'\]"),
        ("method.schedule.levels", -1, "method.schedule.levels is -1; it must be a whole number >= 1"),
        ("method.schedule.use", "curved", "method.schedule: no schedule named 'curved'"),
        ("train.steps", "many", "train.steps is 'many'; it must be a whole number"),
        ("train.lr", -1, "train.lr = -1.0 is out of range"),
        ("train", 3, "train is 3; it must be a table"),
        ("evaluate.metrics", ["fid"], r"evaluate.metrics\[0\]: no metric named 'fid'"),
        ("evaluate.metrics", "frechet", "it must be a list"),
        ("evaluate.features", "vgg", "evaluate.features: no features named"),
        ("evaluate.steps", [], "sampling steps >= 1"),
        ("evaluate.steps", [2, 5, 2], r"evaluate.steps and last_steps are \[2, 5, 2\] and \[\]; each number of"),
        ("evaluate.last_steps", [2], r"evaluate.steps and last_steps are \[2\] and \[2\]; each number of"),
        ("evaluate.last_steps", [0], r"evaluate.last_steps is \[0\]; it must be a list of sampling steps >= 1"),
        ("evaluate.reference", "raw", r"evaluate.reference is 'raw'; it must be one of \['stored', 'decoded'\]"),
        ("net.channels", [7], "net.channels are"),
        ("net.channels", 8, "net.channels is 8; it must be a list, each a whole number"),
        ("net.channels", [8, "many"], r"net.channels is \[8, 'many'\]; it must be a list"),
        ("train.steps", 2.5, "train.steps is 2.5; it must be a whole number"),
        ("train.prefetch", "yes", "train.prefetch is 'yes'; it must be true or false"),
        ("train.steps", True, "train.steps is True; it must be a whole number"),
        ("method.schedule", 3, "method.schedule is 3; it must be a name or a table"),
        ("evaluate.evry", 3, "unknown key evaluate.evry"),
        ("coupling", 3, "it must be a name or a table"),
        ("coupling", "os:system", "is not registered"),
        ("coupling", "no_such_module:Thing", "cannot import"),
    ],
)
def test_a_mistake_names_its_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(overridden(VALUES, key, value))


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ValueError, match="coupling is missing"):
        read_config({key: value for key, value in VALUES.items() if key != "coupling"})
    with pytest.raises(ValueError, match=r"evaluate: a key is missing.*samples"):
        read_config({**VALUES, "evaluate": {"every": 5, "steps": [2]}})


def test_overrides_are_toml_or_bare_words() -> None:
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a=true") == ("a", True)
    assert parse_override("a = nearest") == ("a", "nearest")
    assert parse_override("a=x=y") == ("a", "x=y")
    for text in ("a", "=3"):
        with pytest.raises(ValueError, match="write it as"):
            parse_override(text)


def test_values_that_are_nested_too_deeply_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--set train\.seed: it is nested too deeply"):
        parse_override(f"train.seed={'[' * 5000}")
    (tmp_path / "x.toml").write_text(f"base = {'[' * 5000}")
    with pytest.raises(ValueError, match=r"cannot read .*x\.toml: it is nested too deeply"):
        read_toml(tmp_path / "x.toml")


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask absent data for their rows
@pytest.mark.medium
def test_built_in_experiments_resolve_at_every_scale() -> None:
    assert "demo" in built_in()
    for name in built_in():
        experiment = read_experiment(name)
        assert experiment.title
        assert experiment.question
        for scale in (None, *experiment.scale):
            cells = experiment.cells(scale)
            assert experiment.arms(scale) == list(dict.fromkeys(cell.arm for cell in cells))
            assert len({cell.folder for cell in cells}) == len(cells) > 0


def test_the_grid_is_a_product_and_overrides_close_it() -> None:
    demo = read_experiment("demo")
    assert len(demo.cells()) == 12
    assert [cell.seed for cell in demo.cells()[:4]] == [0, 0, 0, 1]
    only = demo.cells(overrides=[("train.seed", [3, 4]), ("coupling", "assignment")])
    assert [(cell.arm, cell.seed) for cell in only] == [("run", 3), ("run", 4)]
    assert only[0].folder != demo.cells(overrides=[("train.seed", 3), ("coupling", "nearest")])[0].folder
    with pytest.raises(ValueError, match="no scale 'huge'"):
        demo.cells("huge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "cannot read"),
        ("title = 'x'", r"\[base\], one whole run, is missing"),
        ("titel = 'x'\n[base]", "unknown key titel"),
        ("[base]\n[grid]\n'train.seed' = []", "grid.train.seed must be a list"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_experiment(str(path))
    with pytest.raises(ValueError, match="no experiment or file"):
        read_experiment(str(tmp_path / "other.toml"))


class Older:
    """A net of one's own as it was described before nets wrote their own files."""

    def build(self, shape: tuple[int, ...], classes: int | None) -> Any:
        raise NotImplementedError


@pytest.mark.usefixtures("unchecked")
def test_a_net_that_lacks_a_method_is_refused_in_one_line() -> None:
    config = read_config(VALUES)
    with pytest.raises(ValueError, match=r"the net Older needs the methods \['condition', 'save', 'load'\]"):
        dataclasses.replace(config, net=Older())  # type: ignore[arg-type]
    dataclasses.replace(config, net=MLP())  # control
