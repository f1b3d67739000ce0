"""Experiment files that programs write are read as the same values."""

import tomllib

import pytest

from immiscible_diffusion.experiments.written import experiment_text

VALUES = {
    "title": 'a "quoted" \\ name',
    "base": {
        "codec": "pixels",
        "source": {"path": "/photos/é 🐈\x7f\n", "size": 16, "flip": False},
        "train": {"lr": 1e-3, "steps": 10},
        "evaluate": {"steps": [2, 5], "metrics": [{"use": "kernel", "size": 3}]},
    },
    "grid": {"train.seed": [0, 1], "coupling": {"the first": "independent", "": {"use": "nearest", "k": 4}}},
}


def test_the_text_is_read_as_the_same_values() -> None:
    assert tomllib.loads(experiment_text(VALUES, {})) == VALUES


def test_comments_stand_above_their_options_and_change_nothing() -> None:
    text = experiment_text(VALUES, {"base.train.lr": "Usual.", "grid.coupling": "Compared.", "base.train.no": "None."})
    assert tomllib.loads(text) == VALUES
    lines = text.splitlines()
    assert lines[lines.index("# Usual.") + 1] == "lr = 0.001"
    assert lines[lines.index("# Compared.") + 1] == "[grid.coupling]"
    assert "None." not in text


@pytest.mark.parametrize("values", [{"a": {}}, {"a": {"b": {"c": 1}}}, {}])
def test_tables_without_values_of_their_own(values: dict[str, object]) -> None:
    assert tomllib.loads(experiment_text(values, {})) == values
