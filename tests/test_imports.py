"""The import arrows between sub-packages, and the few places that know Lightning and W&B."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vsr_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

RUN = ("provenance", "processes", "wandb_logger", "runs")  # what commands that make a run share
# For all others to import, but not for each other.
FREE = (
    "averages",
    "conditions",
    "config",
    "errors",
    "experiment",
    "files",
    "metrics",
    "targets",
)
# Who may import whom, beside itself and FREE.
ARROWS = {
    "averages": {"conditions"},
    "errors": set(),
    "metrics": set(),
    "conditions": {"errors", "experiment"},
    "experiment": {"errors"},
    "targets": {"errors"},
    "config": {"errors", "experiment", "targets"},
    "files": {"errors"},
    "provenance": set(),
    "processes": set(),
    "wandb_logger": {"processes", "provenance"},
    "runs": {"processes", "provenance", "wandb_logger"},
    "data": set(),
    "models": set(),
    "degradation": set(),
    "inference": {"models", "degradation"},
    "training": {"data", "models", "degradation", "inference", *RUN},
    "evaluation": {"data", "models", "degradation", "inference", *RUN},
    "ablation": {"training", "evaluation", "models", *RUN},
    "dashboard": {"wandb_logger"},
    "pairs": {"evaluation", "figures"},
    "figures": set(),
}
LIGHTNING = (
    *("data/", "training/", "inference/lit_vsr.py", "evaluation/restoring.py", "evaluation/clock.py"),
    *("processes.py", "wandb_logger.py"),
)
WANDB = ("evaluation/wandb_run.py", "dashboard.py", "wandb_logger.py")
WANDB_LOGGER = ("wandb_logger.py",)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(source: str) -> set[str]:
    """Full names of everything that a module imports, wherever in it; `from a import b` is `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their arrow"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: str) -> str:
    """`training/run.py` -> `training`, `runs.py` -> `runs`."""
    return path.split("/")[0].removesuffix(".py")


def forbidden_arrows(path: str, source: str) -> set[str]:
    own = part(path)
    targets = {name.split(".")[1] for name in imported(source) if name.startswith("vsr_lightning.")}
    free = set() if own in FREE else {*FREE}
    return targets - ARROWS[own] - free - {own}


def imports_library(source: str, library: str) -> bool:
    return any(name == library or name.startswith(f"{library}.") for name in imported(source))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_keep_to_the_table(path):
    name, source = relative(path), path.read_text()
    if name not in ("__main__.py", "__init__.py"):
        assert not forbidden_arrows(name, source)
    if name != "__main__.py":
        for library, homes in {
            "lightning": LIGHTNING,
            "lightning.pytorch.loggers": WANDB_LOGGER,
            "wandb": WANDB,
        }.items():
            assert name.startswith(homes) or not imports_library(source, library)


def test_every_part_has_its_row():
    assert {part(relative(path)) for path in FILES} - {"__main__", "__init__"} == set(ARROWS)


def test_init_files_are_empty():
    filled = [relative(path) for path in FILES if path.name == "__init__.py" and path.read_text().strip()]
    assert not filled


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/vae.py", "from vsr_lightning import runs"),
        ("models/vae.py", "def f():\n    from vsr_lightning.data.clips import stack"),
        ("models/vae.py", "import vsr_lightning.data"),
        ("experiment.py", "from vsr_lightning.config import load_config"),
    ],
)
def test_a_forbidden_arrow_is_seen(path, source):
    assert forbidden_arrows(path, source)
