"""Commands that write the list of public names and the page of the dependencies' licences."""

from typing import Annotated

import typer

from immiscible_diffusion.cli.options import out
from immiscible_diffusion.files import write_bytes
from studies.dependencies import LICENCES, licences_page
from studies.public_names import PUBLIC_NAMES, public_names_text

__all__ = ["licences", "public_names"]


def public_names() -> None:
    """Write the list of public names, with their parameters, that a test compares with the code."""
    write_bytes(PUBLIC_NAMES, public_names_text().encode())
    out.print(f"{PUBLIC_NAMES} is written: say in CHANGELOG.md, under Unreleased, what changed")


def licences(
    folders: Annotated[
        list[str] | None, typer.Option("--path", help="Where packages are installed; may be repeated.")
    ] = None,
) -> None:
    """Write the licences of all declared dependencies, from the metadata of the installed packages."""
    before = LICENCES.read_text(encoding="utf-8") if LICENCES.exists() else ""
    write_bytes(LICENCES, licences_page(before, folders).encode())
    out.print(f"{LICENCES} is written")
