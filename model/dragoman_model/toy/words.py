"""The kinds of words that the toy grammar knows, with the forms it needs of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = [
    "ANIMATE",
    "Adjective",
    "Adverbial",
    "Case",
    "Conjunction",
    "Determiner",
    "Gender",
    "Kind",
    "Modal",
    "Noun",
    "Number",
    "Preposition",
    "Pronoun",
    "Verb",
]


class Number(Enum):
    """Grammatical number; `we` takes the verb forms of `they`, and there is no `I` and no `you`."""

    SINGULAR = "singular"
    PLURAL = "plural"


class Gender(IntEnum):
    """German gender, as the column of a declension table; the fourth column is the plural."""

    MASCULINE = 0
    FEMININE = 1
    NEUTER = 2


class Case(IntEnum):
    """German case, as the row of a declension table."""

    NOMINATIVE = 0
    ACCUSATIVE = 1
    DATIVE = 2


class Kind(Enum):
    """What a noun stands for, so that nobody eats a school."""

    PERSON = "person"
    ANIMAL = "animal"
    FOOD = "food"
    TEXT = "text"
    THING = "thing"
    PLACE = "place"


ANIMATE = (Kind.PERSON, Kind.ANIMAL)


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun's principal parts; `oblique` is the singular outside the nominative, where it differs."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    german_dative_plural: str
    gender: Gender
    kind: Kind
    oblique: str | None = None

    def english_form(self, number: Number) -> str:
        """The English form in that number."""
        return self.english if number is Number.SINGULAR else self.english_plural

    def german_form(self, number: Number, case: Case) -> str:
        """The German form in that number and case."""
        if number is Number.PLURAL:
            return self.german_dative_plural if case is Case.DATIVE else self.german_plural
        if self.oblique is not None and case is not Case.NOMINATIVE:
            return self.oblique
        return self.german


@dataclass(frozen=True, slots=True)
class Pronoun:
    """A whole noun phrase in one word: a personal or relative pronoun, or a name."""

    english_subject: str
    english_object: str
    german: tuple[str, str, str]  # by Case
    number: Number


@dataclass(frozen=True, slots=True)
class Determiner:
    """An article or what stands in its place; `""` where there is none.

    `german` and `adjective_endings` are declension tables: rows are cases, columns the three genders and the
    plural.
    """

    english_singular: str
    english_plural: str
    german: tuple[tuple[str, ...], ...]
    adjective_endings: tuple[tuple[str, ...], ...]
    definite: bool = True


@dataclass(frozen=True, slots=True)
class Adjective:
    """An adjective; attributive German forms are `german` and an ending."""

    english: str
    german: str
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb's principal parts and what it takes as subject and object.

    The German plural is also the infinitive, apart from the separable `particle` that comes before it.
    `sein` says that the perfect tense takes that auxiliary instead of `haben`; `case` is the object's.
    """

    english: str
    english_third: str
    english_past: str
    german_third: str
    german_plural: str
    participle: str
    subjects: tuple[Kind, ...]
    objects: tuple[Kind, ...] = ()
    particle: str = ""
    sein: bool = False
    case: Case = Case.ACCUSATIVE

    @property
    def infinitive(self) -> str:
        """The German infinitive, the particle in front."""
        return self.particle + self.german_plural


@dataclass(frozen=True, slots=True)
class Modal:
    """A verb that takes an infinitive; not an `auxiliary` if English negates it with `do`."""

    english_singular: str
    english_plural: str
    german_third: str
    german_plural: str
    auxiliary: bool = True


@dataclass(frozen=True, slots=True)
class Adverbial:
    """A fixed phrase that says when, how often, where or why."""

    english: str
    german: str


@dataclass(frozen=True, slots=True)
class Preposition:
    """A preposition with the dative; `contracted` is its one-word form with `dem`, where German has one."""

    english: str
    german: str
    kinds: tuple[Kind, ...]
    contracted: str | None = None


@dataclass(frozen=True, slots=True)
class Conjunction:
    """A word between two clauses, with the comma that comes before it; `german_past` is for past events."""

    english: str
    german: str
    german_past: str
    coordinating: bool = False
