"""Part ``tests``: the tests marked gpu, one row a test."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.scale import Site

__all__ = ["checks"]


def checks(site: Site) -> bool:
    """Run the tests and record what became of each; return True.

    Raises:
        ValueError: pytest ended without a report.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *site.scale.tests]
        run = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "pytest", *options],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=site.left(),
        )
        if not report.exists():
            raise ValueError(f"pytest ended with {run.returncode}: {(run.stdout + run.stderr).strip()[-300:]}")
        # The report is this process's own.
        cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314
    for case in cases:
        bad = [part for kind in ("failure", "error", "skipped") for part in case.findall(kind)]
        values = {"outcome": bad[0].tag, "message": bad[0].get("message", "")[:300]} if bad else {"outcome": "passed"}
        site.rows.add("tests", test=case.get("name"), seconds=float(case.get("time", "0")), **values)
    return True
