"""Verbs of the toy grammar, by what they take; every principal part is written down, none is guessed."""

from __future__ import annotations

from dragoman_model.toy.words import ANIMATE, Case, Kind, Verb

__all__ = ["GIVING_VERBS", "INTRANSITIVE_VERBS", "SAYING_VERBS", "TRANSITIVE_VERBS"]

_PERSON, _ANIMAL, _FOOD, _TEXT, _THING, _PLACE = Kind
_PEOPLE = (_PERSON,)
_GOODS = (_FOOD, _TEXT, _THING)
_ALL = tuple(Kind)

INTRANSITIVE_VERBS = (
    Verb("sleep", "sleeps", "slept", "schläft", "schlafen", "geschlafen", ANIMATE),
    Verb("sing", "sings", "sang", "singt", "singen", "gesungen", _PEOPLE),
    Verb("laugh", "laughs", "laughed", "lacht", "lachen", "gelacht", _PEOPLE),
    Verb("dance", "dances", "danced", "tanzt", "tanzen", "getanzt", ANIMATE),
    Verb("work", "works", "worked", "arbeitet", "arbeiten", "gearbeitet", _PEOPLE),
    Verb("wait", "waits", "waited", "wartet", "warten", "gewartet", ANIMATE),
    Verb("run", "runs", "ran", "rennt", "rennen", "gerannt", ANIMATE, sein=True),
    Verb("swim", "swims", "swam", "schwimmt", "schwimmen", "geschwommen", ANIMATE, sein=True),
    Verb(
        "get up", "gets up", "got up", "steht", "stehen", "aufgestanden", ANIMATE, particle="auf", sein=True
    ),
    Verb("arrive", "arrives", "arrived", "kommt", "kommen", "angekommen", ANIMATE, particle="an", sein=True),
)

TRANSITIVE_VERBS = (
    Verb("see", "sees", "saw", "sieht", "sehen", "gesehen", ANIMATE, _ALL),
    Verb("hear", "hears", "heard", "hört", "hören", "gehört", ANIMATE, ANIMATE),
    Verb("love", "loves", "loved", "liebt", "lieben", "geliebt", ANIMATE, (*ANIMATE, _FOOD)),
    Verb("find", "finds", "found", "findet", "finden", "gefunden", ANIMATE, (*ANIMATE, *_GOODS)),
    Verb("look for", "looks for", "looked for", "sucht", "suchen", "gesucht", ANIMATE, (*ANIMATE, *_GOODS)),
    Verb("buy", "buys", "bought", "kauft", "kaufen", "gekauft", _PEOPLE, _GOODS),
    Verb("eat", "eats", "ate", "isst", "essen", "gegessen", ANIMATE, (_FOOD,)),
    Verb("carry", "carries", "carried", "trägt", "tragen", "getragen", ANIMATE, _GOODS),
    Verb("write", "writes", "wrote", "schreibt", "schreiben", "geschrieben", _PEOPLE, (_TEXT,)),
    Verb("need", "needs", "needed", "braucht", "brauchen", "gebraucht", _PEOPLE, (_PERSON, *_GOODS)),
    Verb("visit", "visits", "visited", "besucht", "besuchen", "besucht", _PEOPLE, (_PERSON, _PLACE)),
    Verb("repair", "repairs", "repaired", "repariert", "reparieren", "repariert", _PEOPLE, (_THING,)),
    Verb("forget", "forgets", "forgot", "vergisst", "vergessen", "vergessen", _PEOPLE, _ALL),
    Verb("call", "calls", "called", "ruft", "rufen", "angerufen", _PEOPLE, _PEOPLE, particle="an"),
    Verb(
        "pick up",
        "picks up",
        "picked up",
        "holt",
        "holen",
        "abgeholt",
        _PEOPLE,
        (_PERSON, *_GOODS),
        particle="ab",
    ),
    Verb("invite", "invites", "invited", "lädt", "laden", "eingeladen", _PEOPLE, _PEOPLE, particle="ein"),
    Verb("look at", "looks at", "looked at", "sieht", "sehen", "angesehen", ANIMATE, _ALL, particle="an"),
    Verb("help", "helps", "helped", "hilft", "helfen", "geholfen", ANIMATE, ANIMATE, case=Case.DATIVE),
    Verb("thank", "thanks", "thanked", "dankt", "danken", "gedankt", _PEOPLE, _PEOPLE, case=Case.DATIVE),
    Verb(
        "follow",
        "follows",
        "followed",
        "folgt",
        "folgen",
        "gefolgt",
        ANIMATE,
        ANIMATE,
        sein=True,
        case=Case.DATIVE,
    ),
    Verb(
        "answer",
        "answers",
        "answered",
        "antwortet",
        "antworten",
        "geantwortet",
        _PEOPLE,
        _PEOPLE,
        case=Case.DATIVE,
    ),
    Verb(
        "listen to",
        "listens to",
        "listened to",
        "hört",
        "hören",
        "zugehört",
        ANIMATE,
        ANIMATE,
        particle="zu",
        case=Case.DATIVE,
    ),
)

# These also take a recipient: "gives the book to the child".
GIVING_VERBS = (
    Verb("give", "gives", "gave", "gibt", "geben", "gegeben", _PEOPLE, _GOODS),
    Verb("show", "shows", "showed", "zeigt", "zeigen", "gezeigt", _PEOPLE, _GOODS),
    Verb("send", "sends", "sent", "schickt", "schicken", "geschickt", _PEOPLE, _GOODS),
    Verb("bring", "brings", "brought", "bringt", "bringen", "gebracht", ANIMATE, _GOODS),
)

# These take a whole clause: "says that the dog sleeps".
SAYING_VERBS = (
    Verb("say", "says", "said", "sagt", "sagen", "gesagt", _PEOPLE),
    Verb("know", "knows", "knew", "weiß", "wissen", "gewusst", _PEOPLE),
    Verb("believe", "believes", "believed", "glaubt", "glauben", "geglaubt", _PEOPLE),
    Verb("hope", "hopes", "hoped", "hofft", "hoffen", "gehofft", _PEOPLE),
)
