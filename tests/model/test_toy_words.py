"""The toy lexicon: declensions written by hand, and what must hold of every entry."""

from __future__ import annotations

import pytest

from dragoman_model.toy.function_words import MY, NOT_A, PRONOUNS, THE, THIS, A
from dragoman_model.toy.german import german_words
from dragoman_model.toy.nouns import ADJECTIVES, NOUNS
from dragoman_model.toy.syntax import Clause, NounPhrase, Sentence
from dragoman_model.toy.verbs import GIVING_VERBS, INTRANSITIVE_VERBS, SAYING_VERBS, TRANSITIVE_VERBS
from dragoman_model.toy.words import Determiner, Noun, Number, Verb

SINGULAR, PLURAL = Number.SINGULAR, Number.PLURAL
VERBS = {
    verb.english: verb for verb in (*INTRANSITIVE_VERBS, *TRANSITIVE_VERBS, *GIVING_VERBS, *SAYING_VERBS)
}
ADJECTIVE = {adjective.english: adjective for adjective in ADJECTIVES}
NOUN = {noun.english: noun for noun in NOUNS}
HE = PRONOUNS[0]


def german(clause: Clause) -> str:
    return " ".join(word for word in german_words(Sentence(clause)) if word)


# Nominative, accusative, dative.
DECLENSIONS = [
    ("dog", THE, SINGULAR, "small", "der kleine Hund", "den kleinen Hund", "dem kleinen Hund"),
    ("cat", THE, SINGULAR, "small", "die kleine Katze", "die kleine Katze", "der kleinen Katze"),
    ("horse", THE, SINGULAR, "small", "das kleine Pferd", "das kleine Pferd", "dem kleinen Pferd"),
    ("mouse", THE, PLURAL, "small", "die kleinen Mäuse", "die kleinen Mäuse", "den kleinen Mäusen"),
    ("lion", A, SINGULAR, "old", "ein alter Löwe", "einen alten Löwen", "einem alten Löwen"),
    ("cow", A, SINGULAR, "old", "eine alte Kuh", "eine alte Kuh", "einer alten Kuh"),
    ("pig", A, SINGULAR, "old", "ein altes Schwein", "ein altes Schwein", "einem alten Schwein"),
    ("guest", A, PLURAL, "old", "alte Gäste", "alte Gäste", "alten Gästen"),
    ("boy", THIS, SINGULAR, "new", "dieser neue Junge", "diesen neuen Jungen", "diesem neuen Jungen"),
    ("clock", THIS, SINGULAR, "new", "diese neue Uhr", "diese neue Uhr", "dieser neuen Uhr"),
    ("house", THIS, SINGULAR, "new", "dieses neue Haus", "dieses neue Haus", "diesem neuen Haus"),
    ("city", THIS, PLURAL, "new", "diese neuen Städte", "diese neuen Städte", "diesen neuen Städten"),
    ("uncle", MY, SINGULAR, "big", "mein großer Onkel", "meinen großen Onkel", "meinem großen Onkel"),
    ("aunt", MY, SINGULAR, "big", "meine große Tante", "meine große Tante", "meiner großen Tante"),
    ("car", MY, SINGULAR, "big", "mein großes Auto", "mein großes Auto", "meinem großen Auto"),
    ("teacher", MY, PLURAL, "big", "meine großen Lehrer", "meine großen Lehrer", "meinen großen Lehrern"),
    ("frog", NOT_A, SINGULAR, "red", "kein roter Frosch", "keinen roten Frosch", "keinem roten Frosch"),
    ("duck", NOT_A, SINGULAR, "red", "keine rote Ente", "keine rote Ente", "keiner roten Ente"),
    ("boat", NOT_A, SINGULAR, "red", "kein rotes Boot", "kein rotes Boot", "keinem roten Boot"),
    (
        "key",
        NOT_A,
        PLURAL,
        "red",
        "keine roten Schlüssel",
        "keine roten Schlüssel",
        "keinen roten Schlüsseln",
    ),
]


@pytest.mark.parametrize(
    ("noun", "determiner", "number", "adjective", "nominative", "accusative", "dative"),
    DECLENSIONS,
    ids=[row[4] for row in DECLENSIONS],
)
def test_articles_adjectives_and_nouns_decline(
    noun: str,
    determiner: Determiner,
    number: Number,
    adjective: str,
    nominative: str,
    accusative: str,
    dative: str,
) -> None:
    phrase = NounPhrase(determiner, NOUN[noun], number, ADJECTIVE[adjective])
    verb = "ist" if number is SINGULAR else "sind"
    assert german(Clause(phrase, ADJECTIVE["clever"])) == f"{nominative} {verb} klug"
    assert german(Clause(HE, VERBS["see"], object_=phrase)) == f"er sieht {accusative}"
    assert german(Clause(HE, VERBS["help"], object_=phrase)) == f"er hilft {dative}"


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_principal_parts_hang_together(verb: Verb) -> None:
    assert verb.german_plural.endswith("n")
    assert verb.german_third.endswith("t") or verb.german_third == "weiß"
    assert verb.participle.startswith(verb.particle)
    assert verb.participle.endswith(("t", "en"))
    # The English must tell the tense and the number, or it would not determine the German.
    assert len({verb.english, verb.english_third, verb.english_past}) == 3


@pytest.mark.parametrize("noun", NOUNS, ids=[noun.english for noun in NOUNS])
def test_noun_forms_hang_together(noun: Noun) -> None:
    assert noun.english != noun.english_plural
    assert noun.german_dative_plural.endswith(("n", "s"))
    assert noun.german_dative_plural.startswith(noun.german_plural)
    assert all(form[0].isupper() for form in (noun.german, noun.german_plural))
    assert noun.oblique is None or noun.oblique == noun.german_plural


def test_no_english_word_has_two_meanings() -> None:
    words = [form for noun in NOUNS for form in (noun.english, noun.english_plural)]
    words += [
        form for verb in VERBS.values() for form in (verb.english, verb.english_third, verb.english_past)
    ]
    words += [adjective.english for adjective in ADJECTIVES]
    assert len(words) == len(set(words))
