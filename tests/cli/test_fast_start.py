"""What the command line loads: help and the list of experiments need neither torch nor diffusers."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from immiscible_diffusion.__main__ import main
from immiscible_diffusion.cli import COMMANDS, command_line, run
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import built_in

pytestmark = pytest.mark.medium

HEAVY = {"torch", "diffusers", "scipy", "matplotlib", "sklearn", "datasets"}


def loaded_by(statement: str) -> set[str]:
    """Return which of the slow packages a fresh interpreter has loaded after a statement."""
    program = f"import sys\n{statement}\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["list"], []])
def test_help_and_list_load_no_torch(arguments: list[str]) -> None:
    assert loaded_by(f"from immiscible_diffusion.cli import run; run({arguments!r})") == set()


@pytest.mark.slow
def test_a_command_that_loads_torch_is_seen() -> None:
    assert "torch" in loaded_by("from immiscible_diffusion.cli import run; run(['show', '--help'])")


@pytest.mark.slow
def test_showing_the_demo_loads_no_diffusers() -> None:
    assert "diffusers" not in loaded_by("from immiscible_diffusion.cli import run; run(['show', 'demo'])")


def test_an_interrupt_while_packages_are_loaded_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("immiscible_diffusion.cli.import_module", interrupted)
    monkeypatch.setattr("sys.argv", ["immiscible", "show", "demo"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "immiscible: interrupted\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_summary_is_the_commands_own(name: str) -> None:
    module, _, function = COMMANDS[name].partition(":")
    command = getattr(import_module(f"immiscible_diffusion.cli.{module}"), function)
    (registered,) = [entry for entry in command_line(name).registered_commands if entry.callback is command]
    assert registered.name == name
    other = next(key for key in COMMANDS if key != name)
    listed = {entry.name: entry.help for entry in command_line(other).registered_commands}
    summary = (inspect.getdoc(command) or "").partition("\n")[0]
    assert len(summary) > 10
    assert listed[name] == summary


def test_the_list_counts_the_runs_that_an_experiment_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("immiscible_diffusion.cli.listing.out.width", 200)
    assert run(["list"]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") == 4]
    counts = {row[1].strip(): int(row[2]) for row in rows}
    assert set(counts) == set(built_in())
    for name in ("demo", "fig8-batch", "image-scale"):
        assert counts[name] == len(read_experiment(name).cells())
