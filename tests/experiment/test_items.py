"""Lines of items, and what is left of a file that was cut off."""

import json

import pytest

from pasmr_jax.experiment.items import PartialItems, Response, to_line, to_response, write_whole


def _response(number, text="4 + 5 = 9\n\u2028#### 9", sample=0):
  return Response(
    id=f"q{number}",
    language="bn",
    sample=sample,
    well_formed=True,
    truncated=False,
    tokens=7,
    translation="four and five?",
    reasoning=text,
  )


def test_a_response_comes_back_from_its_line():
  response = _response(1)
  line = to_line(response)
  assert "\n" not in line
  assert to_response(json.loads(line) | {"something": "else"}) == response
  assert response.key == ("bn", "q1", 0)


@pytest.fixture
def partial(tmp_path):
  partial = PartialItems(tmp_path / "results" / "x.partial.jsonl", {"seed": 1, "stop": ("\n",)})
  partial.start([])
  return partial


def test_what_was_appended_is_read_back(partial):
  partial.append([_response(1), _response(1, sample=1)])
  partial.append([_response(2)])
  assert partial.read() == ([_response(1), _response(1, sample=1), _response(2)], "")


@pytest.mark.parametrize("lost", [1, 2, 50])
def test_a_last_line_that_was_cut_off_does_not_count(partial, tmp_path, lost):
  partial.append([_response(1), _response(2)])
  path = tmp_path / "results" / "x.partial.jsonl"
  path.write_bytes(path.read_bytes()[:-lost])
  assert partial.read() == ([_response(1)], "")
  partial.start([_response(1)])
  partial.append([_response(2)])
  assert partial.read() == ([_response(1), _response(2)], "")


def test_answers_to_other_questions_are_not_taken_over(partial, tmp_path):
  partial.append([_response(1)])
  other = PartialItems(tmp_path / "results" / "x.partial.jsonl", {"seed": 2, "stop": ("\n",)})
  assert other.read() == ([], "x.partial.jsonl is of another evaluation (other seed)")


def test_an_empty_file_is_no_answers(partial, tmp_path):
  (tmp_path / "results" / "x.partial.jsonl").write_bytes(b'{"seed"')
  assert partial.read() == ([], "")


def test_a_file_is_whole_or_not_there(tmp_path):
  write_whole(tmp_path / "new" / "x.json", "{}")
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]
