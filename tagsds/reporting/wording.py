"""Counts and plurals of class names, and a sentence about the boxes of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
    "knife": "knives", "wife": "wives", "leaf": "leaves", "shelf": "shelves", "loaf": "loaves", "wolf": "wolves", "calf": "calves",
    "half": "halves", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes", "person": "persons",
}  # fmt: skip
UNCHANGED = frozenset({"sheep", "deer", "fish", "aircraft", "broccoli", "people", "furniture", "luggage", "grass", "water", "food"})
MASS = frozenset({"broccoli", "people", "furniture", "luggage", "grass", "water", "food"})  # no article before them
PAIRS = frozenset({"scissors", "skis", "pants", "jeans", "shorts", "trousers", "glasses", "sunglasses", "goggles", "pliers"})
A_NOT_AN = ("uni", "use", "eu", "one", "ufo", "ute")  # begin with a vowel letter and are spoken with a consonant
AN_NOT_A = ("hour", "honest", "heir")


def plural(name: str) -> str:
    """English plural of a class name: of its last word ("wine glass" -> "wine glasses"), of pairs "pairs of scissors"."""
    head, space, last = name.rpartition(" ")
    lower = last.lower()
    if lower in PAIRS:
        return f"pairs of {name}"
    if lower in UNCHANGED:
        return name
    if lower in IRREGULAR:
        return head + space + last[0] + IRREGULAR[lower][1:]
    for one in ("woman", "man", "child"):  # snowman, grandchild; not human
        if lower.endswith(one) and lower not in ("human", "german", "roman"):
            return head + space + last[: -len(one)] + IRREGULAR[one]
    if lower.endswith("y") and lower[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    return f"{name}s"


def counted(count: int, name: str) -> str:
    """ "a dog", "an apple", "two dogs", "12 dogs": words up to ten, figures above."""
    if count != 1:
        return f"{NUMBERS[count] if count <= 10 else count} {plural(name)}"
    last = name.rpartition(" ")[2].lower()
    if last in PAIRS:
        return f"a pair of {name}"
    if last in MASS:
        return name
    first = name.lower()
    vowel = first.startswith(AN_NOT_A) or (first.startswith(tuple("aeiou")) and not first.startswith(A_NOT_AN))
    return f"{'an' if vowel else 'a'} {name}"


def sentence_of(names: Sequence[str]) -> str:
    """What boxes of these classes show, in a sentence for who cannot see them: "Boxes of two persons, a dog and a frisbee."

    The classes stand in the order in which they first occur; "" is a region whose class has no name.
    """
    counts = Counter(name for name in names if name)
    parts = [counted(count, name) for name, count in counts.items()]
    if unnamed := len(names) - sum(counts.values()):
        parts.append(
            counted(unnamed, "region") if not parts else "another region" if unnamed == 1 else counted(unnamed, "other region")
        )
    if not parts:
        return "Nothing detected."
    listed = " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
    return f"{'Box' if len(names) == 1 else 'Boxes'} of {listed}."
