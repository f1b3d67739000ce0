"""Fixtures that test files share."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shapes


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a file whose tests are all medium before it is imported, where no such test is to run."""
    if "not medium" not in config.option.markexpr or not collection_path.name.startswith("test_"):
        return None
    marked = re.search(r"^pytestmark = \[?\s*pytest\.mark\.medium", collection_path.read_text("utf-8"), re.MULTILINE)
    return True if marked else None


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of real data of a given name, ../shared/data/NAME; skip the test where there is none."""

    def find(name: str) -> Path:
        path = Path(__file__).parents[2] / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"needs real data in {path}, which is not part of the repository")
        return path

    return find


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the run-time check of annotations: a user has none, and meets the code's own errors."""
    with shapes.unchecked():
        yield
