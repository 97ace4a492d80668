"""eval.py as a user starts it, on what no run of this project has trained."""

import json

import pytest

from tests import runs, tiny_model

CONFIG = """from configs import base


def get_config():
  config = base.get_config()
  config.languages = ("de",)
  config.model.pretrained = {model!r}
  config.data.root = {root!r}
  config.data.test = ("mgsm[:2]",)
  config.rollout.prompt_bucket = 64
  config.evaluation.max_prompt_length = 64
  config.evaluation.max_new_tokens = 8
  config.evaluation.sampled = False
  config.log.progress = False
  return config
"""


@pytest.mark.slow
def test_a_pretrained_model_is_evaluated_without_data_to_train_on(environment, tmp_path):
  pytest.importorskip("torch")
  (tmp_path / "model").mkdir()
  tiny_model.write(tmp_path / "model")
  (tmp_path / "mgsm").mkdir()
  for language, question in (("en", "How many?"), ("de", "Wie viele?")):
    lines = [f"{number} {question}\t{number}" for number in (1, 2, 3)]
    (tmp_path / "mgsm" / f"mgsm_{language}.tsv").write_text("\n".join(lines), "utf-8")
  config = tmp_path / "config.py"
  config.write_text(CONFIG.format(model=str(tmp_path / "model"), root=str(tmp_path)), "utf-8")
  python, program = runs.command(tmp_path, "eval.py")[:2]
  flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--stage=pretrained"]
  finished = runs.run([python, program, *flags], environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  result = tmp_path / "run" / "results" / "eval_pretrained_mgsm.json"
  measured = json.loads(result.read_text("utf-8"))["greedy"]
  assert measured["questions/de"] == measured["questions/en"] == 2
