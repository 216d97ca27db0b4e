#!/usr/bin/env python3
"""Makes tests/data/spiece: two small SentencePiece models and the ids that transformers gives.

umt5.model is trained with the settings that google/umt5-xxl's spiece.model records: no character
map, byte pieces, user-defined pieces, <pad> 0, </s> 1, <s> 2, <unk> 3. charsmap.model is like T5's
and mT5's: white space collapsed by SentencePiece, a character map, <unk> 2. A map of all of NFKC
takes 240 KB, so this one covers a few hundred characters.

The ids are those of transformers 4.31, whose conversion wrote the published tokenizer.json: for
google/umt5-xxl's spiece.model it makes the same normalizer, pre-tokenizer, decoder, post-processor,
pieces and ids. Later releases convert the same file differently (4.51 splits texts at the user-defined
pieces, 5 takes <unk> for 2), so the release matters. Some scores in the published file differ from the
model's in the last bit of a float64.

golden.json: for each model [text, ids, whether SentencePiece itself gives the same ids].
arrays.json: umt5.model as llama.cpp writes it into a GGUF file (ggml-org/llama.cpp
conversion/t5.py): padded to the rows of the embedding table, no user-defined kind.

Needs "transformers==4.31.0" "numpy<2" sentencepiece protobuf (Python 3.11 or older).
Run from anywhere: python scripts/golden_spiece.py
"""

import json
import tempfile
import unicodedata
import warnings
from pathlib import Path

import sentencepiece
import transformers
from transformers import T5TokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf

# The definition that transformers brings: that of sentencepiece cannot be loaded beside it.
MESSAGES = import_protobuf()
DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "spiece"
EXTRA_IDS = 300
ROWS = 1024

CORPUS = """
A red ball rolls slowly to the left while the camera follows it across the wooden table.
The old man opens a window, looks at the sea and waits for the rain to stop.
A young woman walks along the beach; her dog is running after the waves, 35 mm film, 4K.
Soft light, shallow depth of field, slow motion, natural colours, high detail, static camera.
It is not known how many people were living there before 1987, or what became of them.
She said: "nothing will be the same", and then (quietly) closed the door behind her.
Un ballon rouge roule lentement sur la table et l'enfant le regarde à la fenêtre.
Der rote Ball rollt langsam über den großen Tisch, während draußen der Regen fällt.
La pelota roja rueda despacio por la mesa y el niño la mira desde la ventana.
Красный мяч медленно катится по столу, а камера движется вправо вслед за ним.
Η κόκκινη μπάλα κυλά αργά στο τραπέζι και το παιδί την κοιτάζει.
הכדור האדום מתגלגל לאט על השולחן ליד החלון הפתוח.
الكرة الحمراء تتدحرج ببطء على الطاولة قرب النافذة المفتوحة.
लाल गेंद मेज पर धीरे धीरे लुढ़कती है और बच्चा उसे देखता है।
ลูกบอลสีแดงกลิ้งช้าๆ บนโต๊ะไม้ และเด็กกำลังมองดู
一个红色的球在木桌上慢慢滚动，镜头慢慢向右移动，光线柔和。
赤いボールがテーブルの上をゆっくり転がる。子供が窓からそれを見ている。
빨간 공이 나무 테이블 위를 천천히 굴러가고 아이가 그것을 바라본다.
Quả bóng đỏ lăn chậm trên bàn gỗ và đứa trẻ đang nhìn nó.
წითელი ბურთი ნელა გორავს მაგიდაზე.
""".strip().splitlines()

TEXTS = [
    *CORPUS,
    "",
    " ",
    "     ",
    "a",
    "the the the",
    " leading",
    "trailing ",
    "two  spaces   three    four",
    "tab\tand\t\ttabs",
    "line\nbreak\r\nand\n\nempty line\n",
    "\n",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth, \ufeffbom",
    "▁",
    "▁word ▁ a▁b ▁▁▁",
    "Ｆｕｌｌ　ｗｉｄｔｈ　１２３！？",
    "ﬁlm ﬂoats oﬃce ½ ² ™ …",
    "ｶﾞﾗｽ ﾃｰﾌﾞﾙ",
    "e\u0301 a\u030a o\u0308 (combining)",
    "q\u0301\u0302\u0303\u0304\u0305 stacked marks",
    "😀",
    "a 🎬 b",
    "🎬🎬🎬",
    "👩‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️ 🏴󠁧󠁢󠁷󠁬󠁳󠁿",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠀁",
    "ꙮ ⵣ ᚠᚢᚦ ༀ",
    "红色的球🎬滚动",
    "赤いボールと犬と猫",
    "الكرة‎ الحمراء‏ ١٢٣ ـــ",
    "ลูกบอลสีแดง๑๒๓ ก็",
    "क्षत्रिय लाल",
    "12 345 67890 1/2 3.14 1e-9 2026",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f vertical\x0b form\x0c next\x85",
    "\x01\x02\x03",
    "private \ue000\uf8ff use, noncharacter \ufffe \uffff, replacement \ufffd",
    "</s>",
    "stop </s> here",
    "a</s>b",
    "</s></s> </s>",
    "<pad>",
    "in <pad> the <pad>middle",
    "<s> <unk> <S> </S>",
    "an <unk> in the text",
    "< /s> <pad > </s",
    "<extra_id_0>",
    "the <extra_id_0> rolls <extra_id_299>.",
    "<extra_id_300> <extra_id_-1>",
    "[web] [code] [eod]",
    "a[web]b [ web ] [WEB]",
    "<0x41> <0xFF> <0x0A>",
    "x" * 300,
    "supercalifragilisticexpialidocious" * 8,
    "球" * 200,
    "🎬" * 100,
    "-" * 120,
    "the " * 150,
    "ab" * 150 + " " + "ba" * 150,
    "http://example.com/a?b=c&d=%20#e",
    "MiXeD CaSe TeXT, UPPER",
    "\"quotes\" 'single' «double» “curly” ‘curly’ `back`",
    "(masterpiece:1.2), <lora:style:0.8>, best {quality} | a\\b",
    "色调艳丽，过曝，静态，细节模糊不清，字幕",
]


def character_map():
    """Lines "from<tab>to" in hexadecimal code points, as sentencepiece wants them."""
    codes = [0xA0, 0xB2, 0xBD, 0x2026, 0x2122, 0x3000]
    codes += [*range(0x2000, 0x200B), *range(0xFB00, 0xFB07), *range(0xFF01, 0xFFA0)]
    for code in codes:
        plain = unicodedata.normalize("NFKC", chr(code))
        yield f"{code:X}\t{' '.join(f'{ord(c):X}' for c in plain)}"
    for code in [0x9, 0xA, 0xD]:
        yield f"{code:X}\t20"
    for code in [0x200B, 0xFEFF, 0x7]:
        yield f"{code:X}\t"
    # Several characters to one, and one that only shares their start.
    yield "65 301\tE9"
    yield "61 30A\tE5"


def train(folder, name, **settings):
    """Trains a model, takes out the paths it records and writes it to `DATA`."""
    (folder / "corpus.txt").write_text("\n".join(CORPUS * 8) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / name),
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    model = MESSAGES.ModelProto()
    model.ParseFromString((folder / f"{name}.model").read_bytes())
    model.trainer_spec.ClearField("input")
    model.trainer_spec.ClearField("model_prefix")
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    path = DATA / f"{name}.model"
    path.write_bytes(model.SerializeToString())
    return path, model


def golden(path, **special):
    fast = T5TokenizerFast(vocab_file=str(path), extra_ids=EXTRA_IDS, **special)
    # As `from_pretrained` does: without it `</s>` in a text is no special token.
    fast.sanitize_special_tokens()
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    cases = []
    for text in TEXTS:
        ids = fast(text)["input_ids"]
        cases.append([text, ids, ids == [*library.encode(text), 1]])
    return cases


def arrays(model):
    """What llama.cpp's converter takes from a model, as (tokens, scores, kinds)."""
    kinds = MESSAGES.ModelProto.SentencePiece
    tokens = [f"[PAD{i}]" for i in range(ROWS)]
    scores = [-10000.0] * ROWS
    types = [kinds.UNUSED] * ROWS
    for i, piece in enumerate(model.pieces):
        tokens[i] = piece.piece
        scores[i] = piece.score
        types[i] = kinds.NORMAL if piece.type == kinds.USER_DEFINED else piece.type
    return {"tokens": tokens, "scores": scores, "kinds": types}


assert transformers.__version__ == "4.31.0", transformers.__version__
warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
DATA.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    (scratch / "map.tsv").write_text("\n".join(character_map()) + "\n", encoding="utf-8")
    umt5, proto = train(
        scratch,
        "umt5",
        vocab_size=640,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        user_defined_symbols=["[eod]", "[web]", "[code]"],
        bos_id=2,
        unk_id=3,
    )
    charsmap, _ = train(
        scratch,
        "charsmap",
        vocab_size=400,
        character_coverage=0.99,
        normalization_rule_tsv=str(scratch / "map.tsv"),
        bos_id=-1,
        unk_id=2,
    )
contents = {
    "golden.json": {"umt5": golden(umt5, bos_token="<s>"), "charsmap": golden(charsmap)},
    "arrays.json": arrays(proto),
}
for name, content in contents.items():
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (DATA / name).write_text(text + "\n", encoding="utf-8")
for file in sorted(DATA.iterdir()):
    print(f"{file.name}: {file.stat().st_size} bytes")
for name, cases in contents["golden.json"].items():
    print(f"{name}: {len(cases)} texts, {sum(same for *_, same in cases)} as SentencePiece has them")
