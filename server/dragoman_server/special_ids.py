"""The control symbols of a network, by their ids."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOS_ID", "EOS_ID", "PAD_ID", "UNK_ID", "SpecialIds"]

PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)
"""The ids of every network that this project trains; imported ones have their own."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the control symbols, alike on both sides."""

    pad: int = PAD_ID
    unk: int = UNK_ID
    bos: int = BOS_ID
    """Fed to the decoder first; some networks start with `pad` (Marian) or `eos` (M2M100)."""
    eos: int = EOS_ID
    never: tuple[int, ...] = (PAD_ID, BOS_ID)
    """What no translation contains."""
