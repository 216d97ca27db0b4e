//! Lines of text on pictures, in Hack, which is part of the program, so that no machine's fonts matter.

use std::sync::{LazyLock, Once};

use image::{Rgb, RgbImage};
use plotters::style::{FontDesc, FontStyle, IntoFont, register_font};

use crate::util::show::is_unseen;

/// Characters of a text that are looked at; no line has room for more.
const MOST: usize = 1000;

/// Makes the font known under the name that everything here is drawn with.
pub(crate) fn font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // It is a font: a test draws with it.
        let _ = register_font(
            "sans-serif",
            FontStyle::Normal,
            epaint_default_fonts::HACK_REGULAR,
        );
    });
}

fn of_size(size: u32) -> FontDesc<'static> {
    font();
    ("sans-serif", size).into_font()
}

/// Pixels that a line takes across.
pub(crate) fn width(text: &str, size: u32) -> u32 {
    of_size(size).box_size(text).map_or(0, |(width, _)| width)
}

/// The text in one line, as far as the font has its characters; what it lacks is counted instead of
/// drawn as boxes.
pub(crate) fn drawable(text: &str) -> String {
    let mut line = String::new();
    let mut lacking = 0;
    let close = |line: &mut String, lacking: &mut usize| {
        if *lacking > 0 {
            let what = if *lacking == 1 {
                "character"
            } else {
                "characters"
            };
            *line += &format!("[{lacking} {what} not in this font]");
        }
        *lacking = 0;
    };
    let mut space = false;
    for character in text.chars().take(MOST) {
        match character {
            c if c.is_whitespace() => space = true,
            c if is_unseen(c) || c == '\u{fe0f}' => {}
            c if is_lacking(c) => {
                if lacking == 0 && space && !line.is_empty() {
                    line.push(' ');
                }
                (lacking, space) = (lacking + 1, false);
            }
            c => {
                close(&mut line, &mut lacking);
                if space && !line.is_empty() {
                    line.push(' ');
                }
                space = false;
                line.push(c);
            }
        }
    }
    close(&mut line, &mut lacking);
    line
}

/// Whether the font draws a box in a character's place.
fn is_lacking(character: char) -> bool {
    static BOX: LazyLock<Vec<Dot>> = LazyLock::new(|| drawn('\u{10ffff}'));
    !character.is_ascii() && drawn(character) == *BOX
}

/// A pixel and how much of it is ink.
type Dot = (i32, i32, f32);

fn drawn(character: char) -> Vec<Dot> {
    let mut dots = Vec::new();
    // What cannot be drawn has no dots.
    let _ = of_size(24).draw(&character.to_string(), (0, 0), |x, y, ink| {
        dots.push((x, y, ink));
        Ok::<(), std::fmt::Error>(())
    });
    dots
}

/// As much of a line's beginning as takes `most` pixels across.
pub(crate) fn shortened(text: &str, size: u32, most: u32) -> String {
    if width(text, size) <= most {
        return text.to_owned();
    }
    let cut = |end: usize| format!("{}…", text[..end].trim_end());
    let ends: Vec<usize> = text.char_indices().map(|(end, _)| end).collect();
    let fitting = ends.partition_point(|&end| width(&cut(end), size) <= most);
    match fitting {
        0 => String::new(),
        _ => cut(ends[fitting - 1]),
    }
}

/// Writes a line with the upper left corner of its letters at a place; what has no room is left out.
pub(crate) fn write(
    page: &mut RgbImage,
    text: &str,
    (left, top): (u32, u32),
    size: u32,
    colour: Rgb<u8>,
) {
    // Plotters has half of the size above the baseline; letters reach three quarters.
    let place = (left as i32, (top + size / 4) as i32);
    let _ = of_size(size).draw(text, place, |x, y, ink| {
        let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        if let Some(pixel) = place.and_then(|(x, y)| page.get_pixel_mut_checked(x, y)) {
            for (level, full) in pixel.0.iter_mut().zip(colour.0) {
                let mixed = f32::from(*level) * (1.0 - ink) + f32::from(full) * ink;
                *level = mixed.round() as u8;
            }
        }
        Ok::<(), std::fmt::Error>(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_font_lacks_is_counted() {
        for (text, expected) in [
            (
                "a cat — Katze für Ärger, кошка, γάτα…",
                "a cat — Katze für Ärger, кошка, γάτα…",
            ),
            (
                "一只猫 in  the\nrain",
                "[3 characters not in this font] in the rain",
            ),
            ("the 猫", "the [1 character not in this font]"),
            ("猫 猫", "[2 characters not in this font]"),
            ("\u{1b}[2J\u{202e} x", "[2J x"),
            ("", ""),
        ] {
            assert_eq!(drawable(text), expected);
        }
    }

    #[test]
    fn a_line_is_cut_by_its_width() {
        let text = "a long prompt that no page has room for";
        assert_eq!(shortened(text, 15, 10_000), text);
        for most in [40, 120, 200] {
            let cut = shortened(text, 15, most);
            assert!(cut.ends_with('…') && width(&cut, 15) <= most, "{cut}");
            assert!(width(&cut, 15) + 20 > most, "{cut}");
        }
        assert_eq!(shortened(text, 15, 3), "");
        assert_eq!(shortened("γάτα γάτα", 15, 50), "γάτα…");
    }

    #[test]
    fn letters_are_drawn_within_their_line() {
        let mut page = RgbImage::new(60, 40);
        write(&mut page, "Ägj", (10, 12), 16, Rgb([200, 100, 50]));
        let ink: Vec<(u32, u32)> = page
            .enumerate_pixels()
            .filter(|(_, _, pixel)| pixel[0] > 60)
            .map(|(x, y, _)| (x, y))
            .collect();
        assert!(ink.len() > 40);
        assert!(ink.iter().all(|&(x, y)| x >= 9 && (10..30).contains(&y)));
        // Beyond the edge nothing is drawn, and nothing fails.
        write(&mut page, "Ägj", (55, 38), 16, Rgb([200; 3]));
    }
}
