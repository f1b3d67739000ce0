"""The README's examples run, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from immiscible_diffusion.cli import COMMANDS
from immiscible_diffusion.experiments.values import built_in

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_readme_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    before, after = map(float, re.findall(r"tensor\(([\d.]+)\)", capsys.readouterr().out))
    assert 0.97 < after / before < 0.985  # about 2 %


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[x](nowhere.md)")
    with pytest.raises(AssertionError):
        test_links_lead_somewhere(tmp_path / "page.md")


def test_commands_and_experiments_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bimmiscible ([a-z]+)\b", text))
    assert used
    assert used <= set(COMMANDS)
    assert set(re.findall(r"(?<!benchmarks/)results/([\w-]+)/", text)) <= set(built_in())
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_adding_a_coupling_works_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {"__name__": "mine"}
    for example in blocks((ROOT / "docs" / "adding-a-coupling.md").read_text(encoding="utf-8"), "python"):
        exec(compile(example, "adding-a-coupling.md", "exec"), scope)  # noqa: S102
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first[0], float(first[1])) == ("independent", 0.0)
    assert second[0] == "signed"
    assert float(second[1]) > 1
    assert float(second[2]) == pytest.approx((2 / 3.14159) ** 0.5, abs=0.03)


def test_the_readme_says_what_was_recorded_of_flow_matching() -> None:
    record = json.loads((ROOT / "results" / "flow-matching" / "cpu" / "summary.json").read_text(encoding="utf-8"))
    rows = [row for row in record["finals"] if row["metric"] == "frechet"]
    arms = {
        "independent": "independent",
        "assignment": "assignment",
        "nearest of 4, from its matched start": "nearest",
        "nearest of 4, from N(0, I)": "nearest, plain start",
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## On real images")[2].partition("\n## ")[0]
    table = {
        cells[1]: cells[2:5] for line in text.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 6
    }
    for label, arm in arms.items():
        told = {row["sampling_steps"]: row for row in rows if row["arm"] == arm}
        for count, cell in zip((2, 10, 50), table[label], strict=True):
            row = told[count]
            better = row.get("p") is not None and row["p"] < 0.02 and row["difference"] < 0
            value = f"{row['mean']:.3f} ± {row['sd']:.3f}"
            assert cell == (f"**{value}**" if better else value)


def test_the_headline_of_the_readme_is_that_of_the_results() -> None:
    recorded = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## On real images")[2].partition("\n## ")[0]
    told = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(told) >= 4
    assert all(line.replace("](docs/results/", "](", 1) in recorded for line in told)
    every = [line for line in recorded if line.startswith("| [") and "| assignment |" in line]
    assert len(told) == len(every), "a row of assignment is missing: none is left out for what it says"
