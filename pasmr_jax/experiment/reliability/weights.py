"""Whether the weights that a run begins with are still those it began with.

A folder or another run's work directory may hold something else at the next start: the reference of
self-feedback, and what adapters are on, are read from there again.
"""

import hashlib
import pathlib

from pasmr_jax import Config
from pasmr_jax.experiment.origins import source
from pasmr_jax.experiment.reliability.checksums import checkpoint_checksum
from pasmr_jax.experiment.reliability.recovery import last_stage, steps_in
from pasmr_jax.models.hugging_face import find_folder

_BLOCK = 1 << 16  # bytes
_BLOCKS = 64  # of a file that are read, evenly spaced: other weights differ everywhere


def weights_checksum(config: Config) -> str:
  """Of what `init_from` or `model.pretrained` names; '' for random weights, or if it is gone."""
  if config.init_from:
    workdir = pathlib.Path(config.init_from).absolute()
    try:
      folder = workdir / "checkpoints" / last_stage(workdir)
    except ValueError:  # an earlier start has read it; if one must again, that says so
      return ""
    return checkpoint_checksum(folder / str(steps_in(folder)[-1]))
  if not config.model.pretrained:
    return ""
  path = source(config.model)
  if path.endswith(".gguf"):
    return _checksum([pathlib.Path(path)])
  folder = find_folder(path, weights=True)
  return _checksum(sorted([folder / "config.json", *folder.glob("*.safetensors")]))


def _checksum(files: list[pathlib.Path]) -> str:
  """SHA-256 of the length of each file and of blocks of it; names and places do not matter."""
  digest = hashlib.sha256()
  for path in files:
    size = path.stat().st_size
    digest.update(f"{size};".encode())
    with path.open("rb") as file:
      for place in sorted({size * block // _BLOCKS for block in range(_BLOCKS)}):
        file.seek(place)
        digest.update(file.read(_BLOCK))
      file.seek(max(size - _BLOCK, 0))
      digest.update(file.read())
  return digest.hexdigest()
