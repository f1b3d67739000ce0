"""What is released: names, versions, licences, the two archives, and the files that a code host reads."""

import email
import os
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import immiscible_diffusion
from studies.dependencies import LICENCES, declared, licences_page, listed_licences, oldest
from studies.public_names import PUBLIC_NAMES, public_names_text

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.medium
def test_public_names_change_only_with_their_list() -> None:
    written, kept = public_names_text().splitlines(), read(PUBLIC_NAMES).splitlines()
    remedy = "public names changed: run `python -m studies public-names`, and say it in CHANGELOG.md"
    assert sorted(set(written) ^ set(kept)) == [], remedy
    assert written == kept
    assert "nearest: function (x, k, *, cost='l2', generator=None, mask=None)" in kept


@pytest.mark.medium
def test_a_changed_parameter_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(x: object, k: int, *, cost: str = "dot") -> None:
        """Stand for a nearest whose default changed."""

    monkeypatch.setattr(immiscible_diffusion.couplings, "nearest", nearest)
    changed = set(public_names_text().splitlines()) - set(read(PUBLIC_NAMES).splitlines())
    assert changed == {"nearest: function (x, k, *, cost='dot')"}


def test_the_version_is_the_same_everywhere() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    (cited,) = re.findall(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)
    versions = {PROJECT["version"], immiscible_diffusion.__version__, headings[1].split()[0], cited}
    assert versions == {"0.1.0"}


def test_every_declared_dependency_has_its_licence() -> None:
    page = read(LICENCES)
    names = [dependency.name for dependency in declared()]
    assert len(names) > 30
    assert list(listed_licences(page)) == names
    assert all(text.strip() for text in listed_licences(page).values())
    written = licences_page(page)  # rows of packages that are not installed stay; those of others may be newer
    assert list(listed_licences(written)) == names


def test_a_dependency_without_a_licence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["numpy>=1", "no-such-package>=1"]\n[project.optional-dependencies]\n'
    )
    with pytest.raises(ValueError, match="no licence is known of no-such-package: install"):
        licences_page(root=tmp_path)
    kept = licences_page("| `no-such-package` | everything | MIT |", root=tmp_path)
    assert listed_licences(kept)["no-such-package"] == "MIT"
    assert "BSD" in listed_licences(kept)["numpy"]


def test_the_oldest_versions_are_those_of_the_requirements() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", read("constraints-oldest.txt"), re.MULTILINE))
    tools = {"dev", "docs", "hosts", "efficientnet"}
    used = [dependency for dependency in declared() if not dependency.extras or set(dependency.extras) - tools]
    assert pinned == {dependency.name: oldest(dependency) for dependency in used}
    assert pinned["torch"] == "2.4"
    newest = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", read("constraints.txt"), re.MULTILINE))
    assert set(pinned) <= {*newest, "pyarrow"}  # which datasets brings


def test_workflows_and_hooks_call_what_the_makefile_has() -> None:
    workflow = yaml.safe_load(read(".github/workflows/test.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = [re.match(r"make (\w+)", step["run"]) for step in steps if "run" in step]
    assert {target[1] for target in targets if target} == {"check", "test", "docs", "package"}
    for target in targets:
        assert target is not None
        assert f"\n{target[1]}: " in MAKEFILE
    pythons = {row["python"] for row in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]}
    listed = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert pythons == listed == {"3.11", "3.12", "3.13"}
    for row in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]:
        assert (ROOT / row["constraints"]).exists()
    (hooks,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    entries = [hook["entry"] for hook in hooks["hooks"]]
    assert len(entries) == 2
    assert all(f"$(BIN)/{entry.removeprefix('.venv/bin/')}\n" in MAKEFILE for entry in entries)
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text(encoding="utf-8")))


@pytest.mark.medium
def test_the_wheel_and_the_source_archive_hold_what_they_should(tmp_path: Path) -> None:
    """Both are built as an installer builds them, and compared with the repository's files."""
    build = pytest.importorskip("hatchling.build")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        wheel, source = build.build_wheel(str(tmp_path)), build.build_sdist(str(tmp_path))
    finally:
        os.chdir(before)
    package = ROOT / "src" / "immiscible_diffusion"
    files = {path.relative_to(ROOT / "src").as_posix() for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (email.message_from_bytes(archive.read(n)) for n in archive.namelist() if n.endswith("/METADATA"))
        (commands,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith("/entry_points.txt"))
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert held == files
    assert {"immiscible_diffusion/py.typed", "immiscible_diffusion/experiments/demo.toml"} <= held
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert [line.split(" = ")[0] for line in commands.splitlines()[1:] if line] == [
        "immiscible",
        "immiscible-diffusion",
    ]
    assert len(licences) == 1
    with tarfile.open(tmp_path / source) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = ["Makefile", "constraints.txt", "constraints-oldest.txt", "README.md", "CITATION.cff", "mkdocs.yml"]
    assert {*wanted, "tests/test_package.py", "studies/site.py", "benchmarks/__main__.py"} <= names
    assert {f"src/{name}" for name in files} <= names
    assert not [name for name in names if name.startswith(("runs/", "build/", ".venv", "data/", "dist/"))]
