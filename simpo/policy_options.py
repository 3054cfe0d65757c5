"""The token policy on a command line: one option for each field of TokenPolicy."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpo.config import TokenPolicy
from simpo.errors import ConfigError


def add_policy_options(command: argparse.ArgumentParser) -> None:
    """Add the options. What is not given stays as the policy it is applied to has it."""
    options = command.add_argument_group("how text becomes tokens")
    options.add_argument("--max-length", type=int, metavar="N", help="longest prompt + response (default: 1024)")
    options.add_argument(
        "--truncation", metavar="RULE", help="over it: drop (default), reference (the authors' cuts) or trl (TRL's)"
    )
    options.add_argument(
        "--max-prompt-length", type=int, metavar="N", help="what truncation: reference cuts prompts to"
    )
    options.add_argument("--system", metavar="RULE", help="keep (default), or empty: insert an empty system turn")
    options.add_argument(
        "--chat-template", type=Path, metavar="FILE", help="Jinja file, instead of the tokenizer's own"
    )
    options.add_argument(
        "--count-assistant-header", action="store_true", default=None, help="count the header as response (the authors)"
    )


def policy_of(args: argparse.Namespace, base: TokenPolicy | None = None) -> TokenPolicy:
    """The policy with what was given. Raises ConfigError."""
    names = ("max_length", "truncation", "max_prompt_length", "system", "count_assistant_header")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.chat_template is not None:
        try:
            given["chat_template"] = args.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{args.chat_template} cannot be read ({error}): give a Jinja file", "--chat-template"
            ) from error
    if "truncation" in given and given["truncation"] != "reference":
        given.setdefault("max_prompt_length", None)  # the base policy's, which another rule has no use for
    return replace(base or TokenPolicy(), **given)
