"""SentencePiece models whose piece numbers are a network's ids, made of models that number otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from dragoman_export.options import ExportError
from dragoman_server.special_ids import SpecialIds

__all__ = ["read_pieces", "renumbered", "words_of"]

_PIECE: Any = sentencepiece_model_pb2.ModelProto.SentencePiece  # type: ignore[attr-defined]


def read_pieces(model: bytes, name: str) -> Any:
    """The model as a protocol buffer.

    Raises:
        ExportError: it is no SentencePiece model.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ExportError(f"{name} is no SentencePiece model") from error
    if not proto.pieces:
        raise ExportError(f"{name} is no SentencePiece model")
    return proto


def words_of(proto: Any) -> list[str]:
    """The pieces that text can be made of, by their numbers: no control symbols, not the unknown one."""
    other = (_PIECE.CONTROL, _PIECE.UNKNOWN)
    return [piece.piece for piece in proto.pieces if piece.type not in other]


def renumbered(
    proto: Any,
    vocabulary: Mapping[str, int],
    special: SpecialIds,
    control: Set[str],
    *,
    size: int,
    decodes: bool,
) -> bytes:
    """The same segmentation with the numbers of `vocabulary`.

    Args:
        proto: As `read_pieces` gives it.
        vocabulary: Ids by piece: all of the model's words, `<unk>`, and whatever else the network knows.
        special: Ids of the control symbols, which `vocabulary` names.
        control: Other pieces that are never text, such as those that name languages.
        size: Pieces to have; those that `vocabulary` does not name stand for nothing.
        decodes: Whether pieces that the model does not know are text when ids are decoded; they are never
            made of text.

    Raises:
        ExportError: two pieces have one id, or one beyond `size`.
    """
    known = {piece.piece: piece for piece in proto.pieces}
    names = {number: piece for piece, number in vocabulary.items()}
    if len(names) != len(vocabulary):
        raise ExportError("the vocabulary gives two pieces one id")
    if max(names) >= size:
        raise ExportError(f"the vocabulary has the id {max(names)}, but the network has {size} pieces")
    result = type(proto)()
    result.CopyFrom(proto)
    del result.pieces[:]
    for number in range(size):
        name = names.get(number, f"<nothing {number}>")
        piece = result.pieces.add(piece=name, score=0.0)
        if number == special.unk:
            piece.type = _PIECE.UNKNOWN
        elif number in (special.pad, special.bos, special.eos) or name in control or number not in names:
            piece.type = _PIECE.CONTROL
        elif name in known and known[name].type not in (_PIECE.CONTROL, _PIECE.UNKNOWN):
            piece.CopyFrom(known[name])
        else:
            piece.type = _PIECE.UNUSED if decodes else _PIECE.CONTROL
    spec = result.trainer_spec
    for role in ("pad", "unk", "bos", "eos"):
        number = getattr(special, role)
        setattr(spec, f"{role}_id", number)
        setattr(spec, f"{role}_piece", names[number])
    return result.SerializeToString(deterministic=True)  # type: ignore[no-any-return]
