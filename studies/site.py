"""Hooks of the documentation site (``mkdocs.yml``): folders in its navigation, links out of ``docs``, the reference."""

import ast
import posixpath
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["on_config", "on_files", "on_page_markdown", "outline", "readable", "reference", "relink"]

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src", "immiscible_diffusion")
OUTSIDE = "repository"
"""Where the site keeps what pages link to outside ``docs``, at its path in the repository."""

BESIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
"""Pages of the site that do not lie in ``docs``."""

COMMAND_LINE = {"cli", "scripts", "__main__"}
SECTIONS = {"Args", "Attributes", "Examples", "Raises", "Returns", "Yields"}
LABEL = re.compile(r"^([A-Z][a-z]+): (\S.*(?:\n[ ]{4}.*)*)", re.MULTILINE)
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")

Nav = list[Any]


def outline(nav: Nav, root: Path = ROOT) -> Nav:
    """Return the navigation with every folder (``results/``) replaced by its pages, an overview first.

    Raises:
        ValueError: a folder without pages.
    """
    entries: Nav = []
    for entry in nav:
        if isinstance(entry, str):
            entries += _pages_of(entry, root) if entry.endswith("/") else [entry]
        else:
            ((title, inner),) = entry.items()
            entries.append({title: outline(inner, root) if isinstance(inner, list) else inner})
    return entries


def _pages_of(folder: str, root: Path) -> list[str]:
    pages = [uri for uri in reference(root) if uri.startswith(folder)]
    pages += [path.relative_to(root / "docs").as_posix() for path in (root / "docs" / folder).glob("*.md")]
    if not pages:
        raise ValueError(f"mkdocs.yml names the folder docs/{folder}, which has no pages")
    return sorted(pages, key=lambda uri: (not uri.endswith("README.md"), uri))


def site_uri(path: Path, root: Path = ROOT) -> str:
    """Return the place in the site's sources of a file or folder of the repository."""
    if path.is_relative_to(root / "docs"):
        if path.is_dir():  # a folder is its overview, or its first page
            path = min(path.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
        return path.relative_to(root / "docs").as_posix()
    inner = path.relative_to(root).as_posix()
    return f"{OUTSIDE}/{inner}/README.md" if path.is_dir() else f"{OUTSIDE}/{inner}"


def relink(text: str, page: Path, root: Path = ROOT) -> tuple[str, set[Path]]:
    """Return a page's text with its links as the site has them, and the linked files that lie outside ``docs``.

    Args:
        text: Markdown of the page.
        page: where the page lies in the repository.
        root: the repository.
    """
    outside: set[Path] = set()

    def moved(link: re.Match[str]) -> str:
        target = (page.parent / link[1]).resolve()
        if not target.exists() or not target.is_relative_to(root):
            return link[0]
        if not target.is_relative_to(root / "docs"):
            outside.add(target)
        return f"]({posixpath.relpath(site_uri(target, root), posixpath.dirname(site_uri(page, root)) or '.')}"

    return LINK.sub(moved, text), outside


def public_names(module: Path) -> list[str]:
    """Return the names in ``__all__`` of a module's file, without names of other packages, and without importing it."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            origins = _origins(module)
            package = "immiscible_diffusion"
            return [name for name in ast.literal_eval(node.value) if origins.get(name, package).startswith(package)]
    return []


@cache
def _origins(module: Path) -> dict[str, str]:
    """Return the module that each name of a file is imported from, wherever in the file; the first where several do."""
    nodes = [node for node in ast.walk(_tree(module)) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module or "" for node in reversed(nodes) for alias in node.names}


def home(module: Path, name: str, root: Path = ROOT) -> tuple[Path, str]:
    """Return the file that defines a public name, and the dotted name there, through all re-exports."""
    if origin := _origins(module).get(name):
        place = root / "src" / Path(*origin.split("."))
        return home(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"), name, root)
    dotted = module.relative_to(root / "src").with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    return module, f"{dotted}.{name}"


def reference(root: Path = ROOT) -> dict[str, str]:
    """Return the pages of the reference: place -> Markdown, one page a part of the package, and an overview.

    A part is a folder or module of the package that is no part of the command line. A folder that exports no names
    itself has those of its modules. A name that several parts export is on the first one's page.
    """
    package = root / PACKAGE
    folders = sorted(path for path in package.glob("*/__init__.py") if path.parent.name not in COMMAND_LINE)
    modules = sorted(path for path in package.glob("*.py") if not path.name.startswith("_"))
    pages: dict[str, str] = {}
    places: dict[str, str] = {}
    for part in [*folders, *modules]:
        name = part.parent.name if part in folders else part.stem
        inner = [part]
        if part in folders and not public_names(part):
            inner = sorted(path for path in part.parent.glob("*.py") if not path.name.startswith("_"))
        dotted = [home(module, public, root)[1] for module in inner for public in public_names(module)]
        fresh = [target for target in dict.fromkeys(dotted) if target not in places]
        places |= dict.fromkeys(fresh, f"{name}.md#")
        if fresh:
            blocks = [f"::: {target}" for target in fresh]
            pages[f"reference/{name}.md"] = "\n\n".join([f"# {name}", _summary(part), *blocks]) + "\n"
    door = package / "__init__.py"
    if door.exists():
        lines = [
            "# Reference",
            "",
            "What `import immiscible_diffusion` offers:",
            "",
            "| name | what it is |",
            "|---|---|",
        ]
        for public in public_names(door):
            module, target = home(door, public, root)
            lines.append(f"| [`{public}`]({places[target]}{target}) | {_summary(module, public)} |")
        pages["reference/README.md"] = (
            "\n".join([*lines, "", "Every part of the package has a page of its own."]) + "\n"
        )
    return pages


def _summary(module: Path, name: str = "") -> str:
    """Return the first line of a module's docstring, or of a function's or class's in it."""
    tree: Any = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            tree = node
    return (ast.get_docstring(tree) or "").partition("\n")[0].replace("``", "`").replace("|", "\\|")


def readable(text: str) -> str:
    """Return a docstring with its examples as code, its own labels (``Marginal:``) in bold, and brackets as written."""
    examples = [example[0] for example in EXAMPLE.finditer(text)]
    text = EXAMPLE.sub("@example@", text)
    text = LABEL.sub(lambda label: label[0] if label[1] in SECTIONS else _bold(label[1], label[2]), text)
    text = re.sub(r"\[(?=[^\]`\n]*[\])])", r"\\[", text)  # an interval is no link
    for example in examples:
        text = text.replace("@example@", f"\n```pycon\n{example}\n```\n", 1)
    return text


def _bold(label: str, text: str) -> str:
    return f"\n**{label}:** " + re.sub(r"\n +", "\n", text) + "\n"


def on_config(config: Any) -> Any:
    """Fill the navigation's folders; let the extension in ``studies/docstrings.py`` import this module."""
    sys.path.append(str(ROOT))
    config.nav = outline(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the reference, the pages beside ``docs``, and the files that pages link to outside it."""
    from mkdocs.structure.files import File

    for uri, text in reference().items():
        files.append(File.generated(config, uri, content=text))
    pages = [ROOT / name for name in BESIDE]
    outside = {target for page in [*pages, *(ROOT / "docs").rglob("*.md")] for target in relink(_read(page), page)[1]}
    for page in pages:
        files.append(File.generated(config, site_uri(page), content=relink(_read(page), page)[0]))
    for folder in [target for target in outside if target.is_dir()]:
        inside = sorted(path for path in folder.iterdir() if path.is_file())
        lines = [f"# {folder.relative_to(ROOT).as_posix()}", "", *(f"- [{path.name}]({path.name})" for path in inside)]
        files.append(File.generated(config, site_uri(folder), content="\n".join(lines)))
        outside.update(inside)
    for target in sorted(outside - set(pages)):
        if target.is_file():
            files.append(File.generated(config, site_uri(target), abs_src_path=str(target)))
    return files


@cache
def _tree(module: Path) -> ast.Module:
    return ast.parse(_read(module))


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Write the links of a page of ``docs`` as the site has them."""
    path = ROOT / "docs" / page.file.src_uri
    return relink(markdown, path)[0] if path.exists() else markdown
