"""CTranslate2, spoken to in our ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ctranslate2

from dragoman_server.engine.messages import output_limit
from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SPECIAL = {PAD_ID: "<pad>", UNK_ID: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>"}
"""What these ids are called there; every other token is its id in decimal."""


class Peer:
    """A CTranslate2 translator that speaks ids."""

    def __init__(self, folder: Path, compute_type: str, *, workers: int, threads: int) -> None:
        self._translator = ctranslate2.Translator(
            str(folder),
            device="cpu",
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=threads,
            max_queued_batches=-1,
        )

    def translate(
        self, sources: Sequence[Sequence[int]], beam_size: int, batch_tokens: int
    ) -> list[list[int]]:
        """The best translation of each source, which ends in the end symbol, without its own.

        All are cut where the engine would cut that of the longest: alone, where it would cut this one.
        """
        tokens = [[SPECIAL.get(i, str(i)) for i in source] for source in sources]
        results = self._translator.translate_batch(
            tokens,
            beam_size=beam_size,
            max_batch_size=batch_tokens,
            batch_type="tokens",
            max_decoding_length=max(output_limit(len(source)) for source in sources),
            length_penalty=0.6 if beam_size > 1 else 1.0,
        )
        ids = {token: i for i, token in SPECIAL.items()}
        return [[ids.get(t) if t in ids else int(t) for t in result.hypotheses[0]] for result in results]
