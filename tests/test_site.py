"""The documentation site: its navigation holds every page, its links are rewritten, its reference has every name."""

import re
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import immiscible_diffusion
from browser import BROWSER, opened
from immiscible_diffusion import couplings
from studies.site import BESIDE, outline, readable, reference, relink, site_uri

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "site"
CONFIGURATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def places(nav: list[Any]) -> list[str]:
    """Return all pages of a navigation."""
    inner = [value for entry in nav for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [place for value in inner for place in (places(value) if isinstance(value, list) else [value])]


def test_the_navigation_holds_every_page_once() -> None:
    held = places(outline(CONFIGURATION["nav"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages |= {"playground/index.html", *reference(), *(site_uri(ROOT / name) for name in BESIDE if name != "README.md")}
    assert sorted(held) == sorted(pages)
    assert len(pages) > 50


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="docs/empty/, which has no pages"):
        outline([{"Empty": ["empty/"]}], tmp_path)


def test_links_out_of_docs_lead_into_the_site() -> None:
    page = ROOT / "docs" / "recipes" / "README.md"
    text, outside = relink("[a](../faq.md#x) [b](../../README.md) [c](../../benchmarks/results) [d](https://x.y)", page)
    assert text == "[a](../faq.md#x) [b](../repository/README.md) [c](../repository/benchmarks/results/README.md) " + (
        "[d](https://x.y)"
    )
    assert outside == {ROOT / "README.md", ROOT / "benchmarks" / "results"}
    text, _ = relink("[a](docs/faq.md) [b](docs/decisions/) [c](nowhere.md)", ROOT / "README.md")
    assert text.startswith("[a](../faq.md) [b](../decisions/0001-")
    assert text.endswith("[c](nowhere.md)")


def test_the_reference_has_every_public_name() -> None:
    pages = reference()
    overview = re.findall(r"^\| \[`(\w+)`\]\((\w+\.md)#([\w.]+)\) \| \S", pages["reference/README.md"], re.M)
    assert sorted(name for name, _, _ in overview) == sorted(immiscible_diffusion.__all__)
    assert all(f"::: {target}\n" in pages[f"reference/{page}"] for _, page, target in overview)
    targets = re.findall(r"^::: (\S+)$", "".join(pages.values()), re.M)
    assert len(targets) == len(set(targets)) > 200
    for target in targets:  # each leads to what has this name, a function that is called like its module too
        module, _, name = target.rpartition(".")
        value = getattr(import_module(module), name)
        assert not isinstance(value, ModuleType)
        assert not isfunction(value) or value.__name__ == name
    named = {target.rpartition(".")[2] for target in targets}
    assert named >= {*couplings.__all__, "load_export", "Source"}
    assert "Float" not in named  # another package's name


def test_docstrings_are_readable() -> None:
    """Examples become code, labels of this project bold paragraphs, and intervals no links."""
    text = readable(
        "Pair.\n\nMarginal: normal,\n    exactly.\nReturns: x in [0, 1).\n\n>>> f()\n[1, 2]\n\nRaises:\n    E: no."
    )
    assert "\n**Marginal:** normal,\nexactly.\n" in text
    assert "\nReturns: x in \\[0, 1).\n" in text
    assert "\n```pycon\n>>> f()\n[1, 2]\n```\n" in text
    assert text.endswith("\nRaises:\n    E: no.")


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome, which this machine has not")
@pytest.mark.skipif(not BUILT.exists(), reason="needs the built site: make docs")
@pytest.mark.parametrize("width", [1400, 390])
def test_every_built_page_in_a_browser(width: int, tmp_path: Path) -> None:
    """No page is wider than its window, lacks a picture, has an error or asks the network for anything."""
    pages = sorted(path for path in BUILT.rglob("*.html") if path.name != "404.html")  # which a server shows
    assert len(pages) > 50
    missing = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
    with opened(tmp_path / "profile") as page:
        for path in pages:
            page.faults.clear()
            page.open(path, width=width)
            faults = [fault for fault in page.faults if "favicon" not in fault]
            assert (page.too_wide(), page.evaluate(missing), faults) == (0, [], []), path
