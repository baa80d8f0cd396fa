"""The shape of a toy sentence before it is said in either language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dragoman_model.toy.function_words import RELATIVE_FORMS
from dragoman_model.toy.words import (
    Adjective,
    Adverbial,
    Case,
    Conjunction,
    Determiner,
    Kind,
    Modal,
    Noun,
    Number,
    Preposition,
    Pronoun,
    Verb,
)

__all__ = ["Clause", "Nominal", "NounPhrase", "PrepositionalPhrase", "Sentence", "relative_pronoun"]


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun and what belongs to it, such as "the small dogs that sing".

    `relative` is a clause in which a relative pronoun is the subject or stands in front as the object.
    """

    determiner: Determiner
    noun: Noun
    number: Number
    adjective: Adjective | None = None
    relative: Clause | None = None


Nominal: TypeAlias = NounPhrase | Pronoun


@dataclass(frozen=True, slots=True)
class PrepositionalPhrase:
    """A preposition and its noun phrase, such as "in the garden"."""

    preposition: Preposition
    noun_phrase: NounPhrase


@dataclass(frozen=True, slots=True)
class Clause:
    """One verb and everything around it.

    `predicate` is the verb, or an adjective that is said with "to be". `front` stands before the subject: an
    adverbial, a question word, or a relative pronoun that is the object (`object_` is then None).
    """

    subject: Nominal
    predicate: Verb | Adjective
    past: bool = False
    modal: Modal | None = None
    negated: bool = False
    object_: Nominal | None = None
    recipient: Nominal | None = None
    frequency: Adverbial | None = None
    time: Adverbial | None = None
    place: PrepositionalPhrase | None = None
    front: Adverbial | PrepositionalPhrase | Pronoun | None = None

    def __post_init__(self) -> None:
        if self.past and self.modal is not None:
            raise ValueError("past: a clause with a modal verb is said in the present tense only")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A main clause and perhaps a second one, linked by a conjunction, which `second_first` puts in front."""

    main: Clause
    question: bool = False
    conjunction: Conjunction | None = None
    second: Clause | None = None
    second_first: bool = False


def relative_pronoun(noun: Noun, number: Number) -> Pronoun:
    """The pronoun that takes up the noun: "who" for people, and gender and number of the noun in German."""
    column = noun.gender if number is Number.SINGULAR else 3
    nominative, accusative, dative = (RELATIVE_FORMS[case][column] for case in Case)
    subject, object_ = ("who", "whom") if noun.kind is Kind.PERSON else ("that", "that")
    return Pronoun(subject, object_, (nominative, accusative, dative), number)
