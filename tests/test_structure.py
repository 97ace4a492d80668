"""The rules of the house: imports point one way, and only two folders know flax.linen."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "pasmr_jax"
ORDER = (
  "text",
  "data",
  "models",
  "parallel",
  "rollout",
  "feedback",
  "learning",
  "stages",
  "experiment",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
  """Every module a file imports, wherever in it the import stands."""
  modules = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
  return modules


def folder(module: str) -> str | None:
  parts = module.split(".")
  return parts[1] if parts[0] == "pasmr_jax" and len(parts) > 1 and parts[1] in ORDER else None


def test_every_folder_has_its_place():
  found = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
  assert found == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
  if path.parent == PACKAGE:
    return
  mine = ORDER.index(path.relative_to(PACKAGE).parts[0])
  used = {folder(module) for module in imported(path)} - {None}
  back = sorted(name for name in used if ORDER.index(name) > mine)
  assert not back, f"{path} imports from {back}, which stand after {path.parent.name}"


def test_only_models_and_parallel_import_linen():
  users = {path.relative_to(PACKAGE).parts[0] for path in FILES if "flax.linen" in imported(path)}
  assert users <= {"models", "parallel"}


def test_text_and_feedback_do_without_jax():
  for path in FILES:
    if path.relative_to(PACKAGE).parts[0] in ("text", "feedback"):
      assert not any(module.split(".")[0] == "jax" for module in imported(path)), path


def test_torch_is_never_imported():
  for path in FILES:
    assert not any(module.split(".")[0] == "torch" for module in imported(path)), path
