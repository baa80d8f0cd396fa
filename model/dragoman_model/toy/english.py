"""Says a toy sentence in English: do-support, agreement, inversion in questions."""

from __future__ import annotations

from dragoman_model.toy.syntax import Clause, Nominal, NounPhrase, PrepositionalPhrase, Sentence
from dragoman_model.toy.words import Adjective, Adverbial, Number, Pronoun

__all__ = ["english_words"]


def english_words(sentence: Sentence) -> list[str]:
    """The sentence's words and commas in order, without the final mark."""
    main = _clause(sentence.main, question=sentence.question)
    if sentence.second is None or sentence.conjunction is None:
        return main
    second = [sentence.conjunction.english, *_clause(sentence.second)]
    return [*second, ",", *main] if sentence.second_first else [*main, *second]


def _clause(clause: Clause, *, question: bool = False) -> list[str]:
    subject = _nominal(clause.subject)
    auxiliary = _auxiliary(clause, question=question)
    negation = ["not"] if clause.negated else []
    if question:
        opening = [*_front(clause), auxiliary, *subject, *negation]
    elif clause.negated and auxiliary == "can":
        opening = [*_front(clause), *subject, "cannot"]
    else:
        opening = [*_front(clause), *subject, auxiliary, *negation]
    frequency = [clause.frequency.english] if clause.frequency else []
    return [*opening, *frequency, _main_verb(clause, auxiliary), *_complements(clause)]


def _complements(clause: Clause) -> list[str]:
    words = [] if clause.object_ is None else _nominal(clause.object_, is_object=True)
    if clause.recipient is not None:
        words += ["to", *_nominal(clause.recipient, is_object=True)]
    if clause.place is not None:
        words += _prepositional_phrase(clause.place)
    return words if clause.time is None else [*words, clause.time.english]


def _auxiliary(clause: Clause, *, question: bool) -> str:
    """The verb that is negated and inverted, or nothing where the main verb stands alone."""
    singular = clause.subject.number is Number.SINGULAR
    if isinstance(clause.predicate, Adjective):
        if clause.past:
            return "was" if singular else "were"
        return "is" if singular else "are"
    if clause.modal is not None and clause.modal.auxiliary:
        return clause.modal.english_plural
    if not (question or clause.negated):
        return ""
    if clause.past:
        return "did"
    return "does" if singular else "do"


def _main_verb(clause: Clause, auxiliary: str) -> str:
    predicate, modal = clause.predicate, clause.modal
    if isinstance(predicate, Adjective):
        return predicate.english
    plural = auxiliary or clause.subject.number is Number.PLURAL
    if modal is not None and not modal.auxiliary:
        return f"{modal.english_plural if plural else modal.english_singular} {predicate.english}"
    if clause.past and not auxiliary:
        return predicate.english_past
    return predicate.english if plural else predicate.english_third


def _front(clause: Clause) -> list[str]:
    match clause.front:
        case None:
            return []
        case Adverbial():
            return [clause.front.english]
        case PrepositionalPhrase():
            return _prepositional_phrase(clause.front)
        case Pronoun():
            return [clause.front.english_object]


def _prepositional_phrase(phrase: PrepositionalPhrase) -> list[str]:
    return [phrase.preposition.english, *_nominal(phrase.noun_phrase)]


def _nominal(nominal: Nominal, *, is_object: bool = False) -> list[str]:
    if isinstance(nominal, Pronoun):
        return [nominal.english_object if is_object else nominal.english_subject]
    words = [nominal.adjective.english] if nominal.adjective else []
    words.append(nominal.noun.english_form(nominal.number))
    relative = [] if nominal.relative is None else _clause(nominal.relative)
    return [_determiner(nominal, before=words[0]), *words, *relative]


def _determiner(phrase: NounPhrase, *, before: str) -> str:
    if phrase.number is Number.PLURAL:
        return phrase.determiner.english_plural
    article = phrase.determiner.english_singular
    return "an" if article == "a" and before[0] in "aeiou" else article
