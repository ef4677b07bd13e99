"""Write the text for tiny-lm: `data/train.txt` to learn from and `heldout/text.txt` to be judged on.

Both come from the small English-like grammar in this file.  ARSANDBOX_SEED (an integer; fresh entropy from
the operating system when absent) draws a world (who has which trade, lives where, and with whom) and two
independent streams of paragraphs about it, one for each file.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from random import Random

TRAIN_BYTES = 1_500_000
HELDOUT_BYTES = 200_000
TRAIN_PATH = Path("data/train.txt")
HELDOUT_PATH = Path("heldout/text.txt")


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


WOMEN = words("Ada Bela Clara Dora Edith Flora Greta Hilda Irene Judith Mara Nora")
MEN = words("Anton Boris Conrad Dennis Edgar Felix Gustav Hugo Ivan Jasper Karl Oscar")
TOWNS = (
    "Alder Brook",
    "Castleford",
    "Dunmore",
    "Eastwick",
    "Fenton",
    "Greyhaven",
    "Hollow Bridge",
    "Kingsport",
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday")
TRADES = {  # trade: (one piece, several pieces, made, tool)
    "baker": ("loaf", "loaves", "baked", "oven"),
    "cobbler": ("boot", "boots", "mended", "awl"),
    "farmer": ("turnip", "turnips", "pulled", "plough"),
    "fisher": ("trout", "trout", "caught", "net"),
    "joiner": ("chair", "chairs", "built", "saw"),
    "painter": ("picture", "pictures", "painted", "brush"),
    "potter": ("bowl", "bowls", "shaped", "wheel"),
    "smith": ("nail", "nails", "forged", "hammer"),
    "tailor": ("jacket", "jackets", "sewed", "needle"),
    "weaver": ("rug", "rugs", "wove", "loom"),
}
MOODS = words("happy tired proud angry hungry lonely quiet sorry")
ANIMALS = (("dog", "dogs"), ("cat", "cats"), ("horse", "horses"), ("goat", "goats"), ("goose", "geese"))
ACTIONS = (("sleeps", "sleep"), ("waits", "wait"), ("drinks", "drink"), ("runs", "run"), ("is", "are"))
ADJECTIVES = words(
    "red blue green white black grey dark old new big small long short thin thick warm cold wet dry soft "
    "hard heavy clean dusty cheap fine odd plain round sharp"
)
THINGS = words(  # all with a regular plural
    "apple bag ball basket bed bell belt book bottle bucket button candle cap cart clock coat cup door drum "
    "egg flag fork gate glove hat jar key ladder lamp map mirror mug pan pipe plate pot ring rope shirt "
    "spoon stone stove table tray wall"
)
DETERMINERS = ("the", "the", "this", "that", "each", "no", "some", "every", "her", "his")
VERBS = words(
    "bought broke burned carried cleaned counted dropped fixed found hid kept left lent lost moved opened "
    "packed sold stole took touched turned wanted washed"
)
RELATIONS = words("in on by under behind near with without")
ADVERBS = words("again alone early gladly late often quickly slowly today twice")


class World:
    """The facts that hold in both files: a trade, a home town and a close friend for every person."""

    def __init__(self, random: Random) -> None:
        self.people = WOMEN + MEN
        trades = random.sample(list(TRADES) * 3, len(self.people))
        friends = random.sample(self.people, len(self.people))
        self.trade = dict(zip(self.people, trades, strict=True))
        self.town = {person: random.choice(TOWNS) for person in self.people}
        # friends form one circle, so nobody is their own friend
        self.friend = {person: friends[index - 1] for index, person in enumerate(friends)}


def thing(random: Random) -> str:
    """A noun phrase such as `the old lamp` or `17 lamps`."""
    adjective = random.choice(ADJECTIVES) + " " if random.random() < 0.6 else ""
    noun = random.choice(THINGS)
    if random.random() < 0.25:
        return f"{random.randint(2, 99)} {adjective}{noun}s"
    return f"{random.choice(DETERMINERS)} {adjective}{noun}"


def animals(random: Random) -> str:
    """A sentence whose verb agrees with its subject and not with the noun next to it."""
    number = random.randrange(2)
    noun, other = random.choice(ANIMALS)[number], random.choice(ANIMALS)[random.randrange(2)]
    verb = random.choice(ACTIONS)[number]
    if verb in ("is", "are"):
        verb = f"{verb} {random.choice(MOODS)}"
    return f"The {random.choice(ADJECTIVES)} {noun} {random.choice(RELATIONS)} the {other} {verb}."


def sentence(random: Random, world: World, name: str, day: str) -> str:
    """Something that happened to a person that day."""
    she, her = ("she", "her") if name in WOMEN else ("he", "his")
    who = random.choice((she.capitalize(), name))
    one, many, made, tool = TRADES[world.trade[name]]
    friend = world.friend[name]
    kind = random.randrange(10)
    if kind == 0:
        count, price = random.randint(2, 99), random.randint(100, 999)
        return f"{who} {made} {count} {many} on {day} and sold each {one} for {price} coins."
    if kind == 1:
        return f"{who} gave {friend} a {one} for {thing(random)} and {thing(random)}."
    if kind == 2:
        return f'"The {tool} is {random.choice(ADJECTIVES)}," said {name} to {her} friend {friend}.'
    if kind == 3:
        hour, minute = random.randint(1, 12), random.randint(0, 59)
        return f"At {hour}:{minute:02} {she} {random.choice(VERBS)} {thing(random)}."
    if kind == 4:
        return f"{who} was {random.choice(MOODS)}: {her} {tool} broke {thing(random)}."
    if kind == 5:
        return animals(random)
    verb, relation = random.choice(VERBS), random.choice(RELATIONS)
    place = f" {relation} {thing(random)}" if random.random() < 0.6 else ""
    adverb = " " + random.choice(ADVERBS) if random.random() < 0.5 else ""
    return f"{who} {verb} {thing(random)}{place}{adverb}."


def paragraph(random: Random, world: World) -> str:
    """Four to nine sentences about one person, the first an introduction and the last a farewell."""
    name, day = random.choice(world.people), random.choice(DAYS)
    trade, town = world.trade[name], world.town[name]
    sentences = [f"{name} is a {trade} in {town}."]
    sentences += [sentence(random, world, name, day) for _ in range(random.randint(2, 7))]
    sentences.append(f"On {day} {name} went home to {town}.")
    return " ".join(sentences)


def write_paragraphs(random: Random, world: World, size: int, taken: set[str]) -> str:
    """About `size` bytes of paragraphs, none of them in `taken` and no two alike; adds them to `taken`."""
    paragraphs, length = [], 0
    while length < size:
        text = paragraph(random, world)
        if text not in taken:
            taken.add(text)
            paragraphs.append(text)
            length += len(text) + 1
    return "\n".join(paragraphs) + "\n"


def seed_from_environment() -> int:
    """ARSANDBOX_SEED as an integer, or fresh entropy when the variable is absent."""
    text = os.environ.get("ARSANDBOX_SEED")
    if text is None:
        return secrets.randbits(64)
    try:
        return int(text)
    except ValueError:
        sys.exit(f"prepare: ARSANDBOX_SEED must be an integer, not {text!r}")


def main() -> None:
    """Write both files."""
    seed = seed_from_environment()
    world = World(Random(f"tiny-lm world {seed}"))
    taken: set[str] = set()
    heldout = write_paragraphs(Random(f"tiny-lm heldout {seed}"), world, HELDOUT_BYTES, taken)
    train = write_paragraphs(Random(f"tiny-lm train {seed}"), world, TRAIN_BYTES, taken)
    if not set(heldout.splitlines()).isdisjoint(train.splitlines()):
        sys.exit("prepare: a held-out paragraph is in the training text")
    for path, text in ((TRAIN_PATH, train), (HELDOUT_PATH, heldout)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii", newline="\n")
        print(f"{path}: {len(text)} bytes, {text.count(chr(10))} paragraphs")


if __name__ == "__main__":
    main()
