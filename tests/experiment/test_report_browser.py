"""The report in headless Chromium: it asks for nothing, runs nothing hostile, and can be used."""

import json
import pathlib

import pytest

from pasmr_jax.experiment.report import build
from tests.experiment import chromium, sample_run

pytestmark = pytest.mark.browser
SLIDER = "document.querySelector('[role=slider]')"
# Opens every question, waits for its body, and gives the texts of what matches.
OPENED = """(async () => {
  const all = [...document.querySelectorAll('details.question')];
  for (const one of all) one.open = true;
  while (all.some(one => !one.querySelector('.body'))) await new Promise(r => setTimeout(r, 5));
  return [...document.querySelectorAll('SELECTOR')].map(one => one.textContent);
})()"""
# Ratio of the contrast of each text with what is behind it, as WCAG defines it; the smallest one.
CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const luminance = color => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(value => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== 'rgba(0, 0, 0, 0)') return color;
    }
    return 'white';
  };
  const ratios = [...document.querySelectorAll('SELECTOR')].map(element => {
    const style = getComputedStyle(element);
    const front = luminance(style[element instanceof SVGElement ? 'FRONT' : 'color']);
    const back = luminance(behind(element));
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  });
  return [ratios.length, Math.min(...ratios)];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  binary = chromium.find()
  if binary is None:
    pytest.skip("no Chromium found (apt-get install chromium, or name it in CHROMIUM)")
  with chromium.Page(binary, tmp_path_factory.mktemp("profile")) as page:
    yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> pathlib.Path:
  folder = sample_run.write_run(tmp_path_factory.mktemp("runs") / "pivot")
  build([folder], folder / "report.html")
  return folder / "report.html"


def _texts(browser, selector: str) -> list[str]:
  return browser.evaluate(OPENED.replace("SELECTOR", selector))


def _filter(browser, **values: str) -> tuple[list[str], list[str]]:
  """Fills the form; the ids of the questions left (language and step) and their responses."""
  browser.evaluate(
    f"""(() => {{
      const form = document.querySelector('form');
      form.reset();
      for (const [name, value] of Object.entries({json.dumps(values)})) {{
        form.elements[name].value = value;
        form.elements[name].dispatchEvent(new Event('input', {{bubbles: true}}));
      }}
    }})()"""
  )
  return _texts(browser, ".where"), _texts(browser, ".response h5")


def test_it_asks_for_nothing_but_itself(browser, report):
  browser.open(report)
  _texts(browser, ".response")
  assert browser.requested == [report.as_uri()]
  assert browser.logged == []  # no error, no refusal by the page's policy


def test_hostile_text_is_shown_and_does_nothing(browser, report):
  browser.open(report)
  (shown,) = [text for text in _texts(browser, ".response p.model") if "attacked" in text]
  # Exactly as it was sampled, but controls and reordering marks made visible.
  expected = sample_run.HOSTILE
  pairs = {"\x00": "␀", "\x07": "␇", "\x1b": "␛", "\x7f": "␡", "\x85": "⟨U+0085⟩"}
  for raw, visible in (pairs | {"\u202e": "⟨U+202E⟩"}).items():
    expected = expected.replace(raw, visible)
  lone_surrogates = dict.fromkeys((0xD800, 0xDFFF), "\ufffd")
  assert shown.translate(lone_surrogates) == expected.translate(lone_surrogates)
  assert browser.evaluate("window.attacked === undefined")
  assert browser.evaluate("document.title") == "pivot - PASMR report"
  assert browser.evaluate("document.querySelectorAll('img, iframe, main script').length") == 0
  assert browser.requested == [report.as_uri()]


def test_these_tests_would_see_an_attack(browser, tmp_path):
  page = tmp_path / "naive.html"
  page.write_text(f"<p>{sample_run.HOSTILE}", encoding="utf-8", errors="replace")
  browser.open(page)
  assert browser.evaluate("document.title") == "attacked"
  assert browser.evaluate("window.attacked") in (1, 2, 3)
  assert "http://attacker.invalid/a.png" in browser.requested


def test_the_policy_stops_what_would_get_through(browser, report, tmp_path):
  page = tmp_path / "injected.html"
  text = report.read_text("utf-8").replace("<main", f"<p>{sample_run.HOSTILE[:200]}</p><main")
  page.write_text(text, encoding="utf-8")
  browser.open(page)
  assert browser.evaluate("window.attacked === undefined")
  assert browser.requested == [page.as_uri()]
  assert "Content Security Policy" in " ".join(browser.logged)
  with pytest.raises(RuntimeError, match="TrustedHTML"):
    browser.evaluate("document.body.innerHTML = '<b>x</b>'")


@pytest.mark.parametrize(
  ("values", "questions", "responses"),
  [
    ({}, ["German 1", "Arabic 1", "German 21"], [1, 2, 1, 2, 1, 2]),
    ({"language": "ar"}, ["Arabic 1"], [1, 2]),
    ({"step": "21"}, ["German 21"], [1, 2]),
    ({"language": "de", "step": "1"}, ["German 1"], [1, 2]),
    ({"failure": "some"}, ["Arabic 1", "German 21"], [2, 2]),
    ({"failure": "none"}, ["German 1", "Arabic 1", "German 21"], [1, 2, 1, 1]),
    ({"failure": "language"}, ["Arabic 1"], [2]),
    ({"failure": "truncated"}, ["German 21"], [2]),
    ({"failure": "malformed"}, ["German 21"], [2]),
    ({"failure": "unanswered"}, ["German 21"], [2]),
    ({"least": "0.5"}, ["German 1", "Arabic 1"], [1, 1]),
    ({"most": "-0.1"}, ["German 21"], [2]),
    ({"least": "0", "most": "0"}, ["German 1", "Arabic 1", "German 21"], [2, 2, 1]),
    ({"agreement": "yes"}, ["German 1", "Arabic 1"], [1, 1, 2]),
    ({"text": "تفاحة"}, ["Arabic 1"], [1, 2]),
    ({"text": "ÄPFEL"}, ["German 1"], [1, 2]),
    ({"text": "</SCRIPT>"}, ["German 21"], [1, 2]),
    ({"language": "ar", "failure": "truncated"}, [], []),
  ],
)
def test_filters(browser, report, values, questions, responses):
  browser.open(report)
  where, headings = _filter(browser, **values)
  assert len(where) == len(questions)
  for text, expected in zip(where, questions, strict=True):
    language, step = expected.split()
    assert text.startswith(f"{language}step {step}mean")
  if responses == [1, 2, 1, 2, 1, 2]:
    # Grouped by translation, responses keep their order here.
    assert len(headings) == 6
  assert [int(text.split()[1].rstrip("✓✗")) for text in headings] == responses
  status = browser.evaluate("document.querySelector('[role=status]').textContent")
  found = f"{len(questions)} of 3 questions" if questions else "Nothing matches."
  assert status.startswith(found)


def test_show_all_takes_the_filters_back(browser, report):
  browser.open(report)
  _filter(browser, language="ar")
  browser.evaluate("document.querySelector('button[type=reset]').click()")
  assert browser.evaluate("new Promise(r => setTimeout(() => r(1), 20))") == 1
  assert len(_texts(browser, ".where")) == 3


def test_what_is_shown_of_a_question(browser, report):
  browser.open(report)
  _filter(browser, language="de", step="1")
  assert _texts(browser, ".votes li") == ["154 of 6 ✓ label", "162 of 6"]
  assert _texts(browser, ".solutions summary") == ["15 2 of 3 ✓ label", "16 1 of 3"]
  terms = _texts(browser, ".response:first-child .terms div")
  assert terms == [
    "reward1",
    "agreement1",
    "understanding0.6667",
    "format1",
    "language1",
    "length-0.3125",
    "advantage+0.5",
    "understanding advantage+0.125",
  ]
  assert _texts(browser, ".outcome")[1] == "answer 16, label 15 (67 % of its vote), 20 tokens"
  assert _texts(browser, ".translation h4") == ["Translation 1 of 1responses 1–2"]
  _filter(browser, step="21")
  badges = _texts(browser, ".response:last-child .badge")
  assert badges[-4:] == [
    "✗ not well-formed",
    "✗ truncated",
    "✗ no answer",
    "no confident label",
  ]


def test_right_to_left_text_runs_right_to_left(browser, report):
  browser.open(report)
  _filter(browser, language="ar")
  _texts(browser, ".body")
  found = browser.evaluate(
    """[...document.querySelectorAll('.body p.model')].filter(one =>
      !one.closest('.solutions')).slice(0, 3).map(one => {
      const at = place => {
        const range = document.createRange();
        range.setStart(one.firstChild, place);
        range.setEnd(one.firstChild, place + 1);
        return range.getBoundingClientRect().left;
      };
      return [one.lang, at(0) > at(4)];
    })"""
  )
  # Question, English translation, Arabic reasoning: language, whether text begins on the right.
  assert found == [["ar", True], ["en", False], ["ar", True]]
  assert browser.evaluate("getComputedStyle(document.body).direction") == "ltr"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_scrolls_sideways(browser, report, width):
  browser.open(report, width=width)
  browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
  _texts(browser, ".body")
  assert browser.evaluate("document.documentElement.scrollWidth") == width
  assert browser.evaluate("innerWidth") == width
  over = browser.evaluate(
    f"""[...document.querySelectorAll('body *')].filter(one =>
      !one.closest('.scroll, svg, .skip') && one.getBoundingClientRect().right > {width} + 0.5
    ).map(one => one.outerHTML.slice(0, 80))"""
  )
  assert over == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser, report, scheme):
  browser.open(report, scheme=scheme)
  browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
  _texts(browser, ".body")
  texts = (
    "p, h1, h2, h3, h4, h5, a:not(.skip), td, th, li, dt, dd, .badge, label span, select, button"
  )
  for selector, front, least in (
    (texts, "color", 4.5),
    (".plot text:not(.inside)", "fill", 4.5),
    (".plot .line", "stroke", 3),
    (".plot .mark", "fill", 3),
  ):
    count, ratio = browser.evaluate(CONTRAST.replace("SELECTOR", selector).replace("FRONT", front))
    assert count > 1
    assert ratio >= least, (selector, ratio)
  background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
  assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 23, 28)"}[scheme]


def test_everything_that_acts_has_a_name(browser, report):
  browser.open(report)
  _texts(browser, ".body")
  nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
  acting = {"combobox", "spinbutton", "searchbox", "button", "slider", "link", "DisclosureTriangle"}
  named = {}
  for node in nodes:
    role = node.get("role", {}).get("value")
    if not node["ignored"] and role in acting:
      named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
  assert {"combobox", "spinbutton", "searchbox", "button", "slider", "link"} <= set(named)
  assert all(all(names) for names in named.values()), named
  levels = browser.evaluate(
    "[...document.querySelectorAll('h1, h2, h3, h4, h5')].map(one => Number(one.tagName[1]))"
  )
  assert levels[0] == 1
  assert levels.count(1) == 1
  ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
  assert len(ids) == len(set(ids))


def test_a_chart_is_read_with_the_keyboard(browser, report):
  browser.open(report)
  readout = f"{SLIDER}.parentElement.querySelector('.readout').textContent"
  # The stage pam is folded: the first chart that can have the focus is the reward.
  browser.evaluate("document.querySelectorAll('.stage')[0].remove()")
  assert browser.evaluate(readout).startswith("step 199: reward 0.9925")
  browser.evaluate(f"{SLIDER}.focus()")
  browser.press("Home")
  assert browser.evaluate(readout) == "step 3: reward 0.0125, agreement 0.0125"
  browser.press("ArrowRight")
  browser.press("ArrowRight")
  browser.press("ArrowLeft")
  assert browser.evaluate(readout) == "step 7: reward 0.0325, agreement 0.0325"
  assert browser.evaluate(f"{SLIDER}.ariaValueText") == browser.evaluate(readout)
  assert browser.evaluate(f"Number({SLIDER}.querySelector('.cursor').getAttribute('x1')) > 46")


def test_a_question_opens_with_the_keyboard(browser, report):
  browser.open(report)
  browser.evaluate("document.querySelector('.question summary').focus()")
  browser.press("Enter")
  assert (
    browser.evaluate(
      "new Promise(r => setTimeout(() => r(document.querySelectorAll('.body').length), 50))"
    )
    == 1
  )


def test_long_lists_come_in_parts(browser, tmp_path):
  folder = sample_run.write_run(tmp_path / "long")
  lines = [dict(sample_run.ROLLOUTS[0], step=step) for step in range(1, 46)]
  sample_run.write_lines(folder / "rollouts.jsonl", lines)
  build([folder], folder / "report.html")
  browser.open(folder / "report.html")
  shown = []
  for _ in range(3):
    shown.append(browser.evaluate("document.querySelectorAll('.question').length"))
    browser.evaluate("document.querySelector('.more').click()")
  assert shown == [20, 40, 45]
  assert browser.evaluate("document.querySelector('.more').hidden")
  # The focus went to the first of the questions that were added.
  focused = "document.activeElement.closest('li')"
  assert browser.evaluate(f"[...{focused}.parentElement.children].indexOf({focused})") == 40


def test_an_empty_run_and_several_runs_are_pages_too(browser, report, tmp_path):
  (tmp_path / "empty").mkdir()
  page = tmp_path / "report.html"
  for folders in ([tmp_path / "empty"], [report.parent, tmp_path / "empty"]):
    build(folders, page)
    browser.open(page, width=390)
    assert browser.logged == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
  assert len(_texts(browser, ".where")) == 3
