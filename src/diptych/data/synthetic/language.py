"""Captions and questions generated from a scene graph: true captions, and questions with exactly one answer.

Each sentence has its logical `form`, a claim or query about the graph:
``("count", phrase, n)``, ``("relation", phrase, relation, phrase)``, ``("ground", name)``, ``("together", phrase,
...)`` in captions; ``("exist", phrase)``, ``("count", phrase)``, ``("relation", phrase, relation, phrase)``,
``("compare", phrase, phrase)`` and ``(attribute, phrase)`` in questions; ``(phrase)`` or ``(phrase, relation, phrase)`` in referring expressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.data.synthetic.shapes import KINDS
from diptych.data.synthetic.world import COLORS, HELD_OUT, MATERIALS, OPPOSITE, SIZES, Phrase, Scene, Thing, pick

QUESTIONS = 5  # per scene
EXPRESSIONS = 4  # referring expressions per scene
NUMBERS = ("no", "one", "two", "three", "four", "five")
_RELATED = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}
_PLURAL = {"cross": "crosses", "fish": "fish"}
_ATTRIBUTES = ("color", "material", "size", "kind")


@dataclass(frozen=True)
class Sentence:
    """A caption (`kind` and `answer` empty) or a question, with its meaning."""

    text: str
    form: tuple
    kind: str = ""
    answer: str = ""


def name(phrase: Phrase, plural: bool = False) -> str:
    """The noun phrase: size, material, color, kind; "thing" if the kind is open."""
    noun = phrase.kind or "thing"
    noun = _PLURAL.get(noun, noun + "s") if plural else noun
    return " ".join([word for word in (phrase.size, phrase.material, phrase.color) if word] + [noun])


def _a(phrase: Phrase) -> str:
    words = name(phrase)
    return ("an " if words[0] in "aeiou" else "a ") + words


def captions(scene: Scene) -> tuple[Sentence, ...]:
    """Five captions: of one object, two objects, a relation, a count and the whole scene."""
    rng = scene.generator("captions")
    order = rng.permutation(len(scene.things)).tolist()
    return (
        _single(scene, rng, order[0]),
        _together(rng, [scene.things[i] for i in order[-2:]], 0.25),
        _related(scene, rng),
        _counted(scene, rng),
        _whole(scene, rng, order),
    )


def _about(thing: Thing, rng: np.random.Generator, detail: float) -> Phrase:
    """Phrase with color and kind, which identify an object, and with size and material each at random."""
    material = thing.material if rng.random() < detail else None
    return Phrase(thing.kind, thing.color, material, thing.size if rng.random() < detail else None)


def _single(scene: Scene, rng: np.random.Generator, i: int) -> Sentence:
    phrase = _about(scene.things[i], rng, 0.6)
    text = pick(rng, ("a picture of {}", "there is {} in the picture", "a photo with {}", "here we see {}"))
    return Sentence(text.format(_a(phrase)), ("together", phrase))


def _together(rng: np.random.Generator, things: list[Thing], detail: float) -> Sentence:
    phrases = [_about(thing, rng, detail) for thing in things]
    text = pick(rng, ("{}", "a picture of {}", "there is {}", "we can see {}"))
    return Sentence(text.format(_list(phrases, pick(rng, ("and", "with")))), ("together", *phrases))


def _list(phrases: list[Phrase], last: str = "and") -> str:
    words = [_a(phrase) for phrase in phrases]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _related(scene: Scene, rng: np.random.Generator) -> Sentence:
    facts = scene.relations()
    if not facts:
        return _single(scene, rng, int(rng.integers(len(scene.things))))
    a, relation, b = pick(rng, facts)
    one, other = _about(scene.things[a], rng, 0.15), _about(scene.things[b], rng, 0.15)
    text = pick(rng, ("{} {} {}", "{} is {} {}", "there is {} {} {}"))
    words = text.format(_a(one), pick(rng, _RELATED[relation]), _a(other))
    return Sentence(words, ("relation", one, relation, other))


def _counted(scene: Scene, rng: np.random.Generator) -> Sentence:
    thing = pick(rng, scene.things)
    phrase = scene.topic
    if scene.count(phrase) == 0:
        phrase = Phrase(kind=thing.kind) if rng.random() < 0.5 else Phrase(color=thing.color)
    n = scene.count(phrase)
    number = f"{NUMBERS[n]} {name(phrase, plural=n > 1)}"
    if (extra := len(scene.things) - n) and rng.random() < 0.5:
        number += f" and {NUMBERS[extra]} other thing{'s' if extra > 1 else ''}"
    text = pick(rng, ("{}", "a picture with {}", "we see {} here", "there {} {}"))
    text = text.format("is" if n == 1 else "are", number) if text.startswith("there") else text.format(number)
    return Sentence(text, ("count", phrase, n))


def _whole(scene: Scene, rng: np.random.Generator, order: list[int]) -> Sentence:
    phrases = [_about(scene.things[i], rng, 0.1) for i in order[:3]]
    rest = len(scene.things) - len(phrases)
    more = f", and {NUMBERS[rest]} more thing{'s' if rest > 1 else ''}" if rest else ""
    where = "in the sky" if scene.ground == "sky" else f"on {scene.ground}"
    return Sentence(f"{_list(phrases)} {where}{more}", ("together", *phrases, ("ground", scene.ground)))


def questions(scene: Scene) -> tuple[Sentence, ...]:
    """Five questions. Yes/no questions come in pairs with opposite answers, so that neither is the better guess."""
    rng = scene.generator("questions")
    turn = scene.key[2]
    count = _count(scene, rng)
    if turn % 2 == 0:
        return (*_exist(scene, rng), count, *_attributes(scene, rng, 2))
    return (*_relation(scene, rng), count, *_attributes(scene, rng, 1), _compare(scene, rng, turn // 2 % 3))


def _count(scene: Scene, rng: np.random.Generator) -> Sentence:
    text = pick(rng, ("how many {} are there ?", "how many {} do you see ?", "what number of {} is in the picture ?"))
    text = text.format(name(scene.topic, plural=True))
    return Sentence(text, ("count", scene.topic), "count", str(scene.count(scene.topic)))


def _exist(scene: Scene, rng: np.random.Generator) -> tuple[Sentence, Sentence]:
    """A question about an object in the scene, and one with an attribute changed so that no object matches."""
    thing = pick(rng, scene.things)
    if rng.random() < 0.7:
        near = [Phrase(k, thing.color) for k in KINDS] + [Phrase(thing.kind, c) for c in COLORS]
        if scene.key[1] != "novel":  # combinations absent from training must not be learned as "no"
            near = [p for p in near if (p.color, p.kind) not in HELD_OUT]
        there = Phrase(thing.kind, thing.color)
    else:
        near = [Phrase(thing.kind, material=m) for m in MATERIALS] + [Phrase(k, material=thing.material) for k in KINDS]
        there = Phrase(thing.kind, material=thing.material)
    absent = pick(rng, [phrase for phrase in near if not scene.count(phrase)])
    text = pick(rng, ("is there {} ?", "do you see {} ?", "does the picture show {} ?"))
    return (
        Sentence(text.format(_a(there)), ("exist", there), "exist", "yes"),
        Sentence(text.format(_a(absent)), ("exist", absent), "exist", "no"),
    )


def _relation(scene: Scene, rng: np.random.Generator) -> tuple[Sentence, Sentence]:
    facts = scene.relations()
    if not facts:
        return _exist(scene, rng)
    a, relation, b = pick(rng, facts)
    one, other = (Phrase(t.kind, t.color) for t in (scene.things[a], scene.things[b]))
    wording = int(rng.integers(2))

    def ask(relation: str, answer: str) -> Sentence:
        text = f"is the {name(one)} {_RELATED[relation][wording]} the {name(other)} ?"
        return Sentence(text, ("relation", one, relation, other), "relation", answer)

    return ask(relation, "yes"), ask(OPPOSITE[relation], "no")


def _attributes(scene: Scene, rng: np.random.Generator, n: int) -> list[Sentence]:
    """`n` questions about different attributes, each of an object that its phrase identifies."""
    sentences: list[Sentence] = []
    for attribute in (_ATTRIBUTES[i] for i in rng.permutation(len(_ATTRIBUTES))):
        wanted = SIZES[int(rng.integers(3))] if attribute == "size" else None  # small things are more common
        fitting = [
            (thing, phrase)
            for thing in scene.things
            for phrase in _ways(thing, attribute)
            if scene.count(phrase) == 1 and wanted in (None, thing.size)
        ]
        if fitting and len(sentences) < n:
            thing, phrase = pick(rng, fitting)
            sentences.append(_ask(attribute, thing, phrase, rng))
    while len(sentences) < n:  # color and kind identify every object, so its material can always be asked for
        thing = pick(rng, scene.things)
        sentences.append(_ask("material", thing, Phrase(thing.kind, thing.color), rng))
    return sentences


def _ways(thing: Thing, attribute: str) -> list[Phrase]:
    """Descriptions of an object that do not reveal the attribute."""
    if attribute == "color":
        return [Phrase(thing.kind), Phrase(thing.kind, material=thing.material)]
    if attribute == "kind":
        return [Phrase(color=thing.color), Phrase(color=thing.color, material=thing.material)]
    return [Phrase(thing.kind), Phrase(thing.kind, thing.color)]


def _ask(attribute: str, thing: Thing, phrase: Phrase, rng: np.random.Generator) -> Sentence:
    wordings = {
        "color": ("what color is the {} ?", "what is the color of the {} ?"),
        "material": ("how is the {} painted ?", "what does the surface of the {} look like ?"),
        "size": ("what size is the {} ?", "how big is the {} ?"),
        "kind": ("what is the {} ?", "what kind of thing is the {} ?"),
    }
    text = pick(rng, wordings[attribute]).format(name(phrase))
    return Sentence(text, (attribute, phrase), attribute, getattr(thing, attribute))


def _compare(scene: Scene, rng: np.random.Generator, wanted: int) -> Sentence:
    """Compares the counts of two kinds or two colors; `wanted` is the answer: 0 more, 1 fewer, 2 the same."""
    names = [Phrase(kind=k) for k in KINDS] if rng.random() < 0.5 else [Phrase(color=c) for c in COLORS]
    ranked = [names[i] for i in rng.permutation(len(names))]
    ranked.sort(key=scene.count)
    counts = [scene.count(phrase) for phrase in ranked]
    if wanted == 2:  # two present ones with equal counts if there are, else two absent ones
        equal = [i for i in range(len(ranked) - 1) if counts[i] == counts[i + 1]]
        a, b = ranked[equal[-1]], ranked[equal[-1] + 1]
    else:
        fewer = [phrase for phrase, n in zip(ranked, counts, strict=True) if n < counts[-1]]
        a, b = (ranked[-1], fewer[-1]) if wanted == 0 else (fewer[-1], ranked[-1])
    text = f"are there more , fewer or the same number of {name(a, plural=True)} as {name(b, plural=True)} ?"
    return Sentence(text, ("compare", a, b), "compare", ("more", "fewer", "same")[wanted])


@dataclass(frozen=True)
class Reference:
    """A referring expression: its words, the index of the object that it identifies, and "attributes" or "relation"."""

    text: str
    thing: int
    kind: str


def expressions(scene: Scene) -> tuple[Reference, ...]:
    """Referring expressions, each of which fits exactly one object: by its attributes, or by a relation to another.

    Half of them have a relation, if one identifies an object: "the red thing left of the blue square".
    """
    rng = scene.generator("expressions")
    related = _references_by_relation(scene)
    references: list[Reference] = []
    for turn in range(EXPRESSIONS):
        if turn % 2 and related:
            phrase, relation, a, b = pick(rng, related)
            other = scene.things[b]
            words = f"the {name(phrase)} {pick(rng, _RELATED[relation])} the {name(Phrase(other.kind, other.color))}"
            references.append(Reference(words, a, "relation"))
        else:
            thing = int(rng.integers(len(scene.things)))
            phrase = pick(rng, [phrase for phrase in _descriptions(scene.things[thing]) if scene.count(phrase) == 1])
            references.append(Reference(f"the {name(phrase)}", thing, "attributes"))
    return tuple(references)


def _descriptions(thing: Thing) -> list[Phrase]:
    """Phrases of one to three attributes of an object; color and kind together identify it in any scene."""
    kind, color, material, size = thing.kind, thing.color, thing.material, thing.size
    return [
        Phrase(kind),
        Phrase(color=color),
        Phrase(kind, color),
        Phrase(kind, size=size),
        Phrase(kind, material=material),
        Phrase(color=color, size=size),
        Phrase(kind, color, material),
        Phrase(kind, color, size=size),
    ]


def _references_by_relation(scene: Scene) -> list[tuple[Phrase, str, int, int]]:
    """(phrase, relation, object, other object) of all phrases that fit several objects, one of them in this relation.

    All others that fit clearly have the opposite relation, or are the other object itself.
    """
    found: list[tuple[Phrase, str, int, int]] = []
    for a, relation, b in scene.relations():
        for phrase in (Phrase(scene.things[a].kind), Phrase(color=scene.things[a].color), Phrase()):
            fitting = [i for i, thing in enumerate(scene.things) if phrase.fits(thing) and i not in (a, b)]
            if (fitting or phrase.fits(scene.things[b])) and all(
                scene.holds(i, OPPOSITE[relation], b) for i in fitting
            ):
                found.append((phrase, relation, a, b))
    return found
