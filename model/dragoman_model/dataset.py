"""Token ids on disk, and batches of them.

A corpus is tokenised once into flat arrays that are memory-mapped afterwards, so that one larger than memory
trains. Batches hold pairs of similar length up to a bound of padded tokens; their order is a function of the
seed and the epoch alone, so that a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragoman_model.augment import AugmentOptions, augmented
from dragoman_model.corpus import CorpusError, CorpusReport, ParallelCorpus
from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID
from dragoman_server.tokenizer import Tokenizer

__all__ = ["Batch", "BatchStream", "DatasetOptions", "TokenisedCorpus", "make_batch", "tokenise"]

_CHUNK = 8192  # pairs tokenised at once
_WINDOW = 1 << 17  # pairs among which similar lengths are looked for
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How a corpus becomes token ids."""

    max_tokens: int = 256
    """Pairs with more tokens on either side, the end symbol included, are left out and counted."""
    subword_samples: int = 0
    """Random segmentations kept of every pair besides the best one, one for each further epoch in turn:
    BPE-dropout (Provilkov et al. 2020) or subword regularisation (Kudo 2018). They are drawn once and kept
    with the run; SentencePiece cannot draw the same ones again for another run."""
    subword_sides: Literal["source", "both"] = "source"
    """Sampling the target as well regularises more, but a small model spends itself on guessing how words
    are cut."""
    subword_alpha: float = 0.1
    """Dropout rate of BPE merges, or smoothing of unigram segmentations."""


class Batch(NamedTuple):
    """Right-padded ids."""

    source: Tensor
    """`[batch, source]`, each row ending in the end symbol."""
    source_lengths: Tensor
    """`[batch]`."""
    target_in: Tensor
    """`[batch, target]`: the start symbol and the target."""
    target_out: Tensor
    """`[batch, target]`: the target and the end symbol; what `target_in` should be continued with."""


@dataclass(frozen=True, slots=True)
class TokenisedCorpus:
    """Memory-mapped ids of `variants` segmentations of `pairs` pairs each, without start and end symbols."""

    pairs: int
    variants: int
    ids: tuple[NDArray[np.uint32], NDArray[np.uint32]]
    """Source and target ids, flat."""
    offsets: tuple[NDArray[np.int64], NDArray[np.int64]]
    """`[variants * pairs + 1]`: where each sentence begins in `ids`."""
    report: CorpusReport

    @classmethod
    def open(cls, folder: Path) -> TokenisedCorpus:
        """Map the arrays that `tokenise` wrote."""
        facts = json.loads((folder / "corpus.json").read_text())
        mapped = [np.memmap(folder / f"{side}.ids", np.uint32, mode="r") for side in ("source", "target")]
        offsets = [np.memmap(folder / f"{side}.offsets", np.int64, mode="r") for side in ("source", "target")]
        report = CorpusReport(**facts["report"])
        return cls(
            facts["pairs"], facts["variants"], (mapped[0], mapped[1]), (offsets[0], offsets[1]), report
        )

    def sentence(self, side: int, index: int) -> NDArray[np.uint32]:
        """Ids of one sentence; side 0 is the source."""
        return self.ids[side][self.offsets[side][index] : self.offsets[side][index + 1]]

    def lengths(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the longer side of each sentence, its start or end symbol included."""
        sides = [offsets[indices + 1] - offsets[indices] for offsets in self.offsets]
        longer: NDArray[np.int64] = np.maximum(*sides) + 1
        return longer

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """The pairs at `indices` as tensors."""
        return make_batch([tuple(self.sentence(side, int(i)).tolist() for side in (0, 1)) for i in indices])


def make_batch(pairs: list[tuple[list[int], ...]]) -> Batch:
    """Pad source and target ids (without special symbols) into a batch."""
    sources = [[*source, EOS_ID] for source, _ in pairs]
    return Batch(
        _padded(sources),
        torch.tensor([len(ids) for ids in sources]),
        _padded([[BOS_ID, *target] for _, target in pairs]),
        _padded([[*target, EOS_ID] for _, target in pairs]),
    )


def _padded(rows: list[list[int]]) -> Tensor:
    array = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int64)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return torch.from_numpy(array)


class _Writer:
    """Appends sentences of one side to disk."""

    def __init__(self, folder: Path, side: str) -> None:
        self._ids: BinaryIO = (folder / f"{side}.ids").open("wb")
        self._offsets: BinaryIO = (folder / f"{side}.offsets").open("wb")
        self._end = 0
        self._offsets.write(np.int64(0).tobytes())

    def append(self, sentences: list[list[int]]) -> None:
        ends = self._end + np.cumsum([len(ids) for ids in sentences], dtype=np.int64)
        self._end = int(ends[-1])
        self._offsets.write(ends.tobytes())
        self._ids.write(np.fromiter((i for ids in sentences for i in ids), np.uint32).tobytes())

    def close(self) -> None:
        self._ids.close()
        self._offsets.close()


def tokenise(
    corpus: ParallelCorpus,
    tokenizers: tuple[Tokenizer, Tokenizer],
    folder: Path,
    *,
    options: DatasetOptions,
    augment: AugmentOptions | None = None,
    seed: int = 0,
) -> TokenisedCorpus:
    """Tokenise a corpus below `folder`, or map what an earlier run with the same input left there.

    Raises:
        CorpusError: no pair is left.
    """
    key = _fingerprint(corpus, tokenizers, options, augment, seed)
    target = folder / key
    if not (target / "corpus.json").is_file():
        partial = folder / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(corpus, tokenizers, partial, options, augment, seed)
        partial.rename(target)
    return TokenisedCorpus.open(target)


def _write(
    corpus: ParallelCorpus,
    tokenizers: tuple[Tokenizer, Tokenizer],
    folder: Path,
    options: DatasetOptions,
    augment: AugmentOptions | None,
    seed: int,
) -> None:
    report = CorpusReport()
    writers = _Writer(folder, "source"), _Writer(folder, "target")
    count = 0
    for variant in range(options.subword_samples + 1):
        # Only the best segmentation decides which pairs are short enough, so that all variants hold the same.
        counted = report if variant == 0 else CorpusReport()
        pairs = corpus.pairs(counted)
        stream = augmented(pairs, augment, seed) if augment else pairs
        while chunk := list(islice(stream, _CHUNK)):
            best = [tokenizers[side].encode_all([pair[side] for pair in chunk]) for side in (0, 1)]
            fits = [max(len(a), len(b)) < options.max_tokens for a, b in zip(*best, strict=True)]
            counted.over_long += fits.count(False)
            count += fits.count(True) if variant == 0 else 0
            for side in (0, 1):
                sentences = best[side]
                if variant and (side == 0 or options.subword_sides == "both"):
                    sentences = _sampled(
                        tokenizers[side], [pair[side] for pair in chunk], best[side], options
                    )
                kept = [ids for ids, fit in zip(sentences, fits, strict=True) if fit]
                if kept:
                    writers[side].append(kept)
    for writer in writers:
        writer.close()
    if not count:
        raise CorpusError(f"{corpus.files[0]}: no usable pair ({report})")
    facts = {"pairs": count, "variants": options.subword_samples + 1, "report": asdict(report)}
    (folder / "corpus.json").write_text(json.dumps(facts))


def _sampled(
    tokenizer: Tokenizer, texts: list[str], best: list[list[int]], options: DatasetOptions
) -> list[list[int]]:
    """Random segmentations; the best one where the random one is too long."""
    sampled = tokenizer.sample_all(texts, options.subword_alpha)
    return [ids if len(ids) < options.max_tokens else kept for ids, kept in zip(sampled, best, strict=True)]


def _fingerprint(corpus: ParallelCorpus, tokenizers: tuple[Tokenizer, Tokenizer], *settings: object) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {settings!r}".encode())
    for file in corpus.files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for tokenizer in tokenizers:
        digest.update(tokenizer.model)
    return digest.hexdigest()[:20]


class BatchStream:
    """Batches of a corpus, epoch after epoch; an iterator whose position can be saved and restored.

    Args:
        corpus: The tokenised pairs.
        batch_tokens: Bound on the padded tokens of a batch, on the longer side.
        seed: Decides the order, with the epoch.
        rank: This process among `world_size`, each of which takes every `world_size`-th batch.
        world_size: Processes that train together.
    """

    def __init__(
        self, corpus: TokenisedCorpus, batch_tokens: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.corpus = corpus
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0
        """Batches of this epoch taken so far."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            plans = islice(self._plan(self.epoch), self.position * self.world_size, None)
            # Every process takes as many: what is left at the end of an epoch is left out.
            while len(share := list(islice(plans, self.world_size))) == self.world_size:
                self.position += 1
                yield self.corpus.batch(share[self.rank])
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands; Lightning saves it with a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the batch that was taken last when `state` was saved."""
        self.epoch, self.position = state["epoch"], state["position"]

    def single_pass(self) -> Iterator[Batch]:
        """Every pair once, in corpus order of similar lengths: for validation."""
        for start in range(0, self.corpus.pairs, _WINDOW):
            indices = np.arange(start, min(start + _WINDOW, self.corpus.pairs))
            for plan in self._cut(indices, np.arange(len(indices))):
                yield self.corpus.batch(plan)

    def _plan(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Indices of the pairs of each batch of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.corpus.pairs) + (epoch % self.corpus.variants) * self.corpus.pairs
        for start in range(0, len(order), _WINDOW):
            window = order[start : start + _WINDOW]
            plans = list(self._cut(window, generator.permutation(len(window))))
            for i in generator.permutation(len(plans)):
                yield plans[i]

    def _cut(self, window: NDArray[np.int64], tie_break: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Sort a window by length and cut it where the padded tokens would pass the bound."""
        lengths = self.corpus.lengths(window)
        by_length = np.lexsort((tie_break, lengths))
        start = 0
        for stop, i in enumerate(by_length):
            if stop > start and int(lengths[i]) * (stop + 1 - start) > self.batch_tokens:
                yield window[by_length[start:stop]]
                start = stop
        if start < len(by_length):
            yield window[by_length[start:]]
