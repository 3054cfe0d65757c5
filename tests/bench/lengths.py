"""The benchmark's pairs: lengths (prompt, chosen, rejected) in tokens, and the floor of floating-point operations.

S: HH-RLHF harmless-base test pairs, short responses. L: AlpacaEval-length responses. Groups of four, in order, are one
micro-batch. Lengths decide speed, token values do not: the ids are random.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from simpo.packing import TokenPair

PAIRS_PER_STEP = 4

Lengths = Sequence[tuple[int, int, int]]


def _parse(text: str) -> Lengths:
    pairs = [tuple(map(int, word.split("/"))) for word in text.split()]
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in pairs]


SHORT = _parse(
    """
    116/58/21 481/68/48 81/21/34 172/13/5      69/27/12 18/16/31 109/29/15 167/36/21
    26/10/14 51/9/37 25/89/21 114/8/38         163/11/82 30/22/109 21/22/167 340/104/36
    93/11/22 170/19/22 49/166/37 370/23/18     79/8/47 30/31/21 130/60/49 75/10/51
    39/26/12 79/11/122 140/5/13 15/48/22       58/8/56 95/33/59 21/31/6 129/138/88
    113/9/3 141/11/48 270/60/114 12/5/27       350/10/8 389/102/233 218/31/18 483/68/256
    100/67/158 80/30/4 147/81/91 87/41/80      55/20/26 103/38/50 33/17/70 185/24/25
    """
)
"""48 short pairs."""

SHORT_SORTED = _parse(
    """
    14/39/30 27/10/26 12/12/41 30/22/23        70/30/25 27/29/73 20/80/80 75/25/10
    87/62/45 79/70/14 77/20/72 107/43/21       128/56/87 85/131/35 141/43/75 184/31/33
    289/30/69 240/89/118 239/120/111 350/10/8
    """
)
"""20 short pairs from a set sorted by length: the micro-batches at 10, 30, 50, 70 and 90 %."""

LONG = _parse(
    """
    56/614/580 56/334/319 26/508/449 32/531/674    51/23/67 33/534/606 96/632/262 25/585/628
    39/191/233 24/658/703 78/858/828 177/273/370   61/403/447 23/511/535 276/569/707 102/62/65
    34/504/474 35/251/141 31/413/531 25/458/553    56/242/146 24/502/31 24/341/204 34/676/708
    """
)
"""24 long pairs."""

SAMPLES = {"short": SHORT, "short-sorted": SHORT_SORTED, "long": LONG}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with grouped-query attention and tied embeddings; weights are random."""

    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def linear_flops(self) -> float:
        """Floating-point operations of the layers' linears, per token, forward."""
        head = self.width // self.heads
        attention = self.width * (self.heads + 2 * self.kv_heads) * head + self.heads * head * self.width
        return 2.0 * (attention + 3 * self.width * self.mlp) * self.layers

    @property
    def head_flops(self) -> float:
        """The same of the vocabulary head, per scored token."""
        return 2.0 * self.width * self.vocabulary


SHAPES = {
    "30M": Shape(width=384, layers=12, mlp=1024, heads=6, kv_heads=2, vocabulary=32_000),
    "135M": Shape(width=576, layers=30, mlp=1536, heads=9, kv_heads=3, vocabulary=49_152),
    "1B": Shape(width=2048, layers=16, mlp=8192, heads=32, kv_heads=8, vocabulary=128_256),
    "8B": Shape(width=4096, layers=32, mlp=14_336, heads=32, kv_heads=8, vocabulary=128_256),
}


def floor_flops(shape: Shape, pairs: Lengths, *, frozen: bool = False) -> float:
    """Least floating-point operations of forward and backward over all pairs: no padding, one prompt a pair.

    frozen: the base takes no gradient (LoRA), so a linear's backward is one product instead of two.
    """
    passes = 2.0 if frozen else 3.0
    total = 0.0
    for prompt, chosen, rejected in pairs:
        scores = prompt**2 / 2 + (chosen + rejected) * prompt + (chosen**2 + rejected**2) / 2
        total += passes * shape.linear_flops * (prompt + chosen + rejected)
        total += passes * 4 * shape.width * shape.layers * scores
        total += passes * shape.head_flops * (chosen + rejected)
    return total


def random_pairs(pairs: Lengths, vocabulary: int, seed: int = 0) -> list[TokenPair]:
    """Pairs of these lengths; ids below 3 (special tokens) are left out."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(count)]

    return [TokenPair(ids(prompt), ids(chosen), ids(rejected)) for prompt, chosen, rejected in pairs]
