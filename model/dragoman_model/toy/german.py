"""Says a toy sentence in German: declension, verb-second and verb-final order, separable verbs, the perfect.

Between the verb's first part and its last stand, in this order: pronouns, time, definite objects, "nicht" or
how often, indefinite objects, place. An object's relative clause comes after the verb's last part.
"""

from __future__ import annotations

from dataclasses import replace

from dragoman_model.toy.function_words import NOT_A, A
from dragoman_model.toy.syntax import Clause, Nominal, NounPhrase, PrepositionalPhrase, Sentence
from dragoman_model.toy.words import Adjective, Adverbial, Case, Number, Pronoun, Verb

__all__ = ["german_words"]


def german_words(sentence: Sentence) -> list[str]:
    """The sentence's words and commas in order, without the final mark; commas may be doubled."""
    main, second, conjunction = sentence.main, sentence.second, sentence.conjunction
    if second is None or conjunction is None:
        return _main_clause(main, verb_first=sentence.question)
    link = conjunction.german_past if second.past else conjunction.german
    if conjunction.coordinating:
        return [*_main_clause(main), link, *_main_clause(second)]
    subordinate = [link, *_verb_final(second)]
    if sentence.second_first:
        return [*subordinate, ",", *_main_clause(main, verb_first=True)]
    return [*_main_clause(main), *subordinate]


def _main_clause(clause: Clause, *, verb_first: bool = False) -> list[str]:
    """The finite verb comes second, or first in a yes-no question and after a clause that is in front."""
    subject = _nominal(clause.subject, Case.NOMINATIVE)
    finite, last = _verb(clause)
    front = _front(clause)
    opening = [*front, finite, *subject] if front or verb_first else [*subject, finite]
    return [*opening, *_middle(clause), *last, *_relative(clause.object_)]


def _verb_final(clause: Clause) -> list[str]:
    """A subordinate clause; the particle of a separable verb joins its verb again."""
    finite, last = _verb(clause)
    if isinstance(clause.predicate, Verb) and last == [clause.predicate.particle]:
        ending = [clause.predicate.particle + finite]
    else:
        ending = [*last, finite]
    subject = _nominal(clause.subject, Case.NOMINATIVE)
    return [*_front(clause), *subject, *_middle(clause), *ending, *_relative(clause.object_)]


def _verb(clause: Clause) -> tuple[str, list[str]]:
    """The finite verb, and what of the predicate stands at the clause's end."""
    predicate = clause.predicate
    singular = clause.subject.number is Number.SINGULAR
    if isinstance(predicate, Adjective):
        return _be(past=clause.past, singular=singular), [predicate.german]
    if clause.modal is not None:
        modal = clause.modal.german_third if singular else clause.modal.german_plural
        return modal, [predicate.infinitive]
    if clause.past:
        auxiliary = _be(past=False, singular=singular) if predicate.sein else _have(singular=singular)
        return auxiliary, [predicate.participle]
    finite = predicate.german_third if singular else predicate.german_plural
    return finite, [predicate.particle] if predicate.particle else []


def _be(*, past: bool, singular: bool) -> str:
    if past:
        return "war" if singular else "waren"
    return "ist" if singular else "sind"


def _have(*, singular: bool) -> str:
    return "hat" if singular else "haben"


def _middle(clause: Clause) -> list[str]:
    """What stands between the verb's two parts."""
    recipient = _middle_groups(clause.recipient, Case.DATIVE)
    object_ = _middle_groups(_negated_object(clause), _object_case(clause))
    pronouns, definite, indefinite = (
        first + second for first, second in zip(recipient, object_, strict=True)
    )
    time = [clause.time.german] if clause.time else []
    frequency = [clause.frequency.german] if clause.frequency else []
    # "kein" carries the negation where the object is indefinite.
    negation = ["nicht"] if clause.negated and not _is_indefinite(clause.object_) else []
    place = _prepositional_phrase(clause.place) if clause.place else []
    return [*pronouns, *time, *definite, *frequency, *negation, *indefinite, *place]


def _middle_groups(nominal: Nominal | None, case: Case) -> tuple[list[str], list[str], list[str]]:
    """The nominal's words, in its group: pronouns, definite or indefinite noun phrases."""
    if nominal is None:
        return [], [], []
    if isinstance(nominal, Pronoun):
        return [nominal.german[case]], [], []
    words = _noun_phrase(nominal, case)
    return ([], words, []) if nominal.determiner.definite else ([], [], words)


def _negated_object(clause: Clause) -> Nominal | None:
    if clause.negated and isinstance(clause.object_, NounPhrase) and clause.object_.determiner is A:
        return replace(clause.object_, determiner=NOT_A)
    return clause.object_


def _is_indefinite(nominal: Nominal | None) -> bool:
    return isinstance(nominal, NounPhrase) and not nominal.determiner.definite


def _object_case(clause: Clause) -> Case:
    return clause.predicate.case if isinstance(clause.predicate, Verb) else Case.NOMINATIVE


def _front(clause: Clause) -> list[str]:
    match clause.front:
        case None:
            return []
        case Adverbial():
            return [clause.front.german]
        case PrepositionalPhrase():
            return _prepositional_phrase(clause.front)
        case Pronoun():
            return [clause.front.german[_object_case(clause)]]


def _prepositional_phrase(phrase: PrepositionalPhrase) -> list[str]:
    article, *rest = _noun_phrase(phrase.noun_phrase, Case.DATIVE)
    contracted = phrase.preposition.contracted
    if article == "dem" and contracted is not None:
        return [contracted, *rest]
    return [phrase.preposition.german, article, *rest]


def _nominal(nominal: Nominal, case: Case) -> list[str]:
    if isinstance(nominal, Pronoun):
        return [nominal.german[case]]
    return [*_noun_phrase(nominal, case), *_relative(nominal)]


def _noun_phrase(phrase: NounPhrase, case: Case) -> list[str]:
    """Article, adjective and noun; `""` where there is no article."""
    column = phrase.noun.gender if phrase.number is Number.SINGULAR else 3
    words = [phrase.determiner.german[case][column]]
    if phrase.adjective is not None:
        words.append(phrase.adjective.german + phrase.determiner.adjective_endings[case][column])
    return [*words, phrase.noun.german_form(phrase.number, case)]


def _relative(nominal: Nominal | None) -> list[str]:
    """The relative clause between commas, if the nominal has one."""
    if not isinstance(nominal, NounPhrase) or nominal.relative is None:
        return []
    return [",", *_verb_final(nominal.relative), ","]
