"""Exported folders: transformers reads them, the delimiters survive, nothing half done is left."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from safetensors.numpy import load_file

from configs import base, tiny
from pasmr_jax.experiment import exporting
from pasmr_jax.experiment.exporting import export
from pasmr_jax.experiment.setup import make_run
from pasmr_jax.models import writing
from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.transformer import Transformer, logits, output_table
from pasmr_jax.text.prompts import question_prompt
from pasmr_jax.text.tokenizer import load_tokenizer
from tests import tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  return tiny_model.write(tmp_path_factory.mktemp("llama"))


def configuration(folder: pathlib.Path):
  config = base.get_config()
  config.stages = ("pam",)
  config.model.pretrained = str(folder)
  config.tokenizer.delimiters = "added"
  config.prompt.style = "chat"
  config.data.root = "/somewhere/of/mine"
  config.data.triplets = ("synthetic:40", "json:/home/me/mine/train_{language}.jsonl[:5]")
  config.data.srl = ("huggingface:/home/me/sets,main,train", "huggingface:owner/sets")
  config.data.test = ("mgsm[:50]", "mgsm:{root}/mgsm_{language}.tsv")
  config.init_from = "../somewhere/run"
  config.evaluation.exemplar_file = "/home/me/exemplars.json"
  config.checkpoint.notice = "/home/me/notice"
  config.log.progress = False
  return config


@jax.jit(static_argnums=0)
def all_logits(config, params, tokens):
  tokens = tokens[None]
  ones = jnp.ones_like(tokens)
  hidden, _ = Transformer(config).apply(
    {"params": params}, tokens, jnp.arange(tokens.shape[1])[None], ones
  )
  return logits(hidden, output_table(params, config), config)[0]


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
  workdir, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out") / "model"
  measures = {"greedy": {"accuracy/en": 0.5, "accuracy/de": 0.25}, "sampled": {"accuracy/de": 0.1}}
  (workdir / "results").mkdir()
  (workdir / "results" / "pam.json").write_text(json.dumps(measures))
  (workdir / "checkpoints" / "pam" / "10").mkdir(parents=True)
  run = make_run(configuration(folder), workdir, pools=())
  with jax.set_mesh(run.mesh):
    params = run.origins.pretrained_params()
    export(run, params, "pam_10", out)
  return run, params, out


def test_transformers_reads_the_model_with_its_new_tokens(exported):
  run, params, out = exported
  assert not out.with_name("model.partial").exists()
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  ids = question_prompt(run.tokenizer, run.config.prompt.question, "Anna has 7 apples.")
  ids += [*run.tokenizer.open_ids, *run.tokenizer.encode("7 яблок"), *run.tokenizer.close_ids]
  chat = [{"role": "user", "content": "Anna has 7 apples."}]
  text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
  text += "<pivot>7 яблок</pivot>"
  assert tokenizer.encode(text, add_special_tokens=False) == ids
  assert max(ids) == len(tokenizer) - 1 == run.tokenizer.close_ids[0]

  model = transformers.AutoModelForCausalLM.from_pretrained(out)
  rows = model.get_input_embeddings().weight
  # Rows for the two delimiters, the mean of their text's; the padding of our table is not written.
  assert len(rows) == run.tokenizer.vocab_size == len(tokenizer)
  assert run.model.vocab_size == 384
  spelled = run.tokenizer.added[run.tokenizer.open_ids[0]]
  torch.testing.assert_close(rows[-2], rows[list(spelled)].mean(dim=0))
  with torch.no_grad():
    expected = model(torch.tensor([ids])).logits[0]
  found = all_logits(run.model, params, np.array(ids))[:, : len(rows)]
  np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
  assert model.generation_config.eos_token_id == run.tokenizer.eos_id


def test_exporting_what_was_exported_changes_nothing(exported, tmp_path):
  run, _, out = exported
  config = configuration(out)
  again = make_run(config, tmp_path / "run", pools=())
  assert (again.tokenizer.open_ids, again.tokenizer.added) == (run.tokenizer.open_ids, {})
  with jax.set_mesh(again.mesh):
    export(again, again.origins.pretrained_params(), "pretrained", tmp_path / "again", "float32")
  found, expected = (load_file(place / "model.safetensors") for place in (tmp_path / "again", out))
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values, name)
  for name in ("config.json", "generation_config.json", "tokenizer.json"):
    assert (tmp_path / "again" / name).read_text() == (out / name).read_text()


def test_the_model_card_says_how_to_ask(exported, monkeypatch):
  run, params, out = exported
  assert "as the user's message.\n" in (out / "README.md").read_text("utf-8")
  vocabulary = run.tokenizer.vocabulary
  monkeypatch.setattr(vocabulary, "chat_template", "{% if enable_thinking %}{% endif %}")
  card = "\n".join(exporting._card(run, "pam_10", "qwen3", "bfloat16", params))
  assert "as the user's message, with `enable_thinking=False`.\n" in card


def test_the_model_card_says_how_it_was_made_and_how_well_it_does(exported):
  run, _, out = exported
  card = (out / "README.md").read_text("utf-8")
  assert "- Checkpoint: `pam_10`." in card
  assert "| | en | de | es |" in card
  assert "| pam, greedy | 50.0 | 25.0 | - |" in card
  assert "| pam, sampled | - | 10.0 | - |" in card
  assert "| `pam.optimizer.learning_rate` | 0.001 |" in card
  assert "- triplets: `synthetic:40`, `json:train_{language}.jsonl[:5]`" in card
  assert "- srl: `huggingface:sets,main,train`, `huggingface:owner/sets`" in card
  assert "Languages: German, Spanish." in card
  assert "base_model" not in card  # a folder is no hub id
  settings = json.loads((out / "training_config.json").read_text())
  assert settings["pam"]["batch_size"] == 32
  assert settings["data"]["test"] == ["mgsm[:50]", "mgsm:{root}/mgsm_{language}.tsv"]
  assert (settings["init_from"], settings["checkpoint"]["notice"]) == ("run", "notice")
  assert settings["model"]["pretrained"] == pathlib.Path(run.config.model.pretrained).name


def test_no_folder_of_the_machine_that_trained_is_published(exported, folder):
  run, _, out = exported
  texts = {
    file.name: file.read_text("utf-8") for file in out.glob("*") if file.suffix != ".safetensors"
  }
  assert {"training_config.json", "tokenizer_config.json", "chat_template.jinja"} <= set(texts)
  for name, text in texts.items():
    for private in ("somewhere", "/home/me", str(folder.parent), str(run.workdir)):
      assert private not in text, name


def test_scores_of_another_checkpoint_are_not_this_ones(exported, tmp_path):
  run, params, _ = exported
  (tmp_path / "results").mkdir()
  names = ("srl", "eval_srl_20", "eval_srl_200", "eval_srl_20_direct", "eval_pretrained")
  for number, name in enumerate(names):
    measures = {"greedy": {"accuracy/de": number / 10}}
    (tmp_path / "results" / f"{name}.json").write_text(json.dumps(measures))
  for step in (20, 200):
    (tmp_path / "checkpoints" / "srl" / str(step)).mkdir(parents=True)
  run = dataclasses.replace(run, workdir=tmp_path)
  for checkpoint, own in (
    ("srl_20", {"eval_srl_20", "eval_srl_20_direct"}),
    ("srl_200", {"srl", "eval_srl_200"}),
    ("pretrained", {"eval_pretrained"}),
    ("pam_5", set()),
  ):
    card = "\n".join(exporting._card(run, checkpoint, "llama", "float32", params))
    scores, others = card.split("\nOther results of its run, not known to be of this checkpoint:\n")
    assert {name for name in names if f"| {name}, greedy" in scores} == own
    assert {name for name in names if f"| {name}, greedy" in others} == set(names) - own
    assert ("Not evaluated." in scores) == (not own)


def test_the_card_of_what_was_not_trained_credits_nothing_to_training(exported):
  run, params, _ = exported
  card = "\n".join(exporting._card(run, "pretrained", "llama", "float32", params))
  assert "Nothing was trained: the model is as it was, with tokens for `<pivot>` and" in card
  for word in ("PASMR", "pasmr", "Checkpoint", "## Training", "## Data", "translated"):
    assert word not in card


QWEN = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<|model|>"
  "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
LLAMA = (
  "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
  "{% else %}{% set date = '26 Jul 2024' %}{% endif %}"
  "Today: {{ date }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<|model|>{% endif %}"
)


@pytest.mark.parametrize(("template", "thinking"), [(QWEN, False), (QWEN, True), (LLAMA, False)])
def test_the_saved_chat_template_asks_as_it_was_trained(folder, tmp_path, template, thinking):
  own = shutil.copytree(folder, tmp_path / "own")
  (own / "chat_template.jinja").write_text(template)
  for place in ("first", "second"):  # the second is trained on what the first exported
    config = configuration(own)
    config.prompt.thinking = thinking
    run = make_run(config, tmp_path / "run", pools=())
    with jax.set_mesh(run.mesh):
      export(run, run.origins.pretrained_params(), "pam_10", tmp_path / place)
    own = tmp_path / place
    tokenizer = transformers.AutoTokenizer.from_pretrained(own)
    chat = [{"role": "user", "content": "Anna has 7 apples."}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    trained = question_prompt(run.tokenizer, run.config.prompt.question, "Anna has 7 apples.")
    assert tokenizer.encode(asked, add_special_tokens=False) == trained
  first, second = (tmp_path / place / "chat_template.jinja" for place in ("first", "second"))
  assert first.read_text() == second.read_text()


def test_an_interrupted_export_leaves_nothing_that_looks_finished(exported, tmp_path, monkeypatch):
  """Wherever it ends: before, between and after the files, and while it reads them back."""
  run, params, _ = exported
  out = tmp_path / "model"
  monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 20_000)

  def interrupted(*_, **__):
    raise KeyboardInterrupt

  written = []
  save_file = safetensors.numpy.save_file

  def interrupted_after_two_files(tensors, path, **options):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(path)
    save_file(tensors, path, **options)

  for place, name, instead in (
    (exporting, "write_json", interrupted),
    (safetensors.numpy, "save_file", interrupted_after_two_files),
    (exporting, "save_tokenizer", interrupted),
    (exporting, "_card", interrupted),
    (exporting, "_read_tokenizer_back", interrupted),
  ):
    with monkeypatch.context() as patched:
      patched.setattr(place, name, instead)
      with pytest.raises(KeyboardInterrupt):
        export(run, params, "pam_10", out)
    assert not out.exists()
    assert out.with_name("model.partial").is_dir()
    if name == "save_file":  # without config.json nothing reads what is there
      assert len(written) == 2
      with pytest.raises(FileNotFoundError, match=r"found no config\.json"):
        load_config(out.with_name("model.partial"))
  export(run, params, "pam_10", out, "bfloat16")
  assert not out.with_name("model.partial").exists()
  files = sorted(out.glob("*.safetensors"))
  assert len(files) > 2
  dtypes = {values.dtype for file in files for values in load_file(file).values()}
  assert dtypes == {jnp.dtype("bfloat16")}
  with pytest.raises(ValueError, match=r"model: expected no such file, or an empty folder"):
    export(run, params, "pam_10", out)


def test_the_demonstration_model_is_exported_with_its_sentencepiece_tokenizer(tmp_path):
  config = tiny.get_config()
  config.model.embed_dim, config.model.mlp_dim, config.model.head_dim = 32, 32, 16
  run = make_run(config, tmp_path / "run", pools=())
  with jax.set_mesh(run.mesh):
    params = run.origins.start_params("base")
    export(run, params, "base_0", tmp_path / "out")
  found = load_tokenizer(str(tmp_path / "out"), "<pivot>", "</pivot>")
  assert (found.open_ids, found.bos_id, found.vocab_size) == (
    run.tokenizer.open_ids,
    run.tokenizer.bos_id,
    run.tokenizer.vocab_size,
  )
  text = "Anna hat 7 Äpfel.\n7 + 5 = 12 #### 12"
  assert found.encode(text) == run.tokenizer.encode(text)
  ids = run.tokenizer.encode(text)
  read = load_config(tmp_path / "out")
  assert (read.qk_norm, read.norm_plus_one, read.tie_embeddings) == (True, False, False)
  read = dataclasses.replace(read, dtype=run.model.dtype)
  expected = all_logits(run.model, params, np.array(ids))[:, : read.vocab_size]
  np.testing.assert_allclose(
    all_logits(read, load_params(tmp_path / "out", read), np.array(ids)), expected, atol=1e-4
  )
