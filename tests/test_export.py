"""export.py as a user starts it, on a run that train.py left."""

import json

import pytest

from tests import runs

FILES = {
  "README.md",
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "tokenizer.json",
  "tokenizer_config.json",
  "training_config.json",
}


def test_a_finished_run_is_exported_and_transformers_answers_with_it(
  uninterrupted, environment, tmp_path
):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  workdir, out = uninterrupted[0], tmp_path / "model"
  command = runs.command(workdir, "export.py", [f"--out={out}", "--dtype=bfloat16"])
  finished = runs.run(command, environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  assert "exported srl_8 to" in finished.stderr
  assert {file.name for file in out.iterdir()} == FILES
  card = (out / "README.md").read_text("utf-8")
  assert "| srl, greedy |" in card
  assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"

  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert len(tokenizer("<pivot></pivot>", add_special_tokens=False)["input_ids"]) == 2
  asked = tokenizer("Anna hat 7 Äpfel und kauft 5.\n", return_tensors="pt")
  with torch.no_grad():
    answer = model.generate(**asked, do_sample=False, max_new_tokens=16)[0]
  text = tokenizer.decode(answer[asked["input_ids"].shape[1] :])
  assert text.strip()
  assert tokenizer.unk_token not in text

  refused = runs.run(command, environment)
  assert refused.returncode != 0
  assert "expected no such file, or an empty folder" in refused.stderr


@pytest.mark.parametrize("stage", ["last", "srl"])
def test_a_misspelt_work_directory_is_not_made(environment, tmp_path, stage):
  command = runs.command(
    tmp_path / "typo", "export.py", [f"--out={tmp_path / 'model'}", f"--stage={stage}"]
  )
  refused = runs.run(command, environment)
  assert refused.returncode != 0
  assert f"{tmp_path / 'typo'}: expected a run" in refused.stderr
  assert not list(tmp_path.iterdir())


def test_adapters_have_one_dtype(environment, tmp_path):
  (tmp_path / "run" / "checkpoints" / "pam" / "1").mkdir(parents=True)
  flags = [f"--out={tmp_path / 'model'}", "--dtype=bfloat16"]
  command = runs.command(tmp_path / "run", "export.py", flags, lora__rank=2)
  refused = runs.run(command, environment)
  assert refused.returncode != 0
  assert "--dtype=bfloat16: adapters are float32; expected no --dtype" in refused.stderr
