"""Memory that is left: the least of what the machine and the container have."""

import os
from pathlib import Path

import pytest

from immiscible_diffusion.data import _memory


def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: str, limit: str, used: str) -> None:
    for name, text in (("meminfo", available), ("max", limit), ("current", used)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(
        _memory, "_GROUPS", ((tmp_path / "max", tmp_path / "current"), (tmp_path / "no", tmp_path / "no"))
    )


MACHINE = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n"


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max\n", "1\n", 5000 * 1024),
        ("3000000\n", "1000000\n", 2_000_000),
        ("3\n", "7\n", 0),
        ("90000000", "0", 5120000),
    ],
)
def test_the_least_of_machine_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, expected: int
) -> None:
    place(tmp_path, monkeypatch, MACHINE, limit, used)
    assert _memory.free_bytes() == expected


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, monkeypatch, "nothing of the kind", "max", "")
    monkeypatch.delattr(os, "sysconf")
    assert _memory.free_bytes() is None


def test_this_machine_has_some() -> None:
    free = _memory.free_bytes()
    assert free is None or 2**20 < free < 2**50
