"""No input to the command line ends in a traceback: it works, or one message says what is wrong (exit code 1 or 2)."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from immiscible_diffusion import cli
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.runs.launch import launch
from sweeps import sweep

pytestmark = pytest.mark.medium

VALUES = [
    "[]", "{}", "5", "-1", "0", "1.5", "1e3", "true", "nan", "inf", "''", "'a'", "a", "[1]", "[[]]", "{use=3}", "[{}]",
    '{use="nearest"}', '["a"]', "1e400", "99999999999999999999", "[true]", "2026-01-01", "{a=1}", "{use=[]}", "-0.0",
]  # fmt: skip
OTHER_KEYS = [
    "grid", "grid.coupling", "grid.train.seed", "scale", "scale.smoke", "base", "title", "preset", "extends", "", "a",
    "a.b.c", "train.seed.a", "source.use.x", "published",
]  # fmt: skip


def dotted(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield before + key
        if isinstance(value, dict):
            yield from dotted(value, f"{before}{key}.")


def answered(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run the command line; an exception that leaves it fails the test."""
    code = cli.run(arguments)
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert (code == 0) == (not said.err.lstrip().startswith("immiscible: "))  # a progress bar ends with a line break
    assert "Traceback" not in said.err
    return code


def test_the_control_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(["show", "demo", "--scale", "smoke"], capsys) == 0


KEYS = [*dotted(read_experiment("demo").cells("smoke")[0].config.plain()), *OTHER_KEYS]


@pytest.mark.parametrize("key", sweep(KEYS, 25))
def test_any_value_of_any_key(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in VALUES:
        answered(["show", "demo", "--scale", "smoke", "--set", f"{key}={value}"], capsys)


FILE_VALUES = [
    *VALUES[:20], "{'x.y'=3}", "{'train.seed'=[]}", "{'train.seed'={}}", "{coupling=5}", "{coupling={a=5}}",
    "{smoke=5}", "{smoke={'train.steps'='x'}}", "{smoke={'grid.coupling'=5}}", "{'train.lr, train.batch'=[[1,2]]}",
    "{'train.lr, train.batch'={a=[1]}}", "'../x'",
]  # fmt: skip
TABLES = ["extends", "title", "source", "question", "base", "grid", "scale", "published", "new"]
IN_BASE = ["source", "codec", "coupling", "method", "net", "train", "evaluate", "preset", "extra"]


@pytest.mark.parametrize("key", sweep([*TABLES, *(f"base.{key}" for key in IN_BASE)], 9))
def test_any_file(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    for value in FILE_VALUES:
        extends = "" if key == "extends" else 'extends = "demo"\n'
        path.write_text(f"{extends}{key} = {value}\n")
        for scale in ([], ["--scale", "smoke"]):
            answered(["show", str(path), *scale], capsys)


def test_files_that_are_no_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    for content in (b"", b"\0", "ü".encode("latin-1"), 'extends = "demo"'.encode("utf-16"), b"[base", b"\xff" * 100):
        path.write_bytes(content)
        assert answered(["show", str(path)], capsys) == 2
    path.write_bytes(b'\xef\xbb\xbfextends = "demo"\n')  # a byte-order mark is no fault
    assert answered(["show", str(path)], capsys) == 0
    assert answered(["show", str(tmp_path)], capsys) == 2


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(200)),  # noqa: S311
    "a folder": lambda path: path.unlink() or path.mkdir(),  # type: ignore[func-returns-value]
    **{
        text: lambda path, text=text: path.write_text(text)  # type: ignore[misc]
        for text in ("null", "[]", "{}", "3", '["a"]', "[{}]", '{"step": -1}')
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of one finished run."""
    path = tmp_path_factory.mktemp("runs") / "demo"
    small = [("grid.coupling", ["assignment"]), ("train.seed", 0), ("train.steps", 2), ("evaluate.steps", [2])]
    cells = read_experiment("demo").cells("smoke", small)
    list(launch(read_experiment("demo"), cells, path, workers=1, device="cpu", console=Console(quiet=True)))
    return path


FILES = [
    "index.json", "pairs.json", "RUN/config.json", "RUN/environment.json", "RUN/log.jsonl", "RUN/evaluations.jsonl",
    "RUN/export/immiscible.json", "RUN/export/net.safetensors", "RUN/export/README.md",
]  # fmt: skip


def commands(folder: Path, run: Path) -> list[list[str]]:
    return [
        ["report", str(folder)],
        ["compare", str(folder)],
        ["sample", str(run), "--n", "1", "--steps", "1"],
        ["evaluate", str(run), "--n", "4", "--steps", "1"],
    ]


OPTIONS = [
    *(
        ("sample", option)
        for option in ("--steps", "--seed", "--guidance", "--labels", "--sampler", "--start", "--eta")
    ),
    *(("evaluate", option) for option in ("--steps", "--seed", "--guidance")),
]


@pytest.mark.parametrize(("command", "option"), sweep(OPTIONS, 4))
def test_any_value_of_an_option(
    command: str, option: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = copied(folder, tmp_path / "demo")
    for value in (*VALUES, "200000000000", "1" * 400):
        shutil.rmtree(run / "generated", ignore_errors=True)
        assert cli.run([command, str(run), "--n", "2", "--steps", "1", option, value]) in (0, 1, 2)
        assert "Traceback" not in capsys.readouterr().err


def copied(folder: Path, to: Path) -> tuple[Path, Path]:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    (run,) = (path.parent for path in to.glob("*/config.json"))
    return to, run


@pytest.mark.parametrize("name", sweep(FILES, 5))
def test_any_damage_to_a_file_of_a_run(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in DAMAGE.values():
        where, run = copied(folder, tmp_path / "demo")
        damage(run / name.removeprefix("RUN/") if name.startswith("RUN/") else where / name)
        for command in commands(where, run):
            answered(command, capsys)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value, of a list's items the first alone."""
    if above:
        yield above
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*above, key))


JSON = ["index.json", "pairs.json", "RUN/config.json", "RUN/environment.json", "RUN/export/immiscible.json"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of a value that works and is not wise, such as a narrow clip
@pytest.mark.parametrize("name", JSON)
def test_any_value_in_a_file_of_a_run(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, run = copied(folder, tmp_path / "demo")
    path = run / name.removeprefix("RUN/") if name.startswith("RUN/") else where / name
    whole = path.read_text()
    for place, value in itertools.product(list(places(json.loads(whole))), (None, [], {}, "x", -1, 10**9, 0.5, "gone")):
        changed = json.loads(whole)
        table = changed
        for key in place[:-1]:
            table = table[key]
        if value == "gone":
            del table[place[-1]]
        else:
            table[place[-1]] = value
        path.write_text(json.dumps(changed))
        for command in commands(where, run):
            shutil.rmtree(run / "generated", ignore_errors=True)
            answered(command, capsys)
