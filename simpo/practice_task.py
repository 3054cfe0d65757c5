"""The practice task: short instructions whose right answer follows from the text alone. Standard library only.

Seven kinds of instruction, such as "Upper: tiger" or "Larger: 31 57". The chosen answer is the bare right one.
The rejected answer is wrong, rambles around the right one, repeats it, or is cut short. Every instruction belongs to
one split for good, by a hash of its text, so that nothing seen in training is ever asked in an evaluation.
"""

import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simpo.errors import ConfigError

Split = Literal["train", "validation", "eval"]
SPLITS: Mapping[Split, float] = {"train": 0.7, "validation": 0.08, "eval": 0.22}
"""Share of all instructions that belong to each split."""

KINDS: Mapping[str, Callable[[str], str]] = {
    "Upper": str.upper,
    "First": lambda word: word[0],
    "Last": lambda word: word[-1],
    "Twice": lambda word: f"{word} {word}",
    "Spell": "-".join,
    "Larger": lambda pair: str(max(map(int, pair.split()))),
    "Next": lambda number: str(int(number) + 1),
}
"""What stands before the colon, and the right answer as a function of what stands after it."""

RAMBLES = (
    "The answer is {}.",
    "Sure! It is {}.",
    "I think it is {}.",
    "Well, that is {}.",
    "Hmm, {} it is then.",
)
"""Right, but wrapped in words that nobody asked for."""

_WORD_TEXT = """
acorn actor agent album alley amber angel ankle apple april apron arena arrow atlas attic aunt award bacon badge bagel
baker ball band bank barn basil beach beam bean bear beard bed bell belt bench berry bike bird blade block board boat
body bone book boot bow bowl box brain bread brick broom brush bud bulb bull bunny bus cabin cable cake camel camp
canal candy canoe cape car card cargo cart cat cave cello chain chair chalk chest chick chin city clam cliff clock
cloud coach coast coat cobra coin comb comet coral corn couch cow crab crane creek crow crown cube cup cycle daisy
dance dawn deer delta desk diary dog doll door dove dream dress drum duck dune dust eagle ear earth easel echo egg
elbow elm ewe eye farm feast fence fern ferry field fig fire flag flame flock floor flute foam fog fork fox frame frog
fruit gate gear gem ghost giant glass globe glove goat gold goose grain grape grass hand harp hat hawk hazel heart
hedge hen hero heron hill hive honey hood hook horn horse hotel house igloo ink iron ivory jam jar jelly jewel judge
juice key king kite knee knot lady lake lamb lamp lark lawn leaf lemon lens lily lime lion llama lock lotus lunch lynx
mango map maple mask medal melon metal milk mill mint mole moon moose moth motor mouse mud mule music nail nest net
night north nose novel nurse nut oak oasis oats ocean olive onion opera orbit otter oven owl page paint palm panda
paper party pasta path peach peak pear pearl pedal pen piano pie pig pilot pin pine pizza plant plate plum poem pond
pony poppy porch pump puppy purse queen quilt quiz radio raft rain ranch raven rice ring river road robin robot rock
roof room rope rose ruby sail salad salt sand scarf seal seed shark sheep shelf shell ship shirt shoe shore silk sink
ski skirt sky sled smile smoke snail snake snow soap sock sofa soil song soup south spark spoon squid stage star steam
stone storm stove straw sugar suit sun swan table tail talon tea tent thumb tide tiger tile toast tooth torch towel
tower town toy trail train tray tree trout truck tulip tuna twig uncle van vase vest vine voice wagon wand watch water
wave wax whale wheat wheel wind wing wolf wood wool worm wren yacht yard yarn year zebra
"""
WORDS = tuple(_WORD_TEXT.split())
"""Three to five letters each."""

_ONE_LETTER = ("First", "Last")
_REPEATED_CHARACTERS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One practice preference."""

    instruction: str
    """What the user says."""
    chosen: str
    """The bare right answer."""
    rejected: str
    """A worse one."""


def examples(split: Split, n: int, *, seed: int, longer_share: float) -> list[Example]:
    """`n` preferences over the instructions of a split, the same for the same arguments in every process.

    longer_share: in exactly this share of rows (rounded) the chosen answer is the longer one; in all others it is not.
    Kinds take turns. The training split repeats instructions once all were used, the others never do.
    Raises ConfigError: a share outside [0, 1], or more rows than an evaluation split has instructions.
    """
    if not 0.0 <= longer_share <= 1.0:
        raise ConfigError(f"must lie in [0, 1], not {longer_share!r}", "longer_share")
    rng = random.Random(f"practice/{split}/{seed}")
    num_longer = round(n * longer_share)
    deck = _Deck(split, rng)
    drawn = [
        (instruction, True)
        for instruction in deck.draw(num_longer, [kind for kind in KINDS if kind not in _ONE_LETTER])
    ]
    drawn += [(instruction, False) for instruction in deck.draw(n - num_longer, list(KINDS))]
    rng.shuffle(drawn)
    rows = []
    for instruction, longer in drawn:
        right = right_answer(instruction)
        assert right is not None
        wrong = right[: rng.randint(1, len(right) - 1)] if longer else _not_shorter(instruction, right, rng)
        rows.append(Example(instruction=instruction, chosen=right, rejected=wrong))
    return rows


def right_answer(instruction: str) -> str | None:
    """The one right answer, or None if this is no instruction of the task."""
    kind, colon, argument = instruction.partition(": ")
    if not colon or kind not in KINDS or not re.fullmatch(_arguments(kind), argument):
        return None
    return KINDS[kind](argument)


def score(instruction: str, answer: str) -> float | None:
    """1 for the bare right answer; up to 0.5, falling with length, where it is contained; else 0.

    None if the instruction is not one of the task's: then nothing is known about the answer.
    """
    right = right_answer(instruction)
    if right is None:
        return None
    if answer == right:
        return 1.0
    contained = re.search(rf"(?<![A-Za-z0-9]){re.escape(right)}(?![A-Za-z0-9])", answer)
    return 0.5 * len(right) / len(answer) if contained else 0.0


def split_of(instruction: str) -> Split:
    """The split that an instruction belongs to: a fact about its text, whatever the seed."""
    place = int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:4]) / 2**32
    for split, share in SPLITS.items():
        place -= share
        if place < 0:
            return split
    return "eval"


@functools.cache
def instructions(split: Split) -> Mapping[str, Sequence[str]]:
    """Every instruction of a split, by kind."""
    numbers = range(10, 100)
    arguments = dict.fromkeys(KINDS, WORDS) | {
        "Larger": tuple(f"{a} {b}" for a in numbers for b in numbers if a != b),
        "Next": tuple(map(str, range(10, 1000))),
    }
    asked = {kind: [f"{kind}: {argument}" for argument in arguments[kind]] for kind in KINDS}
    return {kind: tuple(text for text in texts if split_of(text) == split) for kind, texts in asked.items()}


class _Deck:
    """Instructions of a split, drawn without replacement; kinds take turns."""

    def __init__(self, split: Split, rng: random.Random) -> None:
        self.split, self.rng = split, rng
        self.left: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            self._shuffle(kind)

    def draw(self, n: int, kinds: Sequence[str]) -> Iterator[str]:
        for turn in range(n):
            if self.split == "train":
                for kind in kinds:
                    if not self.left[kind]:
                        self._shuffle(kind)
            able = [kind for kind in kinds if self.left[kind]]
            if not able:
                raise ConfigError(f"the practice task has no more instructions for {n} rows: ask for fewer", self.split)
            yield self.left[able[turn % len(able)]].pop()

    def _shuffle(self, kind: str) -> None:
        self.left[kind] = list(instructions(self.split)[kind])
        self.rng.shuffle(self.left[kind])


def _arguments(kind: str) -> str:
    """A pattern for what may stand after the colon."""
    return {"Larger": r"\d{1,9} \d{1,9}", "Next": r"\d{1,9}"}.get(kind, r"[a-z]+")


def _not_shorter(instruction: str, right: str, rng: random.Random) -> str:
    """A rejected answer at least as long as the right one: wrong, rambling or repeating."""
    way = rng.randrange(3)
    if way == 0:
        return _wrong(instruction, right, rng)
    if way == 1:
        return rng.choice(RAMBLES).format(right)
    copies = min(rng.randint(3, 6), _REPEATED_CHARACTERS // (len(right) + 1))
    return " ".join([right] * max(2, copies))


def _wrong(instruction: str, right: str, rng: random.Random) -> str:
    """As long as the right answer and easily taken for it."""
    argument = instruction.partition(": ")[2]
    if instruction.startswith("Larger"):
        return str(min(map(int, argument.split())))
    if instruction.startswith(_ONE_LETTER) and argument[0] != argument[-1]:
        return argument[-1] if instruction.startswith("First") else argument[0]
    place = rng.choice([i for i, sign in enumerate(right) if sign.isalnum()])
    alphabet = "0123456789" if right[place].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    other = rng.choice([sign for sign in alphabet if sign != right[place].lower()])
    return right[:place] + (other.upper() if right[place].isupper() else other) + right[place + 1 :]
