"""Clauses written by hand, against what the toy grammar says: agreement, case, word order, tenses."""

from __future__ import annotations

import pytest

from dragoman_model.toy import function_words as fw
from dragoman_model.toy.corpus import say
from dragoman_model.toy.function_words import MY, THE, THIS, A
from dragoman_model.toy.nouns import ADJECTIVES, NOUNS
from dragoman_model.toy.syntax import Clause, NounPhrase, PrepositionalPhrase, Sentence
from dragoman_model.toy.verbs import GIVING_VERBS, INTRANSITIVE_VERBS, TRANSITIVE_VERBS
from dragoman_model.toy.words import Determiner, Number

VERB = {verb.english: verb for verb in (*INTRANSITIVE_VERBS, *TRANSITIVE_VERBS, *GIVING_VERBS)}
ADJECTIVE = {adjective.english: adjective for adjective in ADJECTIVES}
NOUN = {noun.english: noun for noun in NOUNS}
MODAL = {modal.english_plural: modal for modal in fw.MODALS}
PREPOSITION = {preposition.english: preposition for preposition in fw.PREPOSITIONS}
HE, SHE, WE, THEY = fw.PRONOUNS
ANNA = fw.NAMES[0]
OFTEN = fw.FREQUENCIES[0]


def phrase(
    noun: str,
    determiner: Determiner = THE,
    adjective: str | None = None,
    number: Number = Number.SINGULAR,
) -> NounPhrase:
    return NounPhrase(determiner, NOUN[noun], number, ADJECTIVE[adjective] if adjective else None)


def many(noun: str, determiner: Determiner = THE, adjective: str | None = None) -> NounPhrase:
    return phrase(noun, determiner, adjective, Number.PLURAL)


def at(preposition: str, noun_phrase: NounPhrase) -> PrepositionalPhrase:
    return PrepositionalPhrase(PREPOSITION[preposition], noun_phrase)


SLEEPS, SINGS, SEE, HEAR, HELP = VERB["sleep"], VERB["sing"], VERB["see"], VERB["hear"], VERB["help"]
DOG, CAT, CHILD, MAN, WOMAN = (phrase(noun) for noun in ("dog", "cat", "child", "man", "woman"))

STATEMENTS = [
    # Agreement and number.
    (Clause(DOG, SLEEPS), "The dog sleeps.", "Der Hund schläft."),
    (Clause(many("dog"), SLEEPS), "The dogs sleep.", "Die Hunde schlafen."),
    (Clause(WE, SEE, object_=CAT), "We see the cat.", "Wir sehen die Katze."),
    (Clause(ANNA, SEE, object_=many("mouse", A)), "Anna sees mice.", "Anna sieht Mäuse."),
    # Gender, case, adjective endings.
    (Clause(MAN, SEE, object_=DOG), "The man sees the dog.", "Der Mann sieht den Hund."),
    (
        Clause(phrase("girl", A, adjective="young"), SEE, object_=phrase("apple", A, adjective="red")),
        "A young girl sees a red apple.",
        "Ein junges Mädchen sieht einen roten Apfel.",
    ),
    (
        Clause(phrase("aunt", THIS), VERB["eat"], object_=phrase("egg", A, adjective="old")),
        "This aunt eats an old egg.",
        "Diese Tante isst ein altes Ei.",
    ),
    (
        Clause(many("boy", MY), VERB["carry"], object_=many("box", A, "small")),
        "My boys carry small boxes.",
        "Meine Jungen tragen kleine Kisten.",
    ),
    (Clause(CHILD, HEAR, object_=phrase("bear")), "The child hears the bear.", "Das Kind hört den Bären."),
    (Clause(MAN, HELP, object_=phrase("boy", MY)), "The man helps my boy.", "Der Mann hilft meinem Jungen."),
    (
        Clause(WOMAN, HELP, object_=many("child", A, "small")),
        "The woman helps small children.",
        "Die Frau hilft kleinen Kindern.",
    ),
    (
        Clause(WOMAN, VERB["thank"], object_=phrase("daughter", adjective="clever")),
        "The woman thanks the clever daughter.",
        "Die Frau dankt der klugen Tochter.",
    ),
    (Clause(MAN, SEE, object_=HE), "The man sees him.", "Der Mann sieht ihn."),
    (Clause(MAN, HELP, object_=SHE), "The man helps her.", "Der Mann hilft ihr."),
    (Clause(THEY, HELP, object_=DOG), "They help the dog.", "Sie helfen dem Hund."),
    # Two objects, in another order.
    (
        Clause(MAN, VERB["give"], object_=phrase("book", A), recipient=CHILD),
        "The man gives a book to the child.",
        "Der Mann gibt dem Kind ein Buch.",
    ),
    (
        Clause(WOMAN, VERB["show"], past=True, object_=phrase("letter"), recipient=THEY),
        "The woman showed the letter to them.",
        "Die Frau hat ihnen den Brief gezeigt.",
    ),
    # Separable verbs.
    (
        Clause(CHILD, VERB["call"], object_=phrase("doctor")),
        "The child calls the doctor.",
        "Das Kind ruft den Arzt an.",
    ),
    (
        Clause(MAN, VERB["listen to"], object_=many("bird")),
        "The man listens to the birds.",
        "Der Mann hört den Vögeln zu.",
    ),
    (
        Clause(HE, VERB["pick up"], past=True, object_=phrase("key")),
        "He picked up the key.",
        "Er hat den Schlüssel abgeholt.",
    ),
    (
        Clause(SHE, VERB["invite"], modal=MODAL["want to"], object_=phrase("guest")),
        "She wants to invite the guest.",
        "Sie will den Gast einladen.",
    ),
    # The perfect, with haben and with sein.
    (Clause(CAT, SEE, past=True, object_=DOG), "The cat saw the dog.", "Die Katze hat den Hund gesehen."),
    (Clause(many("frog"), VERB["swim"], past=True), "The frogs swam.", "Die Frösche sind geschwommen."),
    (Clause(CHILD, VERB["get up"], past=True), "The child got up.", "Das Kind ist aufgestanden."),
    # Modals.
    (
        Clause(DOG, SEE, modal=MODAL["can"], object_=CAT),
        "The dog can see the cat.",
        "Der Hund kann die Katze sehen.",
    ),
    (
        Clause(many("king"), SINGS, modal=MODAL["should"]),
        "The kings should sing.",
        "Die Könige sollten singen.",
    ),
    # Negation.
    (Clause(DOG, SLEEPS, negated=True), "The dog does not sleep.", "Der Hund schläft nicht."),
    (
        Clause(many("dog"), SEE, past=True, negated=True, object_=CAT),
        "The dogs did not see the cat.",
        "Die Hunde haben die Katze nicht gesehen.",
    ),
    (
        Clause(MAN, SEE, negated=True, object_=phrase("dog", A)),
        "The man does not see a dog.",
        "Der Mann sieht keinen Hund.",
    ),
    (
        Clause(MAN, SEE, negated=True, object_=many("cow", A)),
        "The man does not see cows.",
        "Der Mann sieht keine Kühe.",
    ),
    (Clause(HE, SINGS, modal=MODAL["can"], negated=True), "He cannot sing.", "Er kann nicht singen."),
    (
        Clause(HE, SINGS, modal=MODAL["want to"], negated=True),
        "He does not want to sing.",
        "Er will nicht singen.",
    ),
    # To be.
    (Clause(WOMAN, ADJECTIVE["old"]), "The woman is old.", "Die Frau ist alt."),
    (
        Clause(many("apple"), ADJECTIVE["red"], past=True, negated=True),
        "The apples were not red.",
        "Die Äpfel waren nicht rot.",
    ),
    # Adverbials, behind and in front.
    (
        Clause(MAN, SEE, past=True, object_=DOG, time=fw.YESTERDAY),
        "The man saw the dog yesterday.",
        "Der Mann hat gestern den Hund gesehen.",
    ),
    (
        Clause(MAN, SEE, past=True, object_=DOG, front=fw.YESTERDAY),
        "Yesterday the man saw the dog.",
        "Gestern hat der Mann den Hund gesehen.",
    ),
    (
        Clause(MAN, SINGS, modal=fw.WILL, front=fw.TOMORROW),
        "Tomorrow the man will sing.",
        "Morgen wird der Mann singen.",
    ),
    (
        Clause(CHILD, VERB["get up"], time=fw.EVENING),
        "The child gets up in the evening.",
        "Das Kind steht am Abend auf.",
    ),
    (
        Clause(DOG, SEE, frequency=OFTEN, object_=CAT),
        "The dog often sees the cat.",
        "Der Hund sieht die Katze oft.",
    ),
    (
        Clause(DOG, SEE, frequency=OFTEN, object_=phrase("cat", A)),
        "The dog often sees a cat.",
        "Der Hund sieht oft eine Katze.",
    ),
    (
        Clause(DOG, SLEEPS, place=at("in", phrase("garden", adjective="big"))),
        "The dog sleeps in the big garden.",
        "Der Hund schläft im großen Garten.",
    ),
    (
        Clause(DOG, SLEEPS, front=at("in", phrase("kitchen"))),
        "In the kitchen the dog sleeps.",
        "In der Küche schläft der Hund.",
    ),
    (
        Clause(MAN, SINGS, negated=True, place=at("with", many("child", A))),
        "The man does not sing with children.",
        "Der Mann singt nicht mit Kindern.",
    ),
    (
        Clause(CAT, SLEEPS, place=at("in front of", many("house"))),
        "The cat sleeps in front of the houses.",
        "Die Katze schläft vor den Häusern.",
    ),
]


@pytest.mark.parametrize(("clause", "english", "german"), STATEMENTS, ids=[row[1] for row in STATEMENTS])
def test_a_clause_is_said_as_a_person_would(clause: Clause, english: str, german: str) -> None:
    assert say(Sentence(clause)) == (english, german)


def test_a_past_clause_with_a_modal_is_refused() -> None:
    with pytest.raises(ValueError, match="past"):
        Clause(DOG, SLEEPS, past=True, modal=fw.WILL)
