"""The rows that a GPU run records, one JSON object a line, written and flushed as each is measured."""

import json
import math
from pathlib import Path
from typing import Any

from immiscible_diffusion.files import read_lines, write_lines

__all__ = ["Rows"]


class Rows:
    """The file ``rows.jsonl`` of a folder; rows that it held when opened are kept and not measured again.

    Args:
        folder: where the file is.
        earlier: the folder of an earlier run, whose rows are taken over if this folder has none.

    Raises:
        ValueError: a line of the file is not JSON.
    """

    def __init__(self, folder: Path, earlier: Path | None = None) -> None:
        self.path = folder / "rows.jsonl"
        if earlier is not None and not self.path.exists():
            write_lines(self.path, read_lines(earlier / "rows.jsonl"))
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, **values: Any) -> None:
        """Append a row, and print it. Numbers that are not finite become null, for JSON has none."""
        line = json.dumps({"part": part, **_finite(values)}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:240], flush=True)  # noqa: T201

    def of(self, part: str) -> list[dict[str, Any]]:
        """Return the rows of a part, without rows of errors."""
        return [row for row in read_lines(self.path) if row["part"] == part and "error" not in row]

    def has(self, part: str, **values: Any) -> bool:
        """Return whether there is a row of a part with these values, and without an error."""
        return any(all(row.get(key) == value for key, value in values.items()) for row in self.of(part))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
