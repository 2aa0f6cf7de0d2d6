"""The repository itself: exact versions, nothing foreign, and a README that is true."""

import re
import shlex
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

import gleak_core
from gleak_core.cli import app
from gleak_core.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]
LARGEST = 1_500_000
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
# Made for the book, or shipped with scikit-image; each has its place.
OUR_PICTURES = re.compile(r"book/_static/[\w.-]+\.(png|svg)")
FORBIDDEN = {".pkl", ".pickle", ".pt", ".pth", ".npz", ".npy", ".safetensors", ".onnx", ".lock"}
MACHINE = re.compile(r"/(home|Users|root|work|opt|mnt|tmp/pytest)/[\w.-]+|[A-Z]:\\\\Users")
# Files whose business it is to speak of such paths.
ABOUT_PATHS = {"tests/test_project.py", "tests/publish/test_gate.py"}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".ipynb", ".csv", ".js", ".css", ""}


def tracked() -> list[Path]:
    """Return what git tracks or would track."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- versions ----------------------------------------------------------------------------------


def test_a_constraint_is_one_exact_version_and_no_address() -> None:
    for line in LOCK:
        requirement = Requirement(line)
        assert [spec.operator for spec in requirement.specifier] == ["=="], line
        assert "*" not in str(requirement.specifier), line
        assert not re.search(r"://|file:|--|@", line), line


def test_every_dependency_has_its_exact_version_and_the_version_fits() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for line in [*PROJECT["dependencies"], *chain(*extras.values())]]
    exact = {}
    for line in map(Requirement, LOCK):
        [spec] = line.specifier
        exact.setdefault(canonicalize_name(line.name), set()).add(spec.version)
    for each in wanted:
        assert canonicalize_name(each.name) in exact, f"{each.name}: run make lock"
        for version in exact[canonicalize_name(each.name)]:
            assert each.specifier.contains(version, prereleases=True), f"{each}: run make lock"


def test_torch_and_torchvision_are_twins() -> None:
    exact = dict(line.partition(" ")[0].split("==") for line in LOCK)
    torch, vision = exact["torch"].split("."), exact["torchvision"].split(".")
    assert int(vision[1]) == int(torch[1]) + 15  # torch 2.N goes with torchvision 0.(N+15)
    assert vision[2] == torch[2]


def test_the_conda_environment_is_thin() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert {re.split(r"[<>=]", name)[0] for name in conda} == {"python", "pip"}
    assert pip == {"pip": ["-c constraints.txt", "-e .[book,test,fast,text]"]}


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"(?m)^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text())
    assert PROJECT["version"] == gleak_core.__version__ == citation["version"] == released[0]


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for field in ("message", "title", "authors"):
        assert citation[field]
    assert citation["license"] == PROJECT["license"] == "MIT"
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all("name" in who or "family-names" in who for who in reference["authors"])


# --- what is committed -------------------------------------------------------------------------


def test_nothing_large_foreign_or_executable_by_loading_is_committed() -> None:
    for path in tracked():
        name = name_of(path)
        assert path.stat().st_size <= LARGEST, f"{name} is larger than 1.5 MB"
        assert path.suffix not in FORBIDDEN, f"{name}: no data, weights or pickles"
        if path.suffix.lower() in PICTURES:
            assert OUR_PICTURES.fullmatch(name), (
                f"{name}: pictures of the book live in book/_static"
            )


def test_no_path_of_a_machine_is_committed() -> None:
    for path in tracked():
        if path.suffix in TEXT and name_of(path) not in ABOUT_PATHS:
            text = path.read_text(encoding="utf-8")
            found = MACHINE.search(text)
            assert not found, f"{name_of(path)} names a place on one machine: {found}"


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("/home/ann/gleak", True),
        ("in /" + "work/shared/data", True),  # in two pieces: this file names no machine either
        (r"C:\\Users\\ann", True),
        ("https://example.org/home/page", True),
        ("~/.cache/gleak", False),
        ("homework/one", False),
    ],
)
def test_the_path_check_sees_paths(text: str, caught: bool) -> None:
    assert bool(MACHINE.search(text)) is caught


# --- the README, the Makefile, CI --------------------------------------------------------------


README = (ROOT / "README.md").read_text()
SHELL = [
    line.partition("#")[0].strip()
    for file in (README, (ROOT / "CONTRIBUTING.md").read_text())
    for block in re.findall(r"```bash\n(.*?)```", file, re.S)
    for line in block.splitlines()
]
INLINE = re.findall(r"`((?:gleak|make) [^`…]+)`", README + (ROOT / "CONTRIBUTING.md").read_text())
COMMANDS = sorted({line.removeprefix(".venv/bin/") for line in [*SHELL, *INLINE] if line})
TARGETS = ("help", "setup", "book", "test", "lint", "refresh", "lab", "bench", "lock", "clean")


def test_the_readme_begins_with_words_a_picture_and_two_commands() -> None:
    prose, _, rest = README.partition("![")
    assert 4 <= sum(bool(line) for line in prose.splitlines()[1:]) <= 6
    picture = re.match(r"[^\]]{20,}\]\(([^)]+)\)", rest)
    assert picture, "the picture needs words for those who cannot see it"
    assert (ROOT / picture[1]).is_file()
    first = re.findall(r"```bash\n(.*?)```", README, re.S)[0]
    assert [line.split("#")[0].split() for line in first.splitlines()] == [
        ["make", "book"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gleak ")])
def test_a_command_of_the_readme_exists_with_its_options(command: str) -> None:
    words = shlex.split(command)[1:]
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, command
    options = [word for word in words if word.startswith("-")]
    assert all(re.search(rf"(?m)^ .*{re.escape(o)}\b", result.output) for o in options), command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_target_of_the_readme_exists(command: str) -> None:
    words = shlex.split(command)
    assert words[1] in TARGETS
    assert {w.partition("=")[0] for w in words[2:]} <= {"PROFILE", "JOBS", "DEVICE", "PYTHON"}


def test_the_readme_names_no_other_command() -> None:
    known = re.compile(r"make |gleak |source \.venv/bin/activate$")
    assert [command for command in COMMANDS if not known.match(command)] == []


def test_the_python_of_the_readme_is_python_with_names_that_exist() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    compile(code, "README.md", "exec")
    rooms = re.findall(r"\b(attacks|clients|data|metrics|models)\.(\w+)\(", code)
    assert rooms
    for room, function in rooms:
        module = __import__(f"gleak_core.{room}", fromlist=[room])
        assert function in module.__all__


def test_links_of_the_root_pages_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
            assert "://" in target or (ROOT / target).exists(), f"{page}: {target}"


def test_make_help_lists_every_target_with_its_words() -> None:
    said = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True)
    assert said.returncode == 0
    for target in TARGETS:
        assert re.search(rf"(?m)^  make {target} +\w", said.stdout), target


def test_ci_lints_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = [line.strip() for line in script.read_text().splitlines() if line.strip()]
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert "make lint" in lines
    assert lines[-1] == "make test"  # its closing line is the last that is printed


@pytest.mark.parametrize("name", ["tests", "book"])
def test_workflows_call_what_anybody_can_call(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert runs == {"tests": ["bash .ci/run"], "book": ["make book PROFILE=quick DEVICE=cpu"]}[name]


def test_hooks_use_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for repo in config["repos"]:
        assert repo["repo"] == "local"
        assert all(hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])
