"""A small Unigram tokenizer of the world's prompts, with T5's conventions (pad 0, </s> 1, unk 2).

Its pieces are the world's words, scored by their frequency, and every printable ASCII
character, so any English prompt can be spelled out.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as spm
from transformers import T5Tokenizer

import world

PROMPTS = 20000
SPACE = "\u2581"  # SentencePiece's visible space
CHARACTER_SCORE = -14.0  # below every word, so that known words stay whole


def pieces() -> list[tuple[str, float]]:
    """Pieces and log probabilities, special tokens first."""
    words = Counter(
        word
        for i in range(PROMPTS)
        for word in world.scene("train", i).prompt.rstrip(".").split()
    )
    total = sum(words.values())
    scored = [(SPACE + word, math.log(count / total)) for word, count in words.most_common()]
    characters = [(c, CHARACTER_SCORE) for c in [SPACE, *map(chr, range(33, 127))]]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored, *characters]


def sentencepiece_model(vocab: list[tuple[str, float]]) -> bytes:
    """The same vocabulary as a SentencePiece model file."""
    model = spm.ModelProto()
    kinds = spm.ModelProto.SentencePiece
    special = {"<pad>": kinds.CONTROL, "</s>": kinds.CONTROL, "<unk>": kinds.UNKNOWN}
    for piece, score in vocab:
        model.pieces.add(piece=piece, score=score, type=special.get(piece, kinds.NORMAL))
    spec = model.trainer_spec
    spec.model_type = spm.TrainerSpec.UNIGRAM
    spec.vocab_size = len(vocab)
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = 0, 1, 2, -1
    spec.pad_piece, spec.eos_piece, spec.unk_piece = "<pad>", "</s>", "<unk>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    return model.SerializeToString()


def build(folder: Path) -> T5Tokenizer:
    """Write spiece.model, tokenizer.json and their configuration into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = pieces()
    (folder / "spiece.model").write_bytes(sentencepiece_model(vocab))
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return tokenizer


def load(folder: Path) -> T5Tokenizer:
    """The tokenizer in `folder`, built if it is not there."""
    return T5Tokenizer.from_pretrained(folder) if (folder / "tokenizer.json").exists() else build(folder)
