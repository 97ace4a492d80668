"""The report as a file: what it holds, that it is whole, that nothing in it can break out."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

from pasmr_jax.experiment import report
from pasmr_jax.experiment.report import write_report
from pasmr_jax.experiment.reporting import page as report_page
from pasmr_jax.experiment.reporting.elements import json_block
from tests.experiment import sample_run


class Parsed(html.parser.HTMLParser):
  """The elements of a page, its visible texts by element, its scripts and tables."""

  def __init__(self, page: str):
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.scripts: list[str] = []
    self.texts: dict[str, list[str]] = {}
    self.rows: list[list[str]] = []
    self._inside = ""
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._inside = tag
    if tag == "script":
      self.scripts.append("")
    elif tag == "tr":
      self.rows.append([])

  def handle_data(self, data):
    if self._inside == "script" and self.scripts:
      self.scripts[-1] += data
    else:
      self.texts.setdefault(self._inside, []).append(data)
    if self._inside in ("th", "td"):
      self.rows[-1].append(data)

  def handle_endtag(self, tag):
    self._inside = ""

  def policy(self) -> str:
    (content,) = [
      attributes["content"]
      for tag, attributes in self.tags
      if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    return content or ""


@pytest.fixture
def workdir(tmp_path):
  return sample_run.write_run(tmp_path / "pivot")


def _page(*workdirs, path) -> Parsed:
  write_report(workdirs, path)
  return Parsed(path.read_text("utf-8"))


def test_a_page_of_a_run(workdir):
  page = _page(workdir, path=workdir / "report.html")
  assert page.texts["h1"] == ["PASMR report: pivot"]
  assert page.texts["h2"] == ["Test accuracy", "Training", "End of training", "Sampled answers"]
  captions = page.texts["figcaption"]
  for caption in (
    "Accuracy by language, before (pam) and after (srl), greedy",
    "Accuracy by language, sampled",
    "Agreement against held-out accuracy",
    "KL to the reference",
    "Lengths in tokens",
    "Language consistency",
    "Throughput, tokens a second",
    "Loss",
  ):
    assert caption in captions


def test_the_tables(workdir):
  rows = _page(workdir, path=workdir / "report.html").rows
  assert rows[:4] == [
    ["decoding", "after", "German", "targets", "pivot"],
    ["greedy", "pam", "25.0", "25.0", "97.5"],
    ["greedy", "srl", "62.5", "62.5", "98.5"],
    ["sampled", "srl", "50.0", "50.0", "-"],
  ]
  assert ["tokens", "-", "41.5", "-"] in rows
  # The mean of steps 191 to 200 over 200; of evaluations, which are far apart, the last.
  assert ["reward", "0.9775"] in rows
  assert ["development/target_accuracy", "0.5"] in rows


def test_every_measure_of_an_evaluation_is_in_a_table(workdir):
  measured = {
    "accuracy/de": 0.5,
    "target_accuracy": 0.5,
    "low_resource_accuracy": 0.25,
    "interval/de/low": 0.4,
    "interval/de/high": 0.625,
    "tokens/de": 40.0,
    "tokens/target": 41.5,
    "rule/marker": 0.875,
    "questions/de": 250,
    "something/new": 3,
  }
  (workdir / "results" / "srl.json").write_text(json.dumps({"greedy": measured}))
  rows = _page(workdir, path=workdir / "report.html").rows
  assert rows[0] == ["decoding", "after", "German", "targets", "low-resource", "pivot"]
  assert rows[2] == ["greedy", "srl", "50.0 (40.0–62.5)", "50.0", "25.0", "-"]
  for row in (
    ["tokens, targets", "-", "41.5"],
    ["rule/marker", "-", "0.875"],
    ["something/new", "-", "3"],
    ["measure", "German", "targets"],
    ["tokens", "40", "41.5"],
    ["questions", "250", "-"],
  ):
    assert row in rows


def test_controls_side_by_side(workdir, tmp_path):
  control = sample_run.write_run(tmp_path / "random")
  ways = {"greedy": {"accuracy/de": 0.125, "target_accuracy": 0.125}}
  (control / "results" / "srl.json").write_text(json.dumps(ways))
  page = _page(workdir, control, path=tmp_path / "report.html")
  captions = page.texts["figcaption"]
  for caption in (
    "Target languages, greedy",
    "After the last stage, greedy",
    "random: accuracy by language, before (pam) and after (srl), greedy",
    "pivot: agreement against held-out accuracy",
    "random: agreement against held-out accuracy",
    "Reward",
  ):
    assert caption in captions
  assert ["greedy", "random", "srl", "12.5", "12.5", "-"] in page.rows
  assert ["metric", "pivot", "random"] in page.rows
  blocks = [json.loads(script) for script in page.scripts[:2]]
  assert [one["run"] for one in blocks[1]["questions"]] == [0, 0, 0, 1, 1, 1]


def test_evaluations_of_other_questions_come_after_no_stage(workdir, tmp_path):
  other = json.dumps({"greedy": {"accuracy/de": 0.01, "target_accuracy": 0.01}})
  arm = sample_run.write_run(tmp_path / "gold")
  for folder in (workdir, arm):
    (folder / "results" / "msvamp.json").write_text(other)
  captions = _page(workdir, path=tmp_path / "one.html").texts["figcaption"]
  assert "Accuracy by language, before (pam) and after (srl), greedy" in captions
  assert "Accuracy by language, other evaluations, greedy" in captions
  page = _page(workdir, arm, path=tmp_path / "two.html")
  assert (
    "gold: accuracy by language, before (pam) and after (srl), greedy" in page.texts["figcaption"]
  )
  assert ["greedy", "gold", "msvamp", "1.0", "1.0", "-"] in page.rows
  text = (tmp_path / "two.html").read_text("utf-8")
  last = text[text.index("After the last stage, greedy") :].partition("</figure>")[0]
  assert "1.0" not in last


def test_an_empty_directory_says_that_there_is_nothing_yet(tmp_path):
  page = _page(tmp_path, path=tmp_path / "report.html")
  said = " ".join(page.texts["p"])
  for part in (
    "No test results yet",
    "No step has been logged yet",
    "No answers have been sampled",
  ):
    assert part in said
  assert "figure" not in dict(page.tags)


def test_what_could_not_be_read_is_told(workdir):
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "s')
  page = _page(workdir, path=workdir / "report.html")
  notice = "pivot: metrics.jsonl: the last line (213) is incomplete and was left out"
  assert notice in page.texts["li"]


def test_hostile_text_is_in_the_data_and_nowhere_else(workdir):
  text = workdir / "report.html"
  page = _page(workdir, path=text)
  charts, answers, script = page.scripts
  assert json.loads(answers)["questions"][2]["question"] == sample_run.HOSTILE
  assert json.loads(charts)
  assert script == report_page.asset("report.js")
  whole = text.read_text("utf-8")
  assert whole.count("<script") == whole.count("</script>") == 3
  assert not re.search(
    "attacked|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]", whole.replace(answers, "")
  )
  assert not re.search("[<>&\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", answers)


@pytest.mark.parametrize(
  "where", ["metric", "stage", "result", "decoding", "language", "measure", "run"]
)
def test_names_from_files_are_escaped_too(workdir, where):
  hostile = "<img src=x onerror=alert(1)>\"'&"
  name = {where: hostile}
  line = {"stage": name.get("stage", "srl"), "step": 201, f"time/{name.get('metric')}": 1.0}
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write(json.dumps(line) + "\n")
  values = {f"accuracy/{name.get('language', 'de')}": 0.5, name.get("measure", "tokens"): 1.0}
  result = workdir / "results" / f"{name.get('result', 'other')}.json"
  result.write_text(json.dumps({name.get("decoding", "greedy"): values}))
  folder = workdir.rename(workdir.with_name(name.get("run", "pivot")))
  page = _page(folder, path=folder / "report.html")
  assert "img" not in dict(page.tags)
  assert any(hostile in text for texts in page.texts.values() for text in texts)


def test_data_come_back_exactly():
  value = {"text": sample_run.HOSTILE + "".join(map(chr, range(0x3000))) + "\U0001f600\U00010ffff"}
  block = json_block("data", value)
  assert json.loads(Parsed(block).scripts[0]) == value
  block.encode("utf-8")
  with pytest.raises(ValueError, match="not JSON compliant"):
    json_block("data", float("nan"))


def test_the_policy_allows_two_hashes_and_no_network(workdir):
  page = _page(workdir, path=workdir / "report.html")
  policy = page.policy()
  for text, kind in ((page.scripts[2], "script"), (page.texts["style"][0], "style")):
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}'" in policy
  assert policy.startswith("default-src 'none';")
  assert "unsafe" not in policy
  # Nothing that fetches, no inline style or handler, no address but those within the page.
  for tag, attributes in page.tags:
    assert tag not in ("link", "img", "iframe", "object", "base", "form")
    assert not any(name.startswith("on") or name in ("style", "src") for name in attributes)
    assert (attributes.get("href") or "#").startswith("#")


def test_the_script_makes_no_html_of_strings():
  script = report_page.asset("report.js")
  for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
    assert way not in script
  # Texts that would end or change the element it stands in.
  assert not re.search(r"</script|<!--|<script", script, re.IGNORECASE)


def test_long_runs_show_every_nth_question(workdir, monkeypatch):
  lines = [dict(sample_run.ROLLOUTS[0], step=step) for step in range(1, 101)]
  sample_run.write_lines(workdir / "rollouts.jsonl", lines)
  monkeypatch.setattr(report_page, "MAX_ROLLOUT_CHARACTERS", 20_000)
  answers = json.loads(_page(workdir, path=workdir / "report.html").scripts[1])
  assert 10 < len(answers["questions"]) < 50
  assert answers["left_out"] == 100 - len(answers["questions"])
  assert len(json.dumps(answers["questions"])) < 22_000


def test_the_page_is_written_whole_or_not_at_all(workdir, monkeypatch):
  path = workdir / "report.html"
  path.write_text("the one before")
  monkeypatch.setattr(report.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
  with pytest.raises(OSError, match="disk full"):
    write_report([workdir], path)
  assert path.read_text() == "the one before"
  assert sorted(found.name for found in workdir.iterdir()) == [
    "metrics.jsonl",
    "report.html",
    "results",
    "rollouts.jsonl",
  ]


def test_only_the_first_process_writes(workdir, monkeypatch):
  monkeypatch.setattr(report, "process_index", lambda: 1)
  write_report([workdir], workdir / "report.html")
  assert not (workdir / "report.html").exists()


def test_the_program_writes_where_it_says(workdir, tmp_path, capsys):
  control = sample_run.write_run(tmp_path / "gold")
  report.main([str(workdir)])
  report.main([str(workdir), str(control)])
  report.main([str(workdir), f"--output={tmp_path / 'new' / 'page.html'}"])
  paths = [workdir / "report.html", tmp_path / "report.html", tmp_path / "new" / "page.html"]
  assert capsys.readouterr().out.split() == list(map(str, paths))
  assert all(path.read_text().endswith("</html>\n") for path in paths)
  with pytest.raises(SystemExit, match=r"report: .*typo: no such directory"):
    report.main([str(tmp_path / "typo")])


def test_the_program_leaves_the_accelerator_alone(workdir, monkeypatch):
  def touched():
    raise AssertionError("asks jax, which takes the devices a run still holds")

  monkeypatch.setattr(report, "process_index", touched)
  report.main([str(workdir)])
  assert (workdir / "report.html").exists()
