"""Parses captions and questions from their text and checks them against a scene. Independent of the code that
writes them: it uses only words, boxes and attributes.
"""

import re

COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black"]
MATERIALS = ["plain", "shiny", "striped", "spotted"]
SIZES = ["small", "medium", "large"]
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
SINGULAR = {"crosses": "cross", "cross": "cross", "fish": "fish"}
RELATION = r"(?:to the )?(left|right) of|(above|below|higher|lower)(?: than)?"


def matching(words: str, objects) -> list:
    """The objects that match a noun phrase."""
    *adjectives, noun = re.sub(r"^(a|an|the) ", "", words.strip()).split()
    noun = SINGULAR.get(noun, noun.removesuffix("s"))
    for word in adjectives:
        assert word in COLORS + MATERIALS + SIZES, f"unknown word {word!r} in {words!r}"
    return [
        t
        for t in objects
        if noun in ("thing", t.kind) and all(word in (t.color, t.material, t.size) for word in adjectives)
    ]


def stands(a, relation: str, b) -> bool:
    across = (a.box[0] + a.box[2]) - (b.box[0] + b.box[2])
    down = (a.box[1] + a.box[3]) - (b.box[1] + b.box[3])
    amount = {"left": -across, "right": across, "above": -down, "higher": -down, "below": down, "lower": down}
    return amount[relation] > 10  # twice the distance of the centers, in pixels


def related(text: str):
    """(noun phrase, relation, noun phrase) if the text states a relation."""
    match = re.fullmatch(rf"(?:there is )?(.+?) (?:is )?(?:{RELATION}) (.+)", text)
    return (match[1], match[2] or match[3], match[4]) if match else None


def caption_is_true(text: str, scene) -> bool:
    objects = scene.things
    if fact := related(text):
        return any(
            stands(a, fact[1], b) for a in matching(fact[0], objects) for b in matching(fact[2], objects) if a is not b
        )
    if ground := re.search(r" (?:on|in the) (grass|sand|stone|wood|sky)\b", text):
        if ground[1] != scene.ground:
            return False
        text = text.replace(ground[0], "")
    text = re.sub(r"^(a picture (of|with)|a photo with|we can see|here we see|we see|there (is|are)) ", "", text)
    text = re.sub(r" (in the picture|here)$", "", text)
    if text.split()[0] in NUMBERS:
        number, words = text.split(" ", 1)
        words, *extra = words.split(" and ")
        count = len(matching(words, objects))
        rest = NUMBERS[extra[0].split()[0]] if extra else len(objects) - count
        return count == NUMBERS[number] and count + rest == len(objects)
    parts = re.split(r",? and |, | with ", text)
    more = next((part for part in parts if " more thing" in part), None)
    named = [part for part in parts if part != more]
    if more and len(named) + NUMBERS[more.split()[0]] != len(objects):
        return False
    return all(matching(part, objects) for part in named)


def answer(text: str, scene) -> str:
    """The only possible answer; fails if the question does not have exactly one."""
    objects, text = scene.things, text.removesuffix(" ?")
    if match := re.fullmatch(r"(?:is there|do you see|does the picture show) (.+)", text):
        return "yes" if matching(match[1], objects) else "no"
    if match := re.fullmatch(r"(?:how many|what number of) (.+?) (?:are there|do you see|is in the picture)", text):
        return str(len(matching(match[1], objects)))
    if match := re.fullmatch(r"are there more , fewer or the same number of (.+) as (.+)", text):
        a, b = (len(matching(words, objects)) for words in match.groups())
        return "more" if a > b else "fewer" if a < b else "same"
    if text.startswith("is the ") and (fact := related(text.removeprefix("is "))):
        (a,), (b,) = matching(fact[0], objects), matching(fact[2], objects)
        assert stands(a, fact[1], b) or stands(b, fact[1], a), "neither clearly one side nor the other"
        return "yes" if stands(a, fact[1], b) else "no"
    attributes = {
        r"what color is (.+)|what is the color of (.+)": "color",
        r"how is (.+) painted|what does the surface of (.+) look like": "material",
        r"what size is (.+)|how big is (.+)": "size",
        r"what is (.+)|what kind of thing is (.+)": "kind",
    }
    for pattern, attribute in attributes.items():
        if match := re.fullmatch(pattern, text):
            (thing,) = matching(match[1] or match[2], objects)
            return getattr(thing, attribute)
    raise AssertionError(f"cannot read {text!r}")
