"""Charts: where points come to lie, how many are kept, what is escaped."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pasmr_jax.experiment.reporting import charts, shares
from pasmr_jax.experiment.reporting.charts import Bucket, Line
from pasmr_jax.experiment.reporting.elements import short
from pasmr_jax.experiment.reporting.shares import Share


def _svg(figure: str) -> ElementTree.Element:
  """The figure is well-formed XML, but for the attributes without a value it does not use."""
  found = ElementTree.fromstring(figure).find(".//svg[@role='img']")
  assert found is not None
  return found


def _path(figure: str, kind: str) -> list[tuple[float, float]]:
  (path,) = _svg(figure).iterfind(f".//path[@class='{kind}']")
  pairs = [point.split() for point in re.findall(r"[\d.-]+ [\d.-]+", path.attrib["d"])]
  return [(float(x), float(y)) for x, y in pairs]


def test_every_width_steps_become_a_bucket():
  points = [(1, 1.0), (2, 3.0), (3, 2.0), (4, 8.0), (9, 5.0)]
  assert charts.thin(points, 3) == [
    Bucket(2.0, 2.0, 1.0, 3.0),
    Bucket(4.0, 8.0, 8.0, 8.0),
    Bucket(9.0, 5.0, 5.0, 5.0),
  ]
  singles = [Bucket(float(step), value, value, value) for step, value in points]
  assert charts.thin(points, 1) == singles


def test_the_mean_of_equal_values_stays_in_their_range():
  (bucket,) = charts.thin([(step, 0.1) for step in range(1, 11)], 10)
  assert bucket.low == bucket.mean == bucket.high == 0.1


def test_long_runs_stay_small():
  points = [(step, step % 7 / 7) for step in range(1, 100_001)]
  figure, readable = charts.line_chart("x", [Line("y", points, 0)], 100_000)
  assert len(readable["lines"][0]["steps"]) == charts.MAX_POINTS
  assert len(figure) < 6000


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0.0, 150.0, [0, 50, 100, 150]),
    (-0.6, 1.05, [-0.5, 0, 0.5, 1]),
    (3.0, 3.0, [3]),
  ],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, expected):
  assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("value", "expected"),
  [(0.123456, "0.1235"), (0.0, "0"), (9999.0, "9999"), (17744.4, "17.74k"), (-2.5e6, "-2.5M")],
)
def test_numbers_are_written_short(value, expected):
  assert short(value) == expected


def test_shares_lie_where_they_should():
  line = Line("agreement", [(0, 0.0), (50, 0.5), (100, 1.0)], 0)
  figure, readable = charts.line_chart("Agreement", [line], 100, share=True)
  left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
  bottom = charts.HEIGHT - charts.BOTTOM
  middle = ((left + right) / 2, (bottom + charts.TOP) / 2)
  assert _path(figure, "line") == [(left, bottom), middle, (right, charts.TOP)]
  assert readable["lines"] == [{"label": "agreement", "steps": [0, 50, 100], "values": [0, 0.5, 1]}]
  assert readable["left"] * charts.WIDTH == left
  label = _svg(figure).attrib["aria-label"]
  assert label == "Agreement. agreement: 0.0 % at step 0, 100.0 % at step 100."


@pytest.mark.parametrize(("from_zero", "lowest"), [(False, "75%"), (True, "0%")])
def test_high_shares_are_told_apart_unless_charts_must_compare(from_zero, lowest):
  line = Line("x", [(1, 0.97), (2, 0.99)], 0)
  figure, _ = charts.line_chart("x", [line], 2, share=True, from_zero=from_zero)
  ticks = [text.text for text in _svg(figure).iterfind(".//text[@class='tick end']")]
  assert (ticks[0], ticks[-1]) == (lowest, "100%")


def test_a_logarithmic_axis_has_decades():
  line = Line("loss", [(1, 10.0), (2, 0.1), (3, 0.001)], 0)
  figure, _ = charts.line_chart("Loss", [line], 3, logarithmic=True)
  first, second, third = (y for _, y in _path(figure, "line"))
  assert second - first == pytest.approx(third - second, abs=0.2)
  ticks = [text.text for text in _svg(figure).iterfind(".//text[@class='tick end']")]
  assert ticks == ["0.001", "0.01", "0.1", "1", "10"]
  # A zero has no place on it.
  figure, _ = charts.line_chart(
    "Loss", [Line("loss", [(1, 10.0), (2, 0.0)], 0)], 2, logarithmic=True
  )
  assert [y for _, y in _path(figure, "line")][1] == charts.HEIGHT - charts.BOTTOM


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 1e250])
def test_a_single_point_is_a_chart(value):
  figure, readable = charts.line_chart("x", [Line("y", [(1, value)], 0)], 1)
  ((x, y),) = _path(figure, "line")
  assert (x, charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM) == (
    charts.WIDTH - charts.RIGHT,
    True,
  )
  assert readable["lines"][0]["values"] == [pytest.approx(value)]


def test_bands_only_where_they_can_be_told_apart():
  points = [(step, float(step % 2)) for step in range(1, 201)]
  for count, expected in ((3, 3), (4, 0)):
    figure, _ = charts.line_chart("x", [Line(str(n), points, n) for n in range(count)], 200)
    assert figure.count('class="band"') == expected


def test_dots_by_language():
  series = {"pam": [Share(0.0), None], "srl": [Share(1.0), Share(0.5, (0.25, 0.75))]}
  figure = shares.dot_chart("Accuracy", ["German", "Bengali"], series, joined=True)
  marks = [mark.attrib["transform"] for mark in _svg(figure).iterfind(".//path[@transform]")]
  places = [float(re.findall(r"[\d.]+", mark)[0]) for mark in marks]
  assert places == [shares.ROW_LABEL, charts.WIDTH - 16, (shares.ROW_LABEL + charts.WIDTH - 16) / 2]
  told = [title.text for title in _svg(figure).iterfind(".//path/title")]
  assert told == ["German, pam: 0.0 %", "German, srl: 100.0 %", "Bengali, srl: 50.0 (25.0–75.0) %"]
  first, last = shares.ROW_LABEL, charts.WIDTH - 16
  quarters = (first + (last - first) / 4, first + (last - first) * 3 / 4)
  (whisker,) = _svg(figure).iterfind(".//path[@class='whisker']")
  ends = [float(x) for x in re.findall(r"[MH]([\d.]+)", whisker.attrib["d"])]
  assert ends == list(quarters)
  assert figure.count('class="joined"') == 1  # Bengali has one mark: nothing to join


def test_bars_write_their_number():
  figure = shares.bar_chart("Targets", {"gold": Share(0.9), "random": Share(0.125)})
  values = [
    text.text for text in _svg(figure).iterfind(".//text") if "value" in text.attrib["class"]
  ]
  assert values == ["90.0", "12.5"]


def test_every_text_is_escaped():
  hostile = "</svg><script>alert(1)</script>\"'&"
  figures = [
    charts.line_chart(hostile, [Line(hostile, [(1, 1.0)], 0)], 1)[0],
    shares.dot_chart(hostile, [hostile], {hostile: [Share(0.5)]}, joined=False),
    shares.bar_chart(hostile, {hostile: Share(0.5)}),
  ]
  for figure in figures:
    assert "<script" not in figure
    assert hostile in ElementTree.fromstring(figure).findtext("figcaption", "")
