#!/usr/bin/env python3
"""Makes tests/data/tokenizer: a small stand-in for the tokenizer of google/umt5-xxl.

It is built like the real one: a SentencePiece Unigram vocabulary with byte pieces, ids <pad> 0,
</s> 1, <s> 2, <unk> 3 (as in leejet/stable-diffusion.cpp src/tokenizers/t5_unigram_tokenizer.cpp), a
Precompiled and a Replace normalizer, a Metaspace pre-tokenizer written as the tokenizers library
wrote it in 2023, a template that appends </s>, and <extra_id_*> after the vocabulary. A character
map of all of NFKC takes 300 KB, so this one covers a few hundred characters. The file also carries
truncation and padding, which a reader has to ignore.

Needs sentencepiece, protobuf, tokenizers. Run from anywhere: python scripts/make_test_tokenizer.py
"""

import itertools
import json
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

PIECES = 1000
EXTRA_IDS = 8

THINGS = "ball cube cone ring star wheel kite boat train bird cat fish horse leaf cloud lantern".split()
COLOURS = "red blue green yellow orange purple white black silver golden".split()
MOVES = (
    "rolls slowly to the left|rolls quickly to the right|spins in place|falls from the sky|"
    "jumps over a wall|slides across the table|floats above the water|turns around and stops|"
    "moves towards the camera|grows larger and larger|bounces up and down|drifts away in the wind"
).split("|")
PLACES = (
    "on a wooden table|in a quiet street|under a bright sky|near the old harbour|in the snow|"
    "between tall trees|beside a river at sunset|in a room with soft light"
).split("|")
STYLES = (
    "cinematic, shallow depth of field, 35mm film|slow motion, static camera|the camera pans to the right|"
    "hand-held camera, natural colours|close-up, high detail, 4k|wide shot, early morning, light fog"
).split("|")
STEMS = (
    "walk talk look open paint light follow turn pull push climb cross point touch watch wait rain work play "
    "land lean lift melt burn break build float glow grow hold jump kick march pass press reach rest sail sing "
    "shout show sleep smoke splash stand start stretch sweep swing throw whisper wind"
).split()
ENDINGS = ["", "s", "ed", "ing", "er", "ers", "ings"]
QUALITIES = (
    "quick slow soft bright dark cold warm deep high low loud quiet calm rough smooth sharp clear thick thin wild "
    "great small long short young old fresh clean sweet strong weak rich plain kind cheerful thoughtful careful"
).split()
DEGREES = ["", "ly", "er", "est", "ness"]
GENERAL = """
The people of the town wake early, open their windows and listen to the sea.
She said that nothing would be the same after the long winter, and he agreed with her.
A young woman with long hair is walking through the market; she smiles and looks at the camera.
An old man sits at the window, reads a letter, and then looks out at the rain.
When the music starts, everybody in the room begins to dance, first slowly, then faster and faster.
It is not known how many of these animals were living there before the great fire.
We have seen this before: the engine starts, the lights go out, and the door opens by itself.
Two children run along the beach while their dog is chasing the waves.
What could be better than a cup of hot tea with honey on a cold and windy day?
一个红色的球在桌子上慢慢滚动。一只白色的猫坐在窗边，看着外面的雨。
蓝色的小船在河上漂流，天空很亮，镜头慢慢向右移动。
一位年轻的女人在海边跳舞，风吹动她的头发，画面细腻，光线柔和。
赤いボールがテーブルの上をゆっくり転がる。猫が窓から外を見ている。
Красный мяч медленно катится по столу, камера движется вправо.
Ein roter Ball rollt langsam über den Tisch, die Kamera schwenkt nach rechts.
Une balle rouge roule lentement sur la table, la caméra se déplace vers la droite.
Una pelota roja rueda despacio por la mesa y el niño la mira.
"""


def sentences():
    combinations = itertools.product(COLOURS, THINGS, MOVES, PLACES, STYLES)
    # Every 97th of some 92,000: 97 is prime to all factors, so each word comes about equally often.
    for colour, thing, move, place, style in itertools.islice(combinations, 0, None, 97):
        yield f"A {colour} {thing} {move} {place}, {style}."
    for (quality, degree), (stem, ending) in zip(
        itertools.cycle(itertools.product(QUALITIES, DEGREES)),
        itertools.product(STEMS, ENDINGS),
    ):
        yield f"the {quality}{degree} {stem}{ending} of {stem}{ending}, {quality}{degree}."
    for line in GENERAL.strip().splitlines():
        for _ in range(12):
            yield line


def character_map():
    """Lines "from<tab>to" in hexadecimal code points, as sentencepiece wants them."""
    full_and_half_width = range(0xFF01, 0xFFA0)
    ligatures = range(0xFB00, 0xFB07)
    others = [0xA0, 0xAA, 0xB2, 0xB3, 0xB5, 0xBC, 0xBD, 0xBE, 0x2026, 0x2122, 0x2460, 0x3000]
    spaces = range(0x2000, 0x200B)
    for code in [*others, *spaces, *ligatures, *full_and_half_width]:
        plain = unicodedata.normalize("NFKC", chr(code))
        if plain != chr(code):
            yield f"{code:X}\t{' '.join(f'{ord(c):X}' for c in plain)}"
    # nmt_nfkc on top of NFKC: some white space becomes a space, some characters vanish.
    for code in [0x9, 0xA, 0xD, 0x2028, 0x2029]:
        yield f"{code:X}\t20"
    for code in [0x200B, 0xFEFF, 0xAD]:
        yield f"{code:X}\t"


def train(folder):
    (folder / "text.txt").write_text("\n".join(sentences()) + "\n", encoding="utf-8")
    (folder / "map.tsv").write_text("\n".join(character_map()) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "pieces"),
        model_type="unigram",
        vocab_size=PIECES,
        normalization_rule_tsv=str(folder / "map.tsv"),
        byte_fallback=True,
        character_coverage=0.9999,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "pieces.model").read_bytes())
    return model


def convert(model):
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    vocabulary = [(p.piece, round(p.score, 5)) for p in model.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ["<pad>", "</s>", "<s>", "<unk>", *extra]]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_truncation(max_length=64)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=64)
    description = json.loads(tokenizer.to_str())
    for part in ["pre_tokenizer", "decoder"]:
        description[part] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    return description, extra


folder = Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizer"
folder.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as scratch:
    description, extra = convert(train(Path(scratch)))
config = {
    # Read as it is: as a T5Tokenizer, transformers 5 would rebuild it with <unk> 2 and no byte pieces.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "additional_special_tokens": extra,
}
special = {key: config[key] for key in config if "token" in key and key != "tokenizer_class"}
for name, content in [
    ("tokenizer.json", description),
    ("tokenizer_config.json", config),
    ("special_tokens_map.json", special),
]:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / name).write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {(folder / name).stat().st_size} bytes")
print(f"ids: {PIECES + EXTRA_IDS}")
