"""docs/your_model.md: its files are written and its commands run, in order and as they stand."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from configs import base
from tests import runs, tiny_model

PAGE = runs.ROOT / "docs" / "your_model.md"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINES = 60  # of every file of questions: the page's own again and again
# Appended to whatever takes --config, so that a tiny model is done in seconds.
SMALLER = {
  "pam.steps": 4,
  "pam.batch_size": 8,
  "pam.max_length": 256,
  "srl.steps": 2,
  "srl.questions": 4,
  "srl.group_size": 2,
  "srl.microbatches": 2,
  "srl.row_bucket": 4,
  "srl.max_new_tokens": 16,
  "srl.max_pivot_tokens": 8,
  "feedback.pivot_samples": 2,
  "evaluation.max_new_tokens": 16,
  "evaluation.development_questions": 4,
  "evaluation.sampled": False,
  "log.progress": False,
}


def blocks() -> list[tuple[str, str, str]]:
  """Language, file and text of every block of the page."""
  return BLOCK.findall(PAGE.read_text("utf-8"))


def commands(text: str) -> list[list[str]]:
  found = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
  assert all(command[0] == "python" for command in found), found
  return found


def test_every_block_is_a_file_or_commands():
  kinds = {(language, bool(file)) for language, file, _ in blocks()}
  assert kinds == {("json", True), ("python", True), ("bash", False)}
  scripts = [text for kind, _, text in blocks() if kind == "bash"]
  programs = [command[1] for text in scripts for command in commands(text)]
  assert programs == ["eval.py", "train.py", "-m", "export.py", "mine/ask.py"]


def test_the_model_is_asked_as_it_was_trained():
  page = PAGE.read_text("utf-8")
  files = {file: text for _, file, text in blocks()}
  trained, asked = files["mine/config.py"], files["mine/ask.py"]
  (limit,) = re.findall(r"config\.srl\.max_new_tokens = (\d+)", trained)
  assert f"max_new_tokens={limit}, " in asked
  (question,) = re.findall(r'"content": "(.*)"}', asked)
  plain = base.get_config().prompt.question.format(question=question)
  assert f"asked = tokenizer({json.dumps(plain)}, " in page


@pytest.mark.long
@pytest.mark.slow
def test_the_page_leads_from_a_model_to_an_exported_one(compiled, tmp_path):
  pytest.importorskip("torch")
  for name in ("configs", "pasmr_jax", "train.py", "eval.py", "export.py"):
    (tmp_path / name).symlink_to(runs.ROOT / name)
  (tmp_path / "mine").mkdir()
  tiny_model.write(tmp_path / "mine" / "model")
  environment = runs.environment(compiled, devices=1) | {"PYTHONPATH": str(tmp_path)}
  said = {}
  for kind, file, text in blocks():
    if kind == "bash":
      for command in commands(text):
        said[command[1]] = run(command, tmp_path, environment)
    elif kind == "json":
      lines = text.splitlines()
      assert all(isinstance(json.loads(line), dict) for line in lines)
      (tmp_path / file).write_text("\n".join((lines * LINES)[:LINES]) + "\n", "utf-8")
    else:
      (tmp_path / file).write_text(text, "utf-8")

  # What the page says of each step.
  assert "eval_pretrained_direct, greedy" in said["eval.py"]
  assert "test accuracy, greedy" in said["train.py"]
  assert (tmp_path / "runs" / "mine" / "report.html").is_file()
  assert "srl_greedy against pam_greedy" in said["-m"]
  assert "exported srl_2" in said["export.py"]
  card = (tmp_path / "mine" / "exported" / "README.md").read_text("utf-8")
  assert "| srl, greedy |" in card
  assert said["mine/ask.py"].strip()
  vocabulary = json.loads((tmp_path / "mine" / "exported" / "tokenizer.json").read_text("utf-8"))
  assert {"<pivot>", "</pivot>"} <= {token["content"] for token in vocabulary["added_tokens"]}


def run(command: list[str], folder: pathlib.Path, environment: dict[str, str]) -> str:
  """What the command printed; it must end well."""
  smaller = [f"--config.{key}={value}" for key, value in SMALLER.items()]
  takes_config = any(part.startswith("--config=") for part in command)
  finished = subprocess.run(
    [sys.executable, *command[1:], *(smaller if takes_config else ())],
    cwd=folder,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert finished.returncode == 0, f"{command}: {finished.stderr[-3000:]}"
  return finished.stdout + finished.stderr
