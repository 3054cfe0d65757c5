"""Token ids <-> text: whole answers, and each token alone, as log-probabilities show it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from service.serving.engines.base import TokenScore


class Vocabulary:
    """The texts of one tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        # Only a byte-level vocabulary writes its pieces in the stand-in alphabet.
        self._byte_level = "ByteLevel(" in str(tokenizer.backend_tokenizer.decoder)
        self._first_V: Tensor | None = None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, special tokens skipped."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def score(self, token_id: int, logprob: float | None, top: tuple[TokenScore, ...] = ()) -> TokenScore:
        """A token with its log-probability."""
        raw = self.bytes_of(token_id)
        text = self._piece(token_id) if raw is None else raw.decode("utf-8", errors="replace")
        return TokenScore(token_id=token_id, text=text, bytes=raw, logprob=logprob, top=top)

    def first_bytes(self, size: int) -> Tensor:
        """The first byte of each of `size` tokens; 256 for one that stands for no text. Made once, at first use."""
        if self._first_V is None or len(self._first_V) != size:
            firsts = (self.bytes_of(token_id) for token_id in range(size))
            self._first_V = torch.tensor([raw[0] if raw else 256 for raw in firsts])
        return self._first_V

    def bytes_of(self, token_id: int) -> bytes | None:
        """What a token stands for; None for a mark that stands for no text."""
        piece = self._piece(token_id)
        if not piece or token_id in self._special:
            return None
        alphabet = _stand_ins()
        if self._byte_level and all(char in alphabet for char in piece):
            return bytes(alphabet[char] for char in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])  # a byte that has no token, as SentencePiece falls back to it
        return piece.replace("\u2581", " ").encode()

    def _piece(self, token_id: int) -> str:
        # A model's head may be wider than its vocabulary (padding): such ids have no piece.
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")


@lru_cache(maxsize=1)
def _stand_ins() -> Mapping[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
