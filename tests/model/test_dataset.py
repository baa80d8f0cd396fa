"""Token ids on disk and the batches made of them."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dragoman_model.augment import AugmentOptions
from dragoman_model.corpus import CorpusError, CorpusReport, ParallelCorpus
from dragoman_model.dataset import Batch, BatchStream, DatasetOptions, TokenisedCorpus, make_batch, tokenise
from dragoman_server.tokenizer import Tokenizer

Tokenizers = tuple[Tokenizer, Tokenizer]


def made_up(pairs: int, variants: int = 1) -> TokenisedCorpus:
    """Sentences of 1 to 30 tokens; the first token of a pair is its number."""
    generator = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        lengths = generator.integers(1, 30, pairs * variants)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        ids = np.full(offsets[-1], 99_999, np.uint32)
        ids[offsets[:-1]] = np.tile(np.arange(pairs), variants) + 4
        sides.append((ids, offsets))
    return TokenisedCorpus(
        pairs, variants, (sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]), CorpusReport()
    )


def numbers(batches: list[Batch]) -> list[int]:
    return [int(row[0]) - 4 for batch in batches for row in batch.source]


def epoch(stream: BatchStream) -> list[Batch]:
    batches, current = [], stream.epoch
    for batch in stream:
        if stream.epoch != current:
            break
        batches.append(batch)
    return batches


def test_ids_on_disk_are_those_of_the_tokenizer(
    tmp_path: Path, counting_corpus: ParallelCorpus, counting_tokenizers: Tokenizers
) -> None:
    options = DatasetOptions(subword_samples=2, subword_sides="both", subword_alpha=0.5)
    data = tokenise(counting_corpus, counting_tokenizers, tmp_path, options=options)
    pairs = list(counting_corpus.pairs(CorpusReport()))
    assert (data.pairs, data.variants) == (len(pairs), 3)
    for index, pair in enumerate(pairs):
        for side in (0, 1):
            assert data.sentence(side, index).tolist() == counting_tokenizers[side].encode(pair[side])
            for variant in (1, 2):
                ids = data.sentence(side, variant * data.pairs + index).tolist()
                assert counting_tokenizers[side].decode(ids) == pair[side]


def test_random_segmentations_of_the_source_leave_the_target_alone(
    tmp_path: Path, counting_corpus: ParallelCorpus, counting_tokenizers: Tokenizers
) -> None:
    options = DatasetOptions(subword_samples=1, subword_alpha=0.5)
    data = tokenise(counting_corpus, counting_tokenizers, tmp_path, options=options)
    other = [
        [
            data.sentence(side, i).tolist() != data.sentence(side, data.pairs + i).tolist()
            for i in range(data.pairs)
        ]
        for side in (0, 1)
    ]
    assert sum(other[0]) > data.pairs / 2
    assert not any(other[1])


def test_the_second_run_maps_what_the_first_one_wrote(
    tmp_path: Path, counting_corpus: ParallelCorpus, counting_tokenizers: Tokenizers
) -> None:
    def run(options: DatasetOptions, augment: AugmentOptions | None = None) -> TokenisedCorpus:
        return tokenise(
            counting_corpus, counting_tokenizers, tmp_path, options=options, augment=augment, seed=1
        )

    first = run(DatasetOptions())
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert run(DatasetOptions()).pairs == first.pairs
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == written
    assert isinstance(first.ids[0], np.memmap)
    assert run(DatasetOptions(), AugmentOptions(upper_share=1.0)).pairs > 2 * first.pairs


def test_over_long_pairs_are_counted(
    tmp_path: Path, counting_corpus: ParallelCorpus, counting_tokenizers: Tokenizers
) -> None:
    lengths = [
        max(len(counting_tokenizers[side].encode(pair[side])) for side in (0, 1))
        for pair in counting_corpus.pairs(CorpusReport())
    ]
    limit = sorted(lengths)[len(lengths) // 2]
    data = tokenise(counting_corpus, counting_tokenizers, tmp_path, options=DatasetOptions(max_tokens=limit))
    assert data.report.over_long == sum(length >= limit for length in lengths) > 0
    assert data.pairs == len(lengths) - data.report.over_long
    with pytest.raises(CorpusError, match="no usable pair"):
        tokenise(counting_corpus, counting_tokenizers, tmp_path, options=DatasetOptions(max_tokens=1))


def test_batches_are_padded_and_shifted() -> None:
    batch = make_batch([([7, 8], [9]), ([5], [6, 4, 4])])
    assert batch.source.tolist() == [[7, 8, 3], [5, 3, 0]]
    assert batch.source_lengths.tolist() == [3, 2]
    assert batch.target_in.tolist() == [[2, 9, 0, 0], [2, 6, 4, 4]]
    assert batch.target_out.tolist() == [[9, 3, 0, 0], [6, 4, 4, 3]]


def test_an_epoch_holds_every_pair_once_within_the_bound() -> None:
    batches = epoch(BatchStream(made_up(1000), batch_tokens=200, seed=1))
    assert sorted(numbers(batches)) == list(range(1000))
    for batch in batches:
        assert batch.source.size(0) * max(batch.source.size(1), batch.target_in.size(1)) <= 200
    real = sum(int((batch.source != 0).sum() + (batch.target_out != 0).sum()) for batch in batches)
    padded = sum(batch.source.numel() + batch.target_out.numel() for batch in batches)
    assert real / padded > 0.6  # the longer side decides the bucket, so the other one has some padding


def test_epochs_differ_and_take_the_variants_in_turn() -> None:
    data = made_up(50, variants=3)
    stream = BatchStream(data, batch_tokens=100, seed=1)
    orders = []
    for number in range(4):
        stream.load_state_dict({"epoch": number, "position": 0})
        batches = epoch(stream)
        orders.append(numbers(batches))
        found = sorted(int(length) - 1 for batch in batches for length in batch.source_lengths)
        offsets = data.offsets[0][(number % 3) * 50 : (number % 3) * 50 + 51]
        assert found == sorted(np.diff(offsets).tolist())
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("taken", [1, 17, 400])
def test_a_restored_stream_continues_where_the_saved_one_stood(taken: int) -> None:
    data = made_up(500)
    stream = BatchStream(data, batch_tokens=100, seed=1)
    source = iter(stream)
    list(islice(source, taken))
    restored = BatchStream(data, batch_tokens=100, seed=1)
    restored.load_state_dict(stream.state_dict())
    for expected, found in zip(islice(source, 300), restored, strict=False):
        assert torch.equal(expected.source, found.source)


def test_processes_share_an_epoch() -> None:
    data = made_up(300)
    whole = epoch(BatchStream(data, batch_tokens=100, seed=1))
    parts = [epoch(BatchStream(data, batch_tokens=100, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [numbers([batch]) for pair in zip(*parts, strict=True) for batch in pair] == [
        numbers([batch]) for batch in whole[: len(whole) // 2 * 2]
    ]


def test_a_single_pass_holds_every_pair_once() -> None:
    assert sorted(numbers(list(BatchStream(made_up(333), 100, 1).single_pass()))) == list(range(333))
