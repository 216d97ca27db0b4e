#!/usr/bin/env python3
"""Writes tests/data/text/clean.json and tokens.json, for tests/all/text.rs.

clean.json: prompts as the reference cleans them (Wan-Video/Wan2.2 wan/modules/tokenizers.py: ftfy,
html.unescape twice, white space), and those on which src/text/clean.rs knowingly departs.
tokens.json: ids that transformers makes with the tokenizer of make_test_tokenizer.py.

Needs ftfy, regex, transformers. Run from anywhere: python scripts/golden_text.py
"""

import html
import itertools
import json
import random
from html.entities import html5
from pathlib import Path

import ftfy
import regex
from transformers import AutoTokenizer

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"

PLAIN = """
A red ball rolls across a wooden table.
bird's-eye view, 35mm film, f/2.8, 4K - cinematic; 100% (no text) [soft light] {glow} a_b *c* #d @e ~ ^ | \\
The café’s naïve décor — “très chic”, she said… it’s £5 or €6.
Un garçon à la plage mange une crème brûlée où l'été est là.
Die Straße ist für Fußgänger geöffnet; über 20 °C, 3 m², ½ Liter, 2 × 3 ± 1 µm.
El niño mañana verá el corazón y ¿cómo está el pingüino? ¡Olé! «sí»
Zażółć gęślą jaźń. Łódź płynie po rzece.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul
Ānanda ēra īss ūdens, ķirsis ļoti ņem žagars
Красный мяч катится по столу, медленно и тихо.
Η κόκκινη μπάλα κυλά στο τραπέζι.
הכדור האדום מתגלגל על השולחן
الكرة الحمراء تتدحرج على الطاولة
一只白猫戴着墨镜坐在冲浪板上，表情放松。“你好”……（微笑）
赤いボールがテーブルの上を転がる。「猫」ｶﾞﾗｽ ﾃｰﾌﾞﾙ
빨간 공이 테이블 위를 굴러간다.
लाल गेंद मेज पर लुढ़कती है।
ลูกบอลสีแดงกลิ้งบนโต๊ะ
Tiếng Việt: quả bóng đỏ lăn trên bàn.
Emoji 😀🎬👩‍👩‍👧🇫🇷 ❤️ ✔ ™ © ® 🏴󠁧󠁢󠁷󠁬󠁳󠁿
(masterpiece:1.2), <lora:style:0.8>, best quality
""".strip().splitlines()

CHARACTERS = [
    "",
    "   ",
    "\t\r\n",
    "  two  spaces \t tab\u3000ideographic\xa0nbsp\u2009thin\u200bzero\u202fnarrow  ",
    "line one\r\nline two\rline three\u2028four\u2029five\x85six\x0cseven\x0beight",
    "nul\x00 bell\x07 us\x1f fs\x1c gs\x1d del\x7f bom\ufeff object\ufffc annotation\ufff9 arabic\u206a",
    "\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[m, \x1b[2K line, \x1b]0;title\x07 and \x1b alone",
    "033[31m stays, \\033[31m stays",
    "ﬁlm ﬂoats, oﬃce, baﬄe, ﬀ, ﬅ, Ĳsland, ǆ, ŉ",
    "ＡＢＣ　ｆｕｌｌ１２３！？ ｱｲｳ ﾊﾟ ￥ (￣ー￣)",
    "‘single’ “double” ‚low‘ „low“ ʼn ‹a› «b» ′ ″ ` ´",
    "e\u0301 and A\u030a and \u1100\u1161\u11a8 and q\u0307\u0323",
    "replacement \ufffd stays",
    "right\u200eto\u200fleft \u202areverse\u202c \u200djoin\u200c",
    "soft\u00adhyphen",
    "\x91quoted\x92 and \x80 5 and \x99 and \x85",
    "C1 only \x81 \x8d \x90",
]

HTML = [
    "&amp; &lt;b&gt; &quot;q&quot; &apos;a&apos; &#39;d&#39; &#x27;x&#x27;",
    "&amp;lt;b&amp;gt; and &amp;amp;amp;",
    "caf&eacute; &EACUTE; &Eacute &eacute without semicolon",
    "P&EACUTE;REZ &NTILDE; &nTILDE;",
    "&#128512; &#x1F600; &#x1F600 &#128512",
    "&notanentity; &notit; &notin; &notinva; &ampx &amp &copy2 &AMP &LT &ltx",
    "rock & roll, R&D, AT&T, a&b;c, & ;, &; &# &#; &#x; &#xg; &#12a",
    "https://example.com/?a=1&copy=2&lt=3&amp=4&times=5",
    "&nbsp;x&nbsp;&nbsp;y&ensp;z&zwj;w&shy;v&NewLine;u&Tab;t",
    "&hellip; &mdash; &ldquo;q&rdquo; &rsquo; &trade; &NotEqualTilde; &Jscr;ohn &bne;",
    "&#0; &#1; &#8; &#9; &#11; &#12; &#13; &#27;[31m &#31; &#127; &#128; &#129; &#133; &#159;",
    "&#xD800; &#xDFFF; &#x10FFFD; &#x110000; &#99999999999999999999;",
    "<b>bold</b> &amp;lt; &eacute; R&amp;D",
    "line &amp;amp; one\n<i> &amp;amp; two\n&amp;amp; three",
    "&#38;amp;lt; &#x26;eacute;",
]

MOJIBAKE = [
    "âœ” No problems",
    "The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.",
    "l’humanitÃ©",
    "Ã\xa0 perturber la rÃ©flexion, voilÃ le travail",
    "schÃ¶n, fÃ¼r, GrÃ¶ÃŸe, straÃ\x9fe",
    "â€œquotedâ€\x9d â€” and â€¦ itâ€™s £5",
    "dâ€™accord, Â£5, Â©, 20Â°C, Â½",
    "Ð\x9aÑ€Ð°Ñ\x81Ð½Ñ‹Ð¹ Ð¼Ñ\x8fÑ‡",
    "ä¸€å\x8fªç™½çŒ«",
    "ðŸ˜€ smile ðŸŽ¬",
    "РґРѕСЂРѕРіРµ РР·-РїРѕРґ С„СѓС‚Р±РѕР»",
    "g√¢teaux et r√©gime √©quilibr√©",
    "╨┐╤Ç╨░╨▓╨╕╨╗╤î╨╜╨╛╨╡",
    "ZaÅ¼Ã³Å‚Ä‡",
    "LiĂ¨ge Avenue de l'HĂ´pital",
    "caf\u00c3\u00a9 \u2013 na\u00c3\u00afve, plain café beside it",
    "a lossy â€� and â€œ like this â€�",
    "There are a lot of Ã's in mojibake text",
    "CESU í\xa0½í¸\x8d heart",
    "&Atilde;&copy; and &acirc;&euro;&trade;",
]

# What clean.rs makes of a prompt where it departs, for the reasons in its doc comment.
DEPARTURES = [
    ("cafĆ©ā€™s naĆÆve", "cafĆ©ā€™s naĆÆve"),
    ("a Ä°stanbul street", "a Ä°stanbul street"),
    ("garГ§on", "garçon"),
    ("<b>&EACUTE;</b>", "<b>É</b>"),
    ("<b> &amp;amp;amp;", "<b> &"),
    ("&DD;", "ⅆ"),
    ("an Œ alone", "an Πalone"),
    ("noncharacter &#xFFFF;", "noncharacter \uffff"),
]


def clean(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip()


def mixed(rng, parts, count):
    """Prompts put together from random parts, so that the rules meet each other."""
    for _ in range(count):
        yield "".join(rng.choice(parts) for _ in range(rng.randint(2, 6)))


def write_clean():
    rng = random.Random(1)
    entities = sorted(html5.keys() - {"DD;"})  # In DEPARTURES.
    every_entity = [
        " ".join(f"a&{name}" for name in entities[i : i + 90]) for i in range(0, len(entities), 90)
    ]
    parts = [w for line in [*HTML, *CHARACTERS] for w in regex.split(r"(?<= )", line) if "<" not in w]
    prompts = [*PLAIN, *CHARACTERS, *HTML, *MOJIBAKE, *every_entity, *mixed(rng, parts, 120)]
    for prompt, ours in DEPARTURES:
        assert clean(prompt) != ours, prompt
    content = {
        "same": [[prompt, clean(prompt)] for prompt in dict.fromkeys(prompts)],
        "departures": [[p, clean(p), ours] for p, ours in DEPARTURES],
    }
    write("clean.json", content)


def write_tokens():
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizer")
    long = " ".join(
        f"A {colour} ball rolls slowly to the left on a wooden table, number {i}."
        for i, colour in enumerate(itertools.islice(itertools.cycle(["red", "blue", "golden"]), 60))
    )
    texts = [
        *(clean(p) for p in PLAIN),
        *CHARACTERS,
        "a</s>b </s> <pad> <unk> <s> <extra_id_3>x<extra_id_99>",
        "▁ already ▁a piece ▁",
        "<0x41> <0x0A>",
        "一个红色的球在桌子上慢慢滚动，丑陋的，残缺的",
        "🎬" * 3,
    ]
    cases = [(text, 512) for text in dict.fromkeys(texts)]
    cases += [(long, limit) for limit in [1, 2, 16, 512]]
    cases += [("🎬🎬🎬 film " * 60, 512), ("残缺的，" * 150, 512), (texts[0], 5)]
    # Exactly at the limit, and one token over.
    length = len(tokenizer(texts[0]).input_ids)
    cases += [(texts[0], length), (texts[0], length - 1)]
    content = []
    for text, limit in cases:
        ids = tokenizer(text, max_length=limit, truncation=True, add_special_tokens=True).input_ids
        content.append(
            {"text": text, "limit": limit, "total": len(tokenizer(text).input_ids), "ids": ids}
        )
    write("tokens.json", content)


def write(name, content):
    path = DATA / "text" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{name}: {len(content)} entries, {path.stat().st_size} bytes")


write_clean()
write_tokens()
