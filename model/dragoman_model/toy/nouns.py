"""Nouns and adjectives of the toy grammar: every irregular form is written down, none is guessed."""

from __future__ import annotations

from dragoman_model.toy.words import ANIMATE, Adjective, Gender, Kind, Noun

__all__ = ["ADJECTIVES", "NOUNS"]

_M, _F, _N = Gender.MASCULINE, Gender.FEMININE, Gender.NEUTER
_PERSON, _ANIMAL, _FOOD, _TEXT, _THING, _PLACE = Kind
_ALL = tuple(Kind)

NOUNS = (
    Noun("man", "men", "Mann", "Männer", "Männern", _M, _PERSON),
    Noun("woman", "women", "Frau", "Frauen", "Frauen", _F, _PERSON),
    Noun("child", "children", "Kind", "Kinder", "Kindern", _N, _PERSON),
    Noun("boy", "boys", "Junge", "Jungen", "Jungen", _M, _PERSON, oblique="Jungen"),
    Noun("girl", "girls", "Mädchen", "Mädchen", "Mädchen", _N, _PERSON),
    Noun("teacher", "teachers", "Lehrer", "Lehrer", "Lehrern", _M, _PERSON),
    Noun("doctor", "doctors", "Arzt", "Ärzte", "Ärzten", _M, _PERSON),
    Noun("neighbour", "neighbours", "Nachbar", "Nachbarn", "Nachbarn", _M, _PERSON, oblique="Nachbarn"),
    Noun("student", "students", "Student", "Studenten", "Studenten", _M, _PERSON, oblique="Studenten"),
    Noun("king", "kings", "König", "Könige", "Königen", _M, _PERSON),
    Noun("farmer", "farmers", "Bauer", "Bauern", "Bauern", _M, _PERSON, oblique="Bauern"),
    Noun("sister", "sisters", "Schwester", "Schwestern", "Schwestern", _F, _PERSON),
    Noun("aunt", "aunts", "Tante", "Tanten", "Tanten", _F, _PERSON),
    Noun("daughter", "daughters", "Tochter", "Töchter", "Töchtern", _F, _PERSON),
    Noun("uncle", "uncles", "Onkel", "Onkel", "Onkeln", _M, _PERSON),
    Noun("guest", "guests", "Gast", "Gäste", "Gästen", _M, _PERSON),
    Noun("dog", "dogs", "Hund", "Hunde", "Hunden", _M, _ANIMAL),
    Noun("cat", "cats", "Katze", "Katzen", "Katzen", _F, _ANIMAL),
    Noun("bird", "birds", "Vogel", "Vögel", "Vögeln", _M, _ANIMAL),
    Noun("horse", "horses", "Pferd", "Pferde", "Pferden", _N, _ANIMAL),
    Noun("cow", "cows", "Kuh", "Kühe", "Kühen", _F, _ANIMAL),
    Noun("mouse", "mice", "Maus", "Mäuse", "Mäusen", _F, _ANIMAL),
    Noun("bear", "bears", "Bär", "Bären", "Bären", _M, _ANIMAL, oblique="Bären"),
    Noun("lion", "lions", "Löwe", "Löwen", "Löwen", _M, _ANIMAL, oblique="Löwen"),
    Noun("duck", "ducks", "Ente", "Enten", "Enten", _F, _ANIMAL),
    Noun("pig", "pigs", "Schwein", "Schweine", "Schweinen", _N, _ANIMAL),
    Noun("frog", "frogs", "Frosch", "Frösche", "Fröschen", _M, _ANIMAL),
    Noun("rabbit", "rabbits", "Kaninchen", "Kaninchen", "Kaninchen", _N, _ANIMAL),
    Noun("apple", "apples", "Apfel", "Äpfel", "Äpfeln", _M, _FOOD),
    Noun("cake", "cakes", "Kuchen", "Kuchen", "Kuchen", _M, _FOOD),
    Noun("egg", "eggs", "Ei", "Eier", "Eiern", _N, _FOOD),
    Noun("carrot", "carrots", "Karotte", "Karotten", "Karotten", _F, _FOOD),
    Noun("nut", "nuts", "Nuss", "Nüsse", "Nüssen", _F, _FOOD),
    Noun("potato", "potatoes", "Kartoffel", "Kartoffeln", "Kartoffeln", _F, _FOOD),
    Noun("book", "books", "Buch", "Bücher", "Büchern", _N, _TEXT),
    Noun("letter", "letters", "Brief", "Briefe", "Briefen", _M, _TEXT),
    Noun("card", "cards", "Karte", "Karten", "Karten", _F, _TEXT),
    Noun("poem", "poems", "Gedicht", "Gedichte", "Gedichten", _N, _TEXT),
    Noun("song", "songs", "Lied", "Lieder", "Liedern", _N, _TEXT),
    Noun("car", "cars", "Auto", "Autos", "Autos", _N, _THING),
    Noun("lamp", "lamps", "Lampe", "Lampen", "Lampen", _F, _THING),
    Noun("clock", "clocks", "Uhr", "Uhren", "Uhren", _F, _THING),
    Noun("key", "keys", "Schlüssel", "Schlüssel", "Schlüsseln", _M, _THING),
    Noun("chair", "chairs", "Stuhl", "Stühle", "Stühlen", _M, _THING),
    Noun("table", "tables", "Tisch", "Tische", "Tischen", _M, _THING),
    Noun("box", "boxes", "Kiste", "Kisten", "Kisten", _F, _THING),
    Noun("bag", "bags", "Tasche", "Taschen", "Taschen", _F, _THING),
    Noun("bicycle", "bicycles", "Fahrrad", "Fahrräder", "Fahrrädern", _N, _THING),
    Noun("boat", "boats", "Boot", "Boote", "Booten", _N, _THING),
    Noun("garden", "gardens", "Garten", "Gärten", "Gärten", _M, _PLACE),
    Noun("house", "houses", "Haus", "Häuser", "Häusern", _N, _PLACE),
    Noun("kitchen", "kitchens", "Küche", "Küchen", "Küchen", _F, _PLACE),
    Noun("school", "schools", "Schule", "Schulen", "Schulen", _F, _PLACE),
    Noun("forest", "forests", "Wald", "Wälder", "Wäldern", _M, _PLACE),
    Noun("city", "cities", "Stadt", "Städte", "Städten", _F, _PLACE),
    Noun("park", "parks", "Park", "Parks", "Parks", _M, _PLACE),
)

ADJECTIVES = (
    Adjective("small", "klein", _ALL),
    Adjective("big", "groß", _ALL),
    Adjective("old", "alt", _ALL),
    Adjective("beautiful", "schön", _ALL),
    Adjective("young", "jung", ANIMATE),
    Adjective("clever", "klug", ANIMATE),
    Adjective("friendly", "freundlich", ANIMATE),
    Adjective("new", "neu", _ALL),
    Adjective("red", "rot", (_ANIMAL, _FOOD, _TEXT, _THING)),
)
