"""The SimPO paper's ablations on the practice task. Every run that was made before is kept: stop and go on at will."""

import argparse
import sys
from pathlib import Path

import torch
from transformers.utils import logging

from simpo.practice import BaseRecipe
from tests.bench.ablations.recipe import Setting
from tests.bench.ablations.search import ablate
from tests.bench.ablations.table import readme_block
from tests.bench.readme import record, write
from tests.house import REPO

NAME = "ablations"
QUICK = Setting(
    steps=4,
    prompts=20,
    validation_prompts=20,
    max_new_tokens=16,
    seeds=2,
    learning_rates=(5e-5,),
    simpo_betas=(2.0, 5.0),
    sum_betas=(0.3, 1.0),
    base=BaseRecipe(steps=60),
)
"""A minute instead of twenty: the machinery works, the figures mean nothing."""


def main() -> int:
    """Make what is missing, print the tables, and with --write record them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ablations", description=__doc__)
    parser.add_argument("--work", type=Path, default=REPO / ".simpo" / NAME, help="where runs are kept")
    parser.add_argument("--write", action="store_true", help="record the figures and renew the tables of README.md")
    parser.add_argument("--quick", action="store_true", help="try the machinery: a minute, figures without meaning")
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--write: figures of --quick mean nothing; leave one of the two out")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    found = ablate(QUICK if args.quick else Setting(), args.work / "quick" if args.quick else args.work, _say)
    if args.write:
        record(NAME, found)
        write(NAME, readme_block(found))
    print()
    print(readme_block(found))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
