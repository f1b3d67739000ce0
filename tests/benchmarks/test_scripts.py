"""The record of what `immiscible run` decides for other people's scripts, and the program that writes it."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import scripts
from benchmarks.scripts import HOSTS, bench_scripts, decision_counts

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "scripts.json"


def clone(folder: Path, name: str, files: dict[str, str]) -> None:
    """Make a git repository with these files."""
    for file, text in files.items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(text)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder / name), *command], check=True)  # noqa: S607


def test_scripts_of_clones_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = "import torch\nnoise = torch.randn_like(x)\n"
    clone(tmp_path, "diffusers", {"examples/a/train_a.py": right, "examples/training/other.py": right})
    clone(tmp_path, "minRF", {"rf.py": right.replace("noise", "z1")})
    monkeypatch.setitem(HOSTS, "minRF", {"rf.py": [1]})
    rows = list(bench_scripts(tmp_path))
    assert [(row["file"], row["replaced"], row["right"]) for row in rows] == [
        ("examples/a/train_a.py", [2], True),
        ("rf.py", [2], False),
    ]
    assert decision_counts(rows)["others"]["wrong"] == 1
    with pytest.raises(ValueError, match="holds no clone"):
        list(bench_scripts(tmp_path / "minRF"))


def test_the_record_is_no_worse_than_a_search_for_one_name() -> None:
    """A search for `noise = torch.randn_like` alone rewrites 84 of diffusers' 94 scripts and finds no noise in 8."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["counts"] == decision_counts(record["scripts"])
    of_diffusers = record["counts"]["diffusers"]
    assert of_diffusers["scripts"] == 94
    assert of_diffusers["rewritten"] >= 84
    assert of_diffusers["no torch noise"] == 8
    assert of_diffusers["wrong"] == record["counts"]["others"]["wrong"] == 0
    assert {row["repository"] for row in record["scripts"]} == set(scripts.HOSTS)
