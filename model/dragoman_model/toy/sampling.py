"""Draws toy sentences.

A sentence is drawn so that its English has one reading: a clause whose object has a relative clause has
nothing after that object, because "the man saw the dog that slept yesterday" would have two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from dragoman_model.toy.function_words import (
    CONJUNCTIONS,
    EVENING,
    FREQUENCIES,
    MODALS,
    MY,
    NAMES,
    PREPOSITIONS,
    PRONOUNS,
    QUESTION_WORDS,
    THAT,
    THE,
    THIS,
    TODAY,
    TOMORROW,
    WILL,
    YESTERDAY,
    A,
)
from dragoman_model.toy.nouns import ADJECTIVES, NOUNS
from dragoman_model.toy.syntax import (
    Clause,
    Nominal,
    NounPhrase,
    PrepositionalPhrase,
    Sentence,
    relative_pronoun,
)
from dragoman_model.toy.verbs import GIVING_VERBS, INTRANSITIVE_VERBS, SAYING_VERBS, TRANSITIVE_VERBS
from dragoman_model.toy.words import (
    ANIMATE,
    Adjective,
    Adverbial,
    Determiner,
    Kind,
    Noun,
    Number,
    Pronoun,
    Verb,
)

__all__ = ["SentenceSampler"]

_Item = TypeVar("_Item")
_DEFINITE = (THE, THE, THIS, MY)
_ANY = (*_DEFINITE, A, A)
_INANIMATE = tuple(kind for kind in Kind if kind not in ANIMATE)


class SentenceSampler:
    """Draws sentences from a seeded generator, with methods of it that are the same on every platform."""

    def __init__(self, rng: random.Random, max_relative_clauses: int) -> None:
        self._rng = rng
        self._max_relative_clauses = max_relative_clauses

    def sentence(self) -> Sentence:
        """A statement, a question, or two clauses; relative clauses only where there is one main clause."""
        kind = self._rng.random()
        if kind < 0.15:
            return Sentence(self._question(), question=True)
        if kind < 0.25:
            return self._reported()
        if kind < 0.40:
            return self._linked()
        return Sentence(self._with_adverbials(self._clause(self._relatives(0.5))))

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _choice(self, items: Sequence[_Item]) -> _Item:
        return self._rng.choice(items)

    def _question(self) -> Clause:
        clause = replace(self._clause(self._relatives(0.2)), negated=False, frequency=None)
        if isinstance(clause.predicate, Verb) and self._chance(0.4):
            return replace(clause, front=self._choice(QUESTION_WORDS))
        return self._with_adverbials(clause, fronting=False)

    def _reported(self) -> Sentence:
        past = self._chance(0.4)
        subject = self._subject(0, (Kind.PERSON,))
        main = Clause(subject, self._choice(SAYING_VERBS), past=past, negated=self._chance(0.15))
        if past and self._chance(0.3):
            main = replace(main, time=YESTERDAY)
        return Sentence(main, conjunction=THAT, second=self._subordinate(past=past))

    def _linked(self) -> Sentence:
        conjunction = self._choice(CONJUNCTIONS)
        main = self._clause(0)
        second_first = not conjunction.coordinating and self._chance(0.5)
        return Sentence(
            self._with_adverbials(main, fronting=not second_first),
            conjunction=conjunction,
            second=self._subordinate(past=main.past),
            second_first=second_first,
        )

    def _subordinate(self, *, past: bool) -> Clause:
        clause = replace(self._clause(0), past=past, modal=None)
        return self._with_place(clause, 0.3)

    def _relatives(self, probability: float) -> int:
        if not self._max_relative_clauses or not self._chance(probability):
            return 0
        return 1 + self._rng.randrange(self._max_relative_clauses)

    def _clause(self, relatives: int) -> Clause:
        """A clause without adverbials, its relative clauses all on the subject or all on the object."""
        if relatives and self._chance(0.3):
            subject = self._subject(0, ANIMATE)
            return self._predication(subject, _kind(subject), relatives)
        kinds = _INANIMATE if relatives < 2 and self._chance(0.08) else ANIMATE
        subject = self._subject(relatives, kinds)
        return self._predication(subject, _kind(subject), 0)

    def _predication(self, subject: Nominal, kind: Kind, relatives: int) -> Clause:
        """What is said of a subject of that kind, with so many relative clauses on the object."""
        clause = self._with_verb(subject, kind, relatives)
        if isinstance(clause.predicate, Verb):
            tense = self._rng.random()
            modal = self._choice(MODALS) if tense < 0.25 else None
            clause = replace(clause, modal=modal, past=tense > 0.65)
        else:
            clause = replace(clause, past=self._chance(0.4))
        if self._chance(0.15):
            return replace(clause, negated=True)
        if clause.modal is None and self._chance(0.15):
            return replace(clause, frequency=self._choice(FREQUENCIES))
        return clause

    def _with_verb(self, subject: Nominal, kind: Kind, relatives: int) -> Clause:
        if relatives:
            return self._transitive(subject, kind, relatives)
        if kind not in ANIMATE or self._chance(0.12):
            return Clause(subject, self._choice([item for item in ADJECTIVES if kind in item.kinds]))
        shape = self._rng.random()
        if shape < 0.3:
            return Clause(
                subject, self._choice([verb for verb in INTRANSITIVE_VERBS if kind in verb.subjects])
            )
        if shape < 0.42:
            return self._giving(subject, kind)
        return self._transitive(subject, kind, 0)

    def _giving(self, subject: Nominal, kind: Kind) -> Clause:
        verb = self._choice([verb for verb in GIVING_VERBS if kind in verb.subjects])
        recipient: Nominal = self._noun_phrase((Kind.PERSON,), determiners=_DEFINITE)
        if isinstance(subject, NounPhrase) and self._chance(0.25):
            recipient = self._choice((*PRONOUNS, *NAMES))
        return Clause(subject, verb, object_=self._noun_phrase(verb.objects), recipient=recipient)

    def _transitive(self, subject: Nominal, kind: Kind, relatives: int) -> Clause:
        allowed = ANIMATE if relatives > 1 else tuple(Kind)
        verbs = [
            verb
            for verb in TRANSITIVE_VERBS
            if kind in verb.subjects and any(k in allowed for k in verb.objects)
        ]
        verb = self._choice(verbs)
        # After a noun only: "we see us" and "Anna sees Anna" would want a reflexive pronoun.
        pronoun_fits = not relatives and isinstance(subject, NounPhrase) and Kind.PERSON in verb.objects
        if pronoun_fits and self._chance(0.2):
            return Clause(subject, verb, object_=self._choice((*PRONOUNS, *NAMES)))
        kinds = [k for k in verb.objects if k in allowed]
        return Clause(subject, verb, object_=self._noun_phrase(kinds, relatives))

    def _subject(self, relatives: int, kinds: Sequence[Kind]) -> Nominal:
        if not relatives and Kind.PERSON in kinds and self._chance(0.25):
            return self._choice((*PRONOUNS, *PRONOUNS, *NAMES))
        return self._noun_phrase(kinds, relatives)

    def _noun_phrase(
        self, kinds: Sequence[Kind], relatives: int = 0, determiners: Sequence[Determiner] = _ANY
    ) -> NounPhrase:
        noun = self._choice([noun for noun in NOUNS if noun.kind in kinds])
        number = Number.PLURAL if self._chance(0.4) else Number.SINGULAR
        adjective = None
        if self._chance(0.25):
            adjective = self._choice([item for item in ADJECTIVES if noun.kind in item.kinds])
        relative = self._relative(noun, number, relatives) if relatives else None
        return NounPhrase(self._choice(determiners), noun, number, adjective, relative)

    def _relative(self, noun: Noun, number: Number, relatives: int) -> Clause:
        """The first of a chain of so many relative clauses, each on the object of the one before."""
        pronoun = relative_pronoun(noun, number)
        if relatives == 1 and (noun.kind not in ANIMATE or self._chance(0.35)):
            return self._object_relative(pronoun, noun.kind)
        return self._with_place(self._predication(pronoun, noun.kind, relatives - 1), 0.2)

    def _object_relative(self, pronoun: Pronoun, kind: Kind) -> Clause:
        verb = self._choice([verb for verb in TRANSITIVE_VERBS if kind in verb.objects])
        subject = self._subject(0, verb.subjects)
        past = self._chance(0.4)
        return Clause(subject, verb, past=past, negated=self._chance(0.1), front=pronoun)

    def _with_adverbials(self, clause: Clause, *, fronting: bool = True) -> Clause:
        """Adds when and where, in front or behind."""
        clause = self._with_place(clause, 0.25)
        if isinstance(clause.predicate, Adjective):
            return clause
        if self._chance(0.35):
            clause = self._with_time(clause, fronting=fronting)
        if fronting and clause.front is None and clause.place is not None and self._chance(0.4):
            return replace(clause, front=clause.place, place=None)
        return clause

    def _with_time(self, clause: Clause, *, fronting: bool) -> Clause:
        time = self._choice((_time(clause), EVENING))
        if fronting and (_ends_in_relative(clause) or self._chance(0.5)):
            return replace(clause, front=time)
        return clause if _ends_in_relative(clause) else replace(clause, time=time)

    def _with_place(self, clause: Clause, probability: float) -> Clause:
        if (
            isinstance(clause.predicate, Adjective)
            or _ends_in_relative(clause)
            or not self._chance(probability)
        ):
            return clause
        preposition = self._choice(PREPOSITIONS)
        return replace(clause, place=PrepositionalPhrase(preposition, self._noun_phrase(preposition.kinds)))


def _kind(nominal: Nominal) -> Kind:
    return nominal.noun.kind if isinstance(nominal, NounPhrase) else Kind.PERSON


def _ends_in_relative(clause: Clause) -> bool:
    return isinstance(clause.object_, NounPhrase) and clause.object_.relative is not None


def _time(clause: Clause) -> Adverbial:
    if clause.past:
        return YESTERDAY
    return TOMORROW if clause.modal is WILL else TODAY
