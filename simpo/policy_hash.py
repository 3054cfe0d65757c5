"""The token policy in a checkpoint's manifest: written, hashed, and later honoured or refused.

The hash covers what decides ids: the policy's fields that differ from their defaults (so that a field added later
changes no old hash), the chat template in force, BOS, EOS, the ids that end an answer, and the ids of one example. A
tokenizer that another version of transformers reads otherwise, say with a second BOS, has another hash.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from simpo.config import TokenPolicy
from simpo.encoder import Encoder, Unusable
from simpo.errors import CheckpointError, ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def policy_record(tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> dict[str, Any]:
    """What every manifest says about tokens: `tokens` (the policy), `stop_token_ids`, `policy_hash`."""
    encoder = Encoder(tokenizer, policy)
    return {
        "tokens": asdict(policy),
        "stop_token_ids": sorted(encoder.stops),
        "policy_hash": _hash(encoder),
    }


def policy_hash(tokenizer: "PreTrainedTokenizerBase", policy: TokenPolicy) -> str:
    """sha256 of all that decides which ids a row becomes. Raises ModelError: no token can end an answer."""
    return _hash(Encoder(tokenizer, policy))


def honoured_policy(manifest: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> TokenPolicy:
    """The policy that a checkpoint was trained with, where this tokenizer still gives the ids of training.

    A manifest without a policy (a base model from elsewhere: {}) gets the default one; one without a hash is taken at
    its word. Raises CheckpointError for a policy that cannot be honoured.
    """
    try:
        policy = TokenPolicy(**manifest.get("tokens", {}))
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"manifest.json: tokens: {error}; it was written by another version") from error
    expected = manifest.get("policy_hash")
    if expected is None:
        return policy
    try:
        found = policy_hash(tokenizer, policy)
    except ModelError as error:
        raise CheckpointError(f"manifest.json: tokens: {error}") from error
    if found != expected:
        raise CheckpointError(
            "manifest.json: policy_hash: its tokenizer, chat template and token policy no longer give the ids of "
            "training. Load it with the transformers version that it was trained with, or train again"
        )
    return policy


def _hash(encoder: Encoder) -> str:
    default = asdict(TokenPolicy())
    body = {
        "policy": {key: value for key, value in asdict(encoder.policy).items() if value != default[key]},
        "template": encoder.template,
        "bos": encoder.bos,
        "eos": encoder.eos,
        "stops": sorted(encoder.stops),
        "example": _example(encoder),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _example(encoder: Encoder) -> list[int] | str:
    """The ids of one question; where the template refuses it, its words about that."""
    try:
        text = encoder.prompt_text([{"role": "user", "content": "question"}] if encoder.template else "question")
    except Unusable as unusable:
        return str(unusable.detail)
    return encoder.encode([text])[0]
