//! Prompt cleaning.

use std::sync::LazyLock;

use regex::Regex;

/// ANSI escape sequences, as `ftfy.fixes.ANSI_RE` has them.
static ANSI_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[a-zA-Z]").expect("a constant, valid pattern"));

/// Cleans a prompt as the reference does before it tokenizes it.
///
/// Mojibake and look-alike characters are mended (`ftfy.fix_text`: curly quotes become straight,
/// ligatures and full-width letters plain, control characters and terminal escapes vanish, text
/// becomes NFC), HTML entities are resolved twice, and every run of white space becomes one space,
/// with none at the ends. The result is empty if nothing is left.
///
/// Source: Wan-Video/Wan2.2 `wan/modules/tokenizers.py` with `clean='whitespace'`; `prompt_clean`
/// in diffusers' Wan pipelines does the same.
///
/// The mending is that of the `plsfix` crate, a port of ftfy 6.1; the reference uses ftfy 6.3. They
/// were compared on some 160,000 lines that are not ASCII, and differ on what looks like mojibake
/// alone: windows-1257 (Baltic) is mended by 6.3 alone, and sequences around accented capitals, `§` or `¶`, in
/// windows-1251 or -1253, or around a lone `Œ` can be judged differently. Beside a `<`, ftfy leaves
/// entities in capitals (`&EACUTE;`) alone and resolves no third level of escaping; here both are
/// resolved. References to noncharacters (`&#xFFFF;`) vanish there and not here. What the crate brings
/// is weighed in `docs/dependencies.md`.
pub fn clean(prompt: &str) -> String {
    // plsfix means to remove these itself, but its pattern spells ESC as Python does ("\033"), which
    // is NUL, '3', '3' in Rust.
    let prompt = ANSI_ESCAPE.replace_all(prompt, "");
    // plsfix keeps only the first character of this one's plain form.
    let prompt = prompt.replace('\u{FFE3}', " \u{304}");
    // Lines are split at this many bytes, wherever that falls, and a split character would panic.
    let config = plsfix::TextFixerConfig {
        max_decode_length: i32::MAX,
        ..Default::default()
    };
    let mut plain = plsfix::fix_text(&prompt, Some(&config));
    for _ in 0..2 {
        plain = htmlize::unescape(plain).into_owned();
        // Python drops references to control characters, which HTML forbids; htmlize resolves them.
        // No others are left: fix_text removed them.
        plain.retain(|c| !c.is_ascii_control() || matches!(c, '\t' | '\n' | '\x0c' | '\r'));
    }
    // Python's \s and str.strip() also take U+001C to U+001F for white space, but those are gone.
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}
