"""Files that extend others: how tables merge, chains, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in, merged, read_values

MINE = 'extends = "demo"\ntitle = "mine"\n[base.train]\nsteps = 5\n[grid]\n"train.seed" = [7]\n'


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder / "mine.toml"


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"a": [1, 2], "b": 1}, {"a": [3]}, {"a": [3], "b": 1}),
        ({"net": {"use": "mlp", "width": 8}}, {"net": {"depth": 2}}, {"net": {"use": "mlp", "width": 8, "depth": 2}}),
        ({"net": {"use": "mlp", "width": 8}}, {"net": {"use": "unet"}}, {"net": {"use": "unet"}}),
        ({"net": {"use": "mlp", "width": 8}}, {"net": "mlp"}, {"net": "mlp"}),
        ({"net": "mlp"}, {"net": {"width": 8}}, {"net": {"use": "mlp", "width": 8}}),
        ({"net": "mlp"}, {"net": {"use": "unet", "layers": 1}}, {"net": {"use": "unet", "layers": 1}}),
        ({"train.steps": 3}, {"train.steps": 4}, {"train.steps": 4}),
    ],
)
def test_tables_merge_and_anything_else_is_replaced(
    below: dict[str, Any], above: dict[str, Any], result: dict[str, Any]
) -> None:
    before = repr(below)
    assert merged(below, above) == result
    assert repr(below) == before


def test_a_file_extends_a_built_in_experiment(tmp_path: Path) -> None:
    mine = read_experiment(str(write(tmp_path, mine=MINE)))
    demo = read_experiment("demo")
    assert (mine.name, mine.title, mine.question) == ("mine", "mine", demo.question)
    assert [(cell.arm, cell.seed) for cell in mine.cells()] == [
        (arm, 7) for arm in ("independent", "assignment", "nearest")
    ]
    ours, base = mine.cells()[0].config.plain(), demo.cells()[0].config.plain()
    assert (ours["train"].pop("steps"), base["train"].pop("steps")) == (5, 3000)
    assert (ours["train"].pop("seed"), base["train"].pop("seed")) == (7, 0)
    assert ours == base


def test_files_extend_files_beside_them_in_a_chain(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", first=MINE, second='extends = "first.toml"\n[base.train]\nbatch = 9\n')
    path = write(tmp_path, mine='extends = "below/second.toml"\n[base.train]\nlr = 0.5\n')
    train = read_values(str(path))["base"]["train"]
    assert (train["steps"], train["batch"], train["lr"], train["ema"]) == (5, 9, 0.5, 0.995)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mine": 'extends = "nosuch"'}, "extends = 'nosuch' is no file beside it, and none of .*'demo'"),
        ({"mine": "extends = 3"}, "extends = 3 is no file"),
        ({"mine": 'extends = "mine.toml"'}, "mine.toml: extends leads back to mine.toml"),
        (
            {"mine": 'extends = "a.toml"', "a": 'extends = "b.toml"', "b": 'extends = "a.toml"'},
            "mine.toml: extends leads back to a.toml",
        ),
        ({"mine": 'extends = "a.toml"', "a": "titel = 'x'"}, r"a.toml: unknown key titel"),
        ({"mine": 'extends = "a.toml"', "a": "title = 'x'"}, r"mine.toml: \[base\], one whole run, is missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    path = write(tmp_path, **files)
    with pytest.raises(ValueError, match=message) as caught:
        read_values(str(path))
    assert "\n" not in str(caught.value)


def test_bases_are_no_experiments() -> None:
    folder = built_in()["demo"].parent / "bases"
    bases = {path.stem for path in folder.glob("*.toml")}
    used = {
        Path(line.split('"')[1]).stem
        for path in [*built_in().values(), *folder.glob("*.toml")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("extends = ")
    }
    assert len(bases) > 3
    assert used == bases
    assert not bases & set(built_in())


@pytest.mark.usefixtures("unchecked")  # the check of a protocol would ask absent data for their rows
def test_a_scale_may_vary_again_what_its_base_fixed() -> None:
    """The scales of the batch sizes' base fix train.batch; the file varies it again, in its first place."""
    cells = read_experiment("fig8-batch").cells("paper", [("train.seed", 0)])
    assert [cell.arm for cell in cells][:3] == ["128-independent", "128-assignment", "256-independent"]
    (fixed, _) = read_experiment("fig8-batch").cells("paper", [("train.seed", 0), ("train.batch", 64)])
    assert (fixed.arm, fixed.config.train.batch) == ("independent", 64)
