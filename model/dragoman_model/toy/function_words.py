"""The small words of the toy grammar: determiners, pronouns, modals, adverbials, and what links words."""

from __future__ import annotations

from dragoman_model.toy.words import (
    ANIMATE,
    Adverbial,
    Conjunction,
    Determiner,
    Kind,
    Modal,
    Number,
    Preposition,
    Pronoun,
)

__all__ = [
    "CONJUNCTIONS",
    "EVENING",
    "FREQUENCIES",
    "MODALS",
    "MY",
    "NAMES",
    "NOT_A",
    "PREPOSITIONS",
    "PRONOUNS",
    "QUESTION_WORDS",
    "RELATIVE_FORMS",
    "THAT",
    "THE",
    "THIS",
    "TODAY",
    "TOMORROW",
    "WILL",
    "YESTERDAY",
    "A",
]

PRONOUNS = (
    Pronoun("he", "him", ("er", "ihn", "ihm"), Number.SINGULAR),
    Pronoun("she", "her", ("sie", "sie", "ihr"), Number.SINGULAR),
    Pronoun("we", "us", ("wir", "uns", "uns"), Number.PLURAL),
    Pronoun("they", "them", ("sie", "sie", "ihnen"), Number.PLURAL),
)
NAMES = tuple(
    Pronoun(name, name, (name, name, name), Number.SINGULAR) for name in ("Anna", "Maria", "Paul", "Peter")
)

_DEFINITE_FORMS = (("der", "die", "das", "die"), ("den", "die", "das", "die"), ("dem", "der", "dem", "den"))
RELATIVE_FORMS = (*_DEFINITE_FORMS[:2], ("dem", "der", "dem", "denen"))

_AFTER_DER = (("e", "e", "e", "en"), ("en", "e", "e", "en"), ("en", "en", "en", "en"))
_AFTER_KEIN = (("er", "e", "es", "en"), ("en", "e", "es", "en"), ("en", "en", "en", "en"))
_AFTER_EIN = (("er", "e", "es", "e"), ("en", "e", "es", "e"), ("en", "en", "en", "en"))

THE = Determiner("the", "the", _DEFINITE_FORMS, _AFTER_DER)
THIS = Determiner(
    "this",
    "these",
    (
        ("dieser", "diese", "dieses", "diese"),
        ("diesen", "diese", "dieses", "diese"),
        ("diesem", "dieser", "diesem", "diesen"),
    ),
    _AFTER_DER,
)
MY = Determiner(
    "my",
    "my",
    (
        ("mein", "meine", "mein", "meine"),
        ("meinen", "meine", "mein", "meine"),
        ("meinem", "meiner", "meinem", "meinen"),
    ),
    _AFTER_KEIN,
)
A = Determiner(
    "a",
    "",
    (("ein", "eine", "ein", ""), ("einen", "eine", "ein", ""), ("einem", "einer", "einem", "")),
    _AFTER_EIN,
    definite=False,
)
# German says "sees no dog" where English says "does not see a dog": the English forms are those of A.
NOT_A = Determiner(
    "a",
    "",
    (
        ("kein", "keine", "kein", "keine"),
        ("keinen", "keine", "kein", "keine"),
        ("keinem", "keiner", "keinem", "keinen"),
    ),
    _AFTER_KEIN,
    definite=False,
)

WILL = Modal("will", "will", "wird", "werden")
MODALS = (
    WILL,
    Modal("can", "can", "kann", "können"),
    Modal("should", "should", "sollte", "sollten"),
    Modal("wants to", "want to", "will", "wollen", auxiliary=False),
)

YESTERDAY = Adverbial("yesterday", "gestern")
TODAY = Adverbial("today", "heute")
TOMORROW = Adverbial("tomorrow", "morgen")
EVENING = Adverbial("in the evening", "am Abend")
FREQUENCIES = (
    Adverbial("often", "oft"),
    Adverbial("always", "immer"),
    Adverbial("sometimes", "manchmal"),
    Adverbial("rarely", "selten"),
)
QUESTION_WORDS = (Adverbial("where", "wo"), Adverbial("when", "wann"), Adverbial("why", "warum"))

PREPOSITIONS = (
    Preposition("in", "in", (Kind.PLACE,), contracted="im"),
    Preposition("behind", "hinter", (Kind.PLACE, Kind.THING)),
    Preposition("in front of", "vor", (Kind.PLACE, Kind.THING)),
    Preposition("next to", "neben", (Kind.PERSON, Kind.THING)),
    Preposition("with", "mit", ANIMATE),
)

THAT = Conjunction("that", ", dass", ", dass")
CONJUNCTIONS = (
    Conjunction("because", ", weil", ", weil"),
    Conjunction("although", ", obwohl", ", obwohl"),
    Conjunction("when", ", wenn", ", als"),
    Conjunction("and", "und", "und", coordinating=True),
    Conjunction(", but", ", aber", ", aber", coordinating=True),
)
