"""The list of tables and figures: none is missing, each leads to something that exists, and the page agrees."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import app as bench
from immiscible_diffusion.cli import COMMANDS
from immiscible_diffusion.cli.options import run_app
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in
from studies.__main__ import app
from studies.papers import MARKERS, Item, papers, papers_page, state, states

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers.md"
ITEMS = papers()


def run(arguments: list[str]) -> int:
    return run_app(app, arguments)


def covered(names: list[str], kind: str) -> set[str]:
    """Return the numbers that names such as ``Figures 10-12`` and ``Figure 4(a)`` cover."""
    numbers = set[str]()
    for name in names:
        if match := re.fullmatch(rf"{kind}s? (\d+)(?:-(\d+))?(?:\(.\))?(?:, \w+)?", name):
            first, last = int(match[1]), int(match[2] or match[1])
            numbers |= {str(number) for number in range(first, last + 1)}
    return numbers


def test_no_table_or_figure_of_the_first_paper_is_missing() -> None:
    names = [item.name for item in ITEMS if item.paper == "2406.12303"]
    assert covered(names, "Table") == {str(n) for n in range(1, 6)}
    assert covered(names, "Figure") == {str(n) for n in range(1, 16)}
    assert covered(names[1:], "Figure") != covered(names, "Figure")
    assert len(set(names)) == len(names)


def test_every_item_leads_to_an_experiment_and_commands_that_exist() -> None:
    used = {item.experiment for item in ITEMS if item.experiment}
    assert used <= set(built_in())
    assert {name for name in built_in() if read_experiment(name).published} <= used
    studied, measured = (
        {command.callback.__name__ for command in workshop.registered_commands if command.callback}
        for workshop in (app, bench)
    )
    for item in ITEMS:
        for call in item.calls:
            words = call.removeprefix("python -m ").split()
            commands = {"immiscible": set(COMMANDS), "studies": studied, "benchmarks": measured}[words[0]]
            assert words[1] in commands
        for name in re.findall(r"runs/([\w-]+)", item.command):
            assert name == item.experiment


def test_the_page_says_what_is_recorded() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert papers_page(page, ITEMS, ROOT) == page, "write it again: python -m studies papers --page docs/papers.md"
    assert all(item.name in page for item in ITEMS)


def summary(folder: Path, seeds: int, unfinished: int = 0, arms: Sequence[str] = "ab") -> None:
    folder.mkdir(parents=True)
    runs = [{"arm": arm, "seed": seed} for arm in arms for seed in range(seeds)]
    (folder / "summary.json").write_text(json.dumps({"runs": runs, "unfinished": ["x"] * unfinished}))


@pytest.mark.slow
def test_a_record_changes_the_state_and_makes_the_page_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\n{MARKERS[1]}\nafter\n")
    arguments = ["papers", "--root", str(tmp_path), "--page", str(page)]
    assert run(arguments) == 0
    assert run([*arguments, "--check"]) == 0
    summary(tmp_path / "results" / "table5-norm" / "cpu", seeds=2, arms=read_experiment("table5-norm").arms("cpu"))
    assert run([*arguments, "--check"]) == 2
    assert "out of date" in capsys.readouterr().err
    assert run(arguments) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "[recorded: 6 runs, 2 seeds](../results/table5-norm/cpu/summary.json) | ready | ready |" in text


def test_states_of_a_result(tmp_path: Path) -> None:
    summary(tmp_path / "some", seeds=1, unfinished=2)
    assert state(tmp_path / "some", {}) == "in part: 2 runs, 1 seed, 2 to come"
    summary(tmp_path / "whole", seeds=1)
    arms = ["a", "b"]
    assert state(tmp_path / "whole", {}, arms) == "recorded: 2 runs, 1 seed"
    assert state(tmp_path / "whole", {}, [*arms, "new"]) == "in part: 2 runs, 1 seed, without new"
    drawn = Item("1", "Figure 3", "x", "fig5-table4-ddim", "y", "results/fig5-table4-ddim/SCALE/denoising.json")
    summary(tmp_path / "results" / "fig5-table4-ddim" / "gpu", seeds=3)
    assert states(drawn, tmp_path) == {"cpu": "ready", "gpu": "ready", "paper": "ready"}
    (tmp_path / "results" / "fig5-table4-ddim" / "gpu" / "denoising.json").write_text("{}")
    assert states(drawn, tmp_path) == {"cpu": "ready", "gpu": "recorded", "paper": "ready"}
    assert states(Item("1", "Table 1", "x", why="y"), tmp_path) == {"cpu": "-", "gpu": "-", "paper": "-"}
    program = Item("1", "Table 2", "x", command="python -m benchmarks papers", record="there.json")
    assert states(program, tmp_path)["cpu"] == "ready"
    (tmp_path / "there.json").write_text("{}")
    assert states(program, tmp_path) == {"cpu": "recorded", "gpu": "-", "paper": "-"}


def test_a_record_of_other_numbers_than_the_file_has_is_said_to_be_older(tmp_path: Path) -> None:
    summary(tmp_path / "some", seeds=3)
    path = tmp_path / "some" / "summary.json"
    made = {"train": {"steps": 1200, "seed": 0}, "evaluate": {"steps": [5, 20]}, "source": {"path": "/here"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "configurations": {"a": made}}))
    same = {"train.steps": 1200, "train.seed": [0, 1, 2], "evaluate.steps": [5, 20], "preset": "cifar10", "source": {}}
    assert state(tmp_path / "some", same) == "recorded: 6 runs, 3 seeds"
    for other in ({"train.steps": 4000}, {"evaluate.steps": [20]}):
        assert state(tmp_path / "some", same | other) == "recorded of an earlier set-up: 6 runs, 3 seeds"
    varied = {"grid.source, evaluate.steps": {"small": [{}, [20]], "large": [{}, [5, 20]]}, "evaluate.steps": [20]}
    assert state(tmp_path / "some", same | varied) == "recorded: 6 runs, 3 seeds"


def test_papers_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["papers"]) == 0
    assert "2505.18521" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").write_text("no markers")
    assert run(["papers", "--page", str(tmp_path / "page.md")]) == 2
    assert run(["papers", "--check"]) == 2
    assert "no place for the list" in (said := capsys.readouterr().err)
    assert "name it by --page" in said
    with pytest.raises(ValueError, match="needs an experiment, a command or why"):
        Item("1", "Table 9", "x")
