"""Which prompt is computed when, and which row takes which slot.

`Scheduler.run` narrates a round: have as many slots as there are rows for them, compute prompts if
slots stand empty and prompts wait, let rows take the free slots, and decode a few tokens. The same
requests are always scheduled in the same way, because nothing here looks at a clock; and a row does
not notice how it was scheduled.

With several processes each has its own requests and slots, and takes part in every program that any
of them needs, with empty rows if need be.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import processes
from pasmr_jax.rollout import slots as programs
from pasmr_jax.rollout.requests import (
  Request,
  Rollouts,
  Usage,
  Watch,
  left_padded,
  stable_id,
)
from pasmr_jax.rollout.sampling import Sampling, make_sampling

_SMALLEST_SHARE = 8  # slots are never fewer than an eighth of those there may be, to compile little


# What fills a batch of prompts.
NOTHING = Request(
  prompt=(),
  name="",
  key_data=np.zeros(2, np.uint32),  # as wide as threefry's keys
  samples=0,
  max_new_tokens=0,
  sampling=make_sampling(0.0, (0,)),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Shapes of the programs; everything but `prompt_bucket` counts over all devices."""

  slots: int
  prefill_prompts: int  # computed together
  steps: int  # tokens drawn for each slot before free slots are filled again
  prompt_bucket: int  # prompts are padded to a multiple of this many tokens
  length: int  # tokens a row may have, prompt included
  cache_dtype: str


@dataclasses.dataclass
class _Row:
  """A sample on its way."""

  request: int
  sample: int
  pieces: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
  stopped: bool = False

  @property
  def tokens(self) -> np.ndarray:
    return np.concatenate([piece[0] for piece in self.pieces])


@dataclasses.dataclass
class _Waiting:
  """Samples of a request that are still to begin, all of them on one device."""

  request: int
  sample: int  # the next
  end: int  # the first that is not among them
  source: int = -1  # the place of its prompt, once that is computed, among its device's

  @property
  def left(self) -> int:
    return self.end - self.sample


@dataclasses.dataclass
class _Batch:
  """Prompts computed together."""

  prompts: programs.Prompts
  waiting: list[collections.deque[_Waiting]]  # by device


class Scheduler:
  """Serves requests once."""

  def __init__(
    self,
    params: Any,
    config: TransformerConfig,
    mesh: jax.sharding.Mesh,
    valid_vocab: int,
    layout: Layout,
    watch: Watch | None,
  ):
    self.params, self.config, self.mesh = params, config, mesh
    self.valid_vocab, self.layout, self.watch = valid_vocab, layout, watch
    self.requests: list[Request] = []
    self.rows: list[list[_Row]] = []  # of each request
    self.queue: collections.deque[_Waiting] = collections.deque()
    self.batches: list[_Batch] = []
    devices = meshes.row_parts(mesh) // processes.process_count()
    each = layout.slots // meshes.row_parts(mesh)
    self.places: list[list[_Row | None]] = [[None] * each for _ in range(devices)]
    self.slots: programs.Slots | None = None
    self.usage = Usage(0, 0)

  def add(self, request: Request) -> None:
    """Puts a request at the end of the queue."""
    if request.samples:
      self.queue.append(_Waiting(len(self.requests), 0, request.samples))
    self.requests.append(request)
    self.rows.append([_Row(len(self.rows), sample) for sample in range(request.samples)])

  def run(self) -> None:
    """Serves what was added, and what the watch adds meanwhile."""
    while True:
      self._resize()
      while self._prefill():
        pass
      if not self._begin():
        break
      self._decode()
    tokens = processes.global_sum(self.usage.tokens)  # steps are those of all already
    self.usage = dataclasses.replace(self.usage, tokens=tokens)

  def rollouts(self, number: int) -> Rollouts:
    """The samples of a request that has been served."""
    request, rows = self.requests[number], self.rows[number]
    shape = (len(rows), request.max_new_tokens)
    tokens, logprobs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    lengths = np.zeros(len(rows), np.int32)
    for place, row in enumerate(rows):
      for array, pieces in zip((tokens, logprobs), zip(*row.pieces, strict=True), strict=True):
        joined = np.concatenate(pieces)
        array[place, : joined.size] = joined
        lengths[place] = joined.size
    truncated = np.array([not row.stopped for row in rows], bool)
    return Rollouts(tokens, logprobs, lengths, truncated)

  def _shared(self) -> collections.deque[_Waiting]:
    """The queue, where devices would have none with samples split; each computes the prompt."""
    share = -(-sum(one.left for one in self.queue) // len(self.places))
    pieces = collections.deque()
    for one in self.queue:
      size = -(-one.left // -(-one.left // share))  # alike: 16 of at most 14 are 8 and 8
      for begin in range(one.sample, one.end, size):
        pieces.append(_Waiting(one.request, begin, min(begin + size, one.end)))
    return pieces

  # A round, in order.

  def _resize(self) -> None:
    """Has fewer slots while rows are few, and more again when a watch has asked for more.

    All of them, a half, a quarter or an eighth: so many that no row waits, and more than there are
    now only if rows fill them all. One halving or doubling after the other: there is a program for
    each, not for each pair of sizes. What a size needs is compiled when it is first needed, which
    may be hours after the start; to compile it beforehand would compile what most runs never need.
    """
    queued = sum(one.left for one in self.queue)
    busy = [sum(row is not None for row in places) for places in self.places]
    waiting = [self._waiting(device) for device in range(len(self.places))]
    rows = max(map(sum, zip(busy, waiting, strict=True))) + -(-queued // len(self.places))
    (rows,) = processes.global_maxima([rows])  # of the device that has most
    now = len(self.places[0])
    sizes = slot_sizes(self.layout.slots // meshes.row_parts(self.mesh))
    if 0 < rows < now:
      for size in sizes:
        if rows <= size < now:
          self._move(size)
    elif rows > now:
      for size in reversed(sizes):
        if now < size <= rows:
          self._move(size)

  def _move(self, size: int) -> None:
    """All rows into so many slots on each device, half of those there are or twice as many."""
    kept = []
    for device, places in enumerate(self.places):
      order = sorted(range(len(places)), key=lambda slot, places=places: places[slot] is None)
      free = max(0, size - len(places))
      self.places[device] = [places[slot] for slot in order[:size]] + [None] * free
      kept += [-1 if places[slot] is None else slot for slot in order[:size]] + [-1] * free
    if self.slots is not None:
      rows = meshes.shard_batch(np.array(kept, np.int32), self.mesh)
      self.slots = programs.gather(self.slots, rows, config=self.config, mesh=self.mesh)

  def _prefill(self) -> bool:
    """Computes one batch of prompts if any process wants one.

    As many as there are: those that find no free slot yet wait for one, computed.
    """
    each = self.layout.prefill_prompts // meshes.row_parts(self.mesh)
    taken: list[list[_Waiting]] = [[] for _ in self.places]
    wanting, queue = self._wanting(), self._shared()
    for _ in range(each):
      for device in np.argsort([-want for want in wanting], kind="stable"):
        if queue:
          taken[device].append(queue.popleft())
          wanting[device] -= taken[device][-1].left
    asked = [[self.requests[waiting.request] for waiting in one] for one in taken]
    longest = max((len(request.prompt) for one in asked for request in one), default=0)
    wants, longest = processes.global_maxima([self._wants_prompts(), longest])
    if not wants:
      return False
    self.queue = queue
    bucket = self.layout.prompt_bucket
    filled = [one + [NOTHING] * (each - len(one)) for one in asked]
    prompts = self._compute([request for one in filled for request in one], longest, bucket)
    for one in taken:
      for place, waiting in enumerate(one):
        waiting.source = place
    self.batches.append(_Batch(prompts, [collections.deque(one) for one in taken]))
    return True

  def _wanting(self) -> list[int]:
    """Free slots of each device beyond the rows that wait for them."""
    return [places.count(None) - self._waiting(device) for device, places in enumerate(self.places)]

  def _waiting(self, device: int) -> int:
    """Samples of computed prompts that are still to begin there."""
    return sum(one.left for batch in self.batches for one in batch.waiting[device])

  def _wants_prompts(self) -> bool:
    """A batch is worth computing when it would be full, or too much stands empty meanwhile."""
    empty = sum(max(0, want) for want in self._wanting())
    places = sum(map(len, self.places))
    full = len(self.queue) * meshes.row_parts(self.mesh) >= self.layout.prefill_prompts * len(
      self.places
    )
    return bool(self.queue and empty and (full or 4 * empty >= places or not self._alive()))

  def _compute(self, requests: Sequence[Request], longest: int, bucket: int) -> programs.Prompts:
    """Prompts of requests of this process at their devices."""
    own = [request.prompt for request in requests]
    arrays = (
      left_padded(own, -(-longest // bucket) * bucket),
      np.array([len(prompt) for prompt in own], np.int32),
      np.stack([request.key_data for request in requests]),
      np.array([stable_id(request.name) for request in requests], np.int32),
      _stacked([request.sampling for request in requests]),
      np.array([request.max_new_tokens for request in requests], np.int32),
    )
    return programs.prefill(
      self.params, *meshes.shard_batch(arrays, self.mesh), config=self.config, mesh=self.mesh
    )

  def _begin(self) -> bool:
    """Lets waiting rows take free slots, the oldest batch's first; whether any row decodes then."""
    assigned = [self._assign(batch) for batch in self.batches]
    began = [sum(map(len, one)) for one in assigned]
    left = [sum(map(len, batch.waiting)) for batch in self.batches]
    *known, alive = processes.global_maxima([*began, *left, self._alive()])
    began, left = known[: len(assigned)], known[len(assigned) :]
    for batch, rows, any_began in zip(self.batches, assigned, began, strict=True):
      if any_began:
        self._place(batch, rows)
    self.batches = [batch for batch, some in zip(self.batches, left, strict=True) if some]
    return bool(alive)

  def _assign(self, batch: _Batch) -> list[list[tuple[int, int, int]]]:
    """(slot, prompt, sample) of the rows that begin on each device."""
    assigned = []
    for places, waiting in zip(self.places, batch.waiting, strict=True):
      rows = []
      for slot, row in enumerate(places):
        if row is None and waiting:
          first = waiting[0]
          places[slot] = self.rows[first.request][first.sample]
          rows.append((slot, first.source, first.sample))
          first.sample += 1
          if not first.left:
            waiting.popleft()
      assigned.append(rows)
    return assigned

  def _place(self, batch: _Batch, assigned: Sequence[Sequence[tuple[int, int, int]]]) -> None:
    if self.slots is None:
      self.slots = programs.empty(
        config=self.config,
        mesh=self.mesh,
        rows=len(self.places[0]) * meshes.row_parts(self.mesh),
        length=self.layout.length,
        steps=self.layout.steps,
        dtype=self.layout.cache_dtype,
      )
    each = len(self.places[0])
    table = np.zeros((len(assigned), each, 3), np.int32)
    for device, rows in enumerate(assigned):
      table[device, : len(rows)] = rows or np.zeros((0, 3))
    columns = [table[:, :, column].reshape(-1) for column in range(3)]
    counts = np.array([len(rows) for rows in assigned], np.int32)
    arguments = meshes.shard_batch((*columns, counts), self.mesh)
    self.slots = programs.begin(
      self.slots, batch.prompts, *arguments, config=self.config, mesh=self.mesh
    )

  def _alive(self) -> bool:
    return any(row is not None for places in self.places for row in places)

  def _decode(self) -> None:
    """Draws a few tokens for every row and sees which have ended."""
    self.slots, drawn, steps = programs.decode(
      self.params,
      self.slots,
      config=self.config,
      mesh=self.mesh,
      steps=self.layout.steps,
      valid_vocab=self.valid_vocab,
    )
    for leaf in jax.tree.leaves(drawn):
      leaf.copy_to_host_async()
    seen = jax.tree.map(meshes.local_rows, drawn)
    slots = len(self.places[0]) * meshes.row_parts(self.mesh)
    self.usage += Usage(int(seen.counts.sum()), int(steps) * slots)
    place = 0
    for places in self.places:
      for slot, row in enumerate(places):
        if row is not None:
          self._read(row, seen, place)
          if not seen.alive[place]:
            places[slot] = None
        place += 1

  def _read(self, row: _Row, seen: programs.Drawn, place: int) -> None:
    count = seen.counts[place]
    # Copies, or every row would hold on to what all rows drew.
    drawn = np.array(seen.tokens[place, :count]), np.array(seen.logprobs[place, :count])
    row.pieces.append(drawn)
    row.stopped = bool(seen.stopped[place])
    if self.watch is not None and self.requests[row.request].watched:
      ended = not seen.alive[place]
      for request in self.watch(row.request, row.sample, row.tokens, ended):
        self.add(request)


def slot_sizes(slots: int) -> list[int]:
  """How many slots a device may have, most first: all, a half, a quarter, an eighth, if whole."""
  sizes = [slots]
  while sizes[-1] % 2 == 0 and sizes[-1] * _SMALLEST_SHARE > slots:
    sizes.append(sizes[-1] // 2)
  return sizes


def _stacked(samplings: Sequence[Sampling]) -> Sampling:
  return jax.tree.map(lambda *values: np.stack(values), *samplings)
