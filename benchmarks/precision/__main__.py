"""``python -m benchmarks.precision``: extract what is missing, measure, write JSON, fill the tables."""

import argparse
from pathlib import Path

from benchmarks.precision import SETS, extract, filled, measure_precision
from immiscible_diffusion.features import Inception
from immiscible_diffusion.files import read_json, write_bytes, write_json


def main(arguments: list[str] | None = None) -> None:
    """Carry out the program; the same command again goes on where it was cut."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--weights", type=Path, required=True, help="the Inception network's weights")
    parser.add_argument("--chunks", type=Path, required=True, help="folder in which features are kept")
    parser.add_argument("--count", type=int, default=10_000, help="images a side, a multiple of 250")
    parser.add_argument("--damaged", type=int, default=1000, help="damaged images of each kind, a multiple of 250")
    parser.add_argument("--json", type=Path, required=True, help="what is measured is written here")
    parser.add_argument("--page", type=Path, help="a Markdown page whose tables are filled")
    given = parser.parse_args(arguments)
    counts = {name: given.count if name in ("train", "test") else given.damaged for name in SETS}
    for _ in extract(given.cifar10, Inception(str(given.weights), 768), given.chunks, counts):
        pass
    measured = measure_precision(given.chunks, cifar10=given.cifar10, weights=given.weights, count=given.count)
    write_json(given.json, measured)
    if given.page is not None:
        page = filled(given.page.read_text(encoding="utf-8"), read_json(given.json))
        write_bytes(given.page, page.encode())


if __name__ == "__main__":
    main()
