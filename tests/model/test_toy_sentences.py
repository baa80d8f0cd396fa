"""Sentences of several clauses and questions, written by hand, against what the toy grammar says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_model.toy import function_words as fw
from dragoman_model.toy.corpus import say
from dragoman_model.toy.function_words import THE
from dragoman_model.toy.nouns import ADJECTIVES, NOUNS
from dragoman_model.toy.syntax import Clause, NounPhrase, Sentence, relative_pronoun
from dragoman_model.toy.verbs import INTRANSITIVE_VERBS, SAYING_VERBS, TRANSITIVE_VERBS
from dragoman_model.toy.words import Kind, Noun, Number, Pronoun

SINGULAR, PLURAL = Number.SINGULAR, Number.PLURAL
VERB = {verb.english: verb for verb in (*INTRANSITIVE_VERBS, *TRANSITIVE_VERBS, *SAYING_VERBS)}
ADJECTIVE = {adjective.english: adjective for adjective in ADJECTIVES}
NOUN = {noun.english: noun for noun in NOUNS}
MODAL = {modal.english_plural: modal for modal in fw.MODALS}
HE, SHE, WE, THEY = fw.PRONOUNS
ANNA = fw.NAMES[0]
WHERE, WHEN, WHY = fw.QUESTION_WORDS
BECAUSE, ALTHOUGH, WHENEVER, AND, BUT = fw.CONJUNCTIONS


def phrase(noun: str, relative: Clause | None = None, number: Number = SINGULAR) -> NounPhrase:
    return NounPhrase(THE, NOUN[noun], number, relative=relative)


def many(noun: str, relative: Clause | None = None) -> NounPhrase:
    return phrase(noun, relative, PLURAL)


def who(noun: str, number: Number = SINGULAR) -> Pronoun:
    return relative_pronoun(NOUN[noun], number)


SLEEPS, SINGS, SEE, HELP = VERB["sleep"], VERB["sing"], VERB["see"], VERB["help"]
DOG, CAT, CHILD, MAN, WOMAN = (phrase(noun) for noun in ("dog", "cat", "child", "man", "woman"))
DOG_SLEEPS = Clause(DOG, SLEEPS)
DOG_SLEPT = Clause(DOG, SLEEPS, past=True)
MAN_SINGS = Clause(MAN, SINGS)
MAN_SANG = Clause(MAN, SINGS, past=True)
CHILD_THAT_SINGS = phrase("child", Clause(who("child"), SINGS))
DOG_THAT_SEES_CATS = phrase("dog", Clause(who("dog"), SEE, object_=many("cat")))

RELATIVES = [
    # Relative clauses: the pronoun as subject and as object, in every case and gender.
    (
        Clause(DOG_THAT_SEES_CATS, SLEEPS),
        "The dog that sees the cats sleeps.",
        "Der Hund, der die Katzen sieht, schläft.",
    ),
    (
        Clause(many("dog", Clause(CAT, SEE, front=who("dog", PLURAL))), SLEEPS),
        "The dogs that the cat sees sleep.",
        "Die Hunde, die die Katze sieht, schlafen.",
    ),
    (
        Clause(phrase("man", Clause(CHILD, SEE, front=who("man"))), SLEEPS),
        "The man whom the child sees sleeps.",
        "Der Mann, den das Kind sieht, schläft.",
    ),
    (
        Clause(phrase("woman", Clause(HE, HELP, front=who("woman"))), SINGS),
        "The woman whom he helps sings.",
        "Die Frau, der er hilft, singt.",
    ),
    (
        Clause(many("child", Clause(MAN, HELP, past=True, front=who("child", PLURAL))), SINGS),
        "The children whom the man helped sing.",
        "Die Kinder, denen der Mann geholfen hat, singen.",
    ),
    (
        Clause(phrase("girl", Clause(who("girl"), VERB["get up"])), SINGS),
        "The girl who gets up sings.",
        "Das Mädchen, das aufsteht, singt.",
    ),
    (
        Clause(phrase("child", Clause(who("child"), SLEEPS, modal=MODAL["want to"])), SINGS),
        "The child who wants to sleep sings.",
        "Das Kind, das schlafen will, singt.",
    ),
    # An object's relative clause comes after the end of the verb.
    (
        Clause(MAN, SEE, past=True, object_=CHILD_THAT_SINGS),
        "The man saw the child who sings.",
        "Der Mann hat das Kind gesehen, das singt.",
    ),
    (
        Clause(MAN, VERB["look at"], object_=CHILD_THAT_SINGS),
        "The man looks at the child who sings.",
        "Der Mann sieht das Kind an, das singt.",
    ),
    (
        Clause(
            phrase("dog", Clause(who("dog"), SEE, object_=CHILD_THAT_SINGS)),
            SEE,
            past=True,
            object_=phrase("bird"),
            front=fw.YESTERDAY,
        ),
        "Yesterday the dog that sees the child who sings saw the bird.",
        "Gestern hat der Hund, der das Kind sieht, das singt, den Vogel gesehen.",
    ),
    (
        Clause(phrase("dog", Clause(who("dog"), ADJECTIVE["small"], past=True)), SLEEPS),
        "The dog that was small sleeps.",
        "Der Hund, der klein war, schläft.",
    ),
]

OTHERS = [
    # Questions.
    (Sentence(DOG_SLEEPS, question=True), "Does the dog sleep?", "Schläft der Hund?"),
    (Sentence(DOG_SLEPT, question=True), "Did the dog sleep?", "Hat der Hund geschlafen?"),
    (
        Sentence(Clause(many("dog"), SEE, negated=True, object_=CAT), question=True),
        "Do the dogs not see the cat?",
        "Sehen die Hunde die Katze nicht?",
    ),
    (Sentence(Clause(CAT, ADJECTIVE["clever"]), question=True), "Is the cat clever?", "Ist die Katze klug?"),
    (
        Sentence(Clause(HE, SINGS, modal=MODAL["can"], negated=True), question=True),
        "Can he not sing?",
        "Kann er nicht singen?",
    ),
    (
        Sentence(Clause(SHE, SINGS, modal=MODAL["want to"]), question=True),
        "Does she want to sing?",
        "Will sie singen?",
    ),
    (
        Sentence(replace(DOG_SLEEPS, front=WHERE), question=True),
        "Where does the dog sleep?",
        "Wo schläft der Hund?",
    ),
    (
        Sentence(Clause(THEY, VERB["arrive"], past=True, front=WHEN), question=True),
        "When did they arrive?",
        "Wann sind sie angekommen?",
    ),
    (
        Sentence(Clause(DOG_THAT_SEES_CATS, SLEEPS, front=WHY), question=True),
        "Why does the dog that sees the cats sleep?",
        "Warum schläft der Hund, der die Katzen sieht?",
    ),
    # Two clauses.
    (
        Sentence(MAN_SINGS, conjunction=BECAUSE, second=DOG_SLEPT),
        "The man sings because the dog slept.",
        "Der Mann singt, weil der Hund geschlafen hat.",
    ),
    (
        Sentence(
            MAN_SINGS, conjunction=ALTHOUGH, second=Clause(ANNA, VERB["call"], object_=HE), second_first=True
        ),
        "Although Anna calls him, the man sings.",
        "Obwohl Anna ihn anruft, singt der Mann.",
    ),
    (
        Sentence(MAN_SINGS, conjunction=WHENEVER, second=DOG_SLEEPS),
        "The man sings when the dog sleeps.",
        "Der Mann singt, wenn der Hund schläft.",
    ),
    (
        Sentence(MAN_SANG, conjunction=WHENEVER, second=DOG_SLEPT, second_first=True),
        "When the dog slept, the man sang.",
        "Als der Hund geschlafen hat, hat der Mann gesungen.",
    ),
    (
        Sentence(Clause(SHE, VERB["say"]), conjunction=fw.THAT, second=Clause(CHILD, SEE, object_=DOG)),
        "She says that the child sees the dog.",
        "Sie sagt, dass das Kind den Hund sieht.",
    ),
    (
        Sentence(
            Clause(phrase("king", Clause(who("king"), SINGS)), VERB["know"]),
            conjunction=fw.THAT,
            second=Clause(CHILD, SEE, object_=DOG_THAT_SEES_CATS),
        ),
        "The king who sings knows that the child sees the dog that sees the cats.",
        "Der König, der singt, weiß, dass das Kind den Hund sieht, der die Katzen sieht.",
    ),
    (
        Sentence(MAN_SINGS, conjunction=AND, second=DOG_SLEEPS),
        "The man sings and the dog sleeps.",
        "Der Mann singt und der Hund schläft.",
    ),
    (
        Sentence(MAN_SINGS, conjunction=BUT, second=Clause(WOMAN, VERB["get up"])),
        "The man sings, but the woman gets up.",
        "Der Mann singt, aber die Frau steht auf.",
    ),
]


@pytest.mark.parametrize(("clause", "english", "german"), RELATIVES, ids=[row[1] for row in RELATIVES])
def test_relative_clauses_are_said_as_a_person_would(clause: Clause, english: str, german: str) -> None:
    assert say(Sentence(clause)) == (english, german)


@pytest.mark.parametrize(("sentence", "english", "german"), OTHERS, ids=[row[1] for row in OTHERS])
def test_a_sentence_is_said_as_a_person_would(sentence: Sentence, english: str, german: str) -> None:
    assert say(sentence) == (english, german)


ANIMALS = [noun for noun in NOUNS if noun.kind is Kind.ANIMAL]
LINKS = st.tuples(st.sampled_from(ANIMALS), st.sampled_from(Number))


def chained(links: list[tuple[Noun, Number]]) -> NounPhrase:
    """ "the A that sees the B that sees the C" for the links A, B, C."""
    (noun, number), *rest = links
    if not rest:
        return NounPhrase(THE, noun, number)
    clause = Clause(relative_pronoun(noun, number), SEE, object_=chained(rest))
    return NounPhrase(THE, noun, number, relative=clause)


@given(st.lists(LINKS, min_size=2, max_size=11))
def test_verbs_agree_across_chains_of_up_to_ten_relative_clauses(links: list[tuple[Noun, Number]]) -> None:
    english, german = say(Sentence(Clause(chained(links), SLEEPS)))
    numbers = [number for _, number in links]
    assert english.split()[-1] == ("sleeps." if numbers[0] is SINGULAR else "sleep.")
    assert german.split()[-1] == ("schläft." if numbers[0] is SINGULAR else "schlafen.")
    # Every link but the last is the subject of a relative clause, in that order.
    seen = [word for word in english.split() if word in {"see", "sees"}]
    assert seen == ["sees" if number is SINGULAR else "see" for number in numbers[:-1]]
    german_seen = [word for word in german.replace(",", "").split() if word in {"sieht", "sehen"}]
    assert german_seen == ["sieht" if number is SINGULAR else "sehen" for number in numbers[:-1]]


@given(st.lists(LINKS, min_size=2, max_size=11))
def test_german_relative_pronouns_agree_with_their_noun(links: list[tuple[Noun, Number]]) -> None:
    german = say(Sentence(Clause(chained(links), SLEEPS)))[1]
    opening, *clauses = german.split(", ")[:-1]
    articles = [opening.split()[0].lower(), *(clause.split()[0] for clause in clauses)]
    expected = [
        "die" if number is PLURAL else ("der", "die", "das")[noun.gender] for noun, number in links[:-1]
    ]
    assert articles == [expected[0], *expected]
