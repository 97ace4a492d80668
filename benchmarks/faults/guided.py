"""Hostile model text by atheris, which keeps and changes those texts that reach new code.

    python guided.py CORPUS SECONDS LONGEST

The first byte of a case is the language, the rest the text in UTF-8; bytes that are none become
lone surrogates. The texts that are known to be hostile are where it begins, and its dictionary. An
exception, or a text that takes more than LONGEST seconds of processor time, ends it with an error.
"""

import pathlib
import sys
import time

import atheris

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

# Instrumented as they are imported, so that nothing may have imported them before.
with atheris.instrument_imports(include=["pasmr_jax.text", "pasmr_jax.feedback"]):
  from tests.faults import hostile

_LONGEST_TEXT = 8192  # bytes
_PATIENCE = 1200  # seconds by the clock: a machine may be suspended


def main() -> None:
  corpus, seconds, longest = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
  _begin(corpus)
  hostile.warm_up()

  def one(data: bytes) -> None:
    language = hostile.LANGUAGES[(data or b"\0")[0] % len(hostile.LANGUAGES)]
    text = data[1:].decode("utf-8", "surrogateescape")
    start = time.process_time()
    hostile.whole_way(text, language)
    if time.process_time() - start > longest:
      raise TimeoutError(f"more than {longest} s, {language}: {text[:500]!r}")

  options = [
    f"-max_total_time={seconds}",
    f"-max_len={_LONGEST_TEXT}",
    f"-timeout={_PATIENCE}",
    f"-dict={_dictionary(corpus)}",
    f"-artifact_prefix={corpus.parent}/",
    "-print_final_stats=1",
    str(corpus),
  ]
  atheris.Setup([sys.argv[0], *options], one)
  atheris.Fuzz()


def _begin(corpus: pathlib.Path) -> None:
  corpus.mkdir(parents=True, exist_ok=True)
  for number, fragment in enumerate(hostile.FRAGMENTS):
    for language in (number, number + 7):
      text = f"{fragment} 12 {fragment}"
      data = bytes([language % len(hostile.LANGUAGES)]) + text.encode("utf-8", "replace")
      (corpus / f"{number}-{language}").write_bytes(data)


def _dictionary(corpus: pathlib.Path) -> pathlib.Path:
  path = corpus.with_name("dictionary.txt")
  words = {fragment.encode("utf-8", "surrogatepass")[:60] for fragment in hostile.FRAGMENTS}
  words |= {word.encode() for word in hostile.REPEATED}
  quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in sorted(words))
  path.write_text("".join(f'"{word}"\n' for word in quoted), "ascii")
  return path


if __name__ == "__main__":
  main()
