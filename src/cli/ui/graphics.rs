//! Pictures in terminals.
//!
//! Kitty's graphics protocol (<https://sw.kovidgoyal.net/kitty/graphics-protocol/>) and iTerm2's
//! inline images (<https://iterm2.com/documentation-images.html>); elsewhere half blocks, two pixels
//! a character.

use std::io::Cursor;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{FilterType, resize};
use image::{ImageFormat, Rgb, RgbImage};

/// Columns and lines that a picture takes at most.
const MOST: Space = Space {
    columns: 76,
    rows: 16,
};
/// Bytes that Kitty's protocol takes at a time.
const CHUNK: usize = 4096;
/// The picture's number in Kitty's protocol, by which each replaces the one before: any.
const ID: u32 = 2_202_114;

/// Columns and lines that there are for a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    columns: u32,
    rows: u32,
}

impl Space {
    /// Of a terminal with so many: room is left for a line on both sides, and for the bar.
    pub(crate) fn of((columns, rows): (usize, usize)) -> Self {
        let most = |there: usize, rest: usize, most: u32| {
            let there = u32::try_from(there.saturating_sub(rest)).unwrap_or(most);
            there.clamp(1, most)
        };
        Self {
            columns: most(columns, 1, MOST.columns),
            rows: most(rows, 3, MOST.rows),
        }
    }
}

/// How a terminal is given pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Kitty,
    Iterm,
    /// Half blocks of any colour.
    Blocks,
    /// Half blocks of the 256 colours of a palette.
    Palette,
}

impl Protocol {
    /// What the terminal understands, by the environment's variables.
    ///
    /// # Errors
    /// When it has no colours; says what is there and what to do.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (term, program) = (
            value("TERM").unwrap_or_default(),
            value("TERM_PROGRAM").unwrap_or_default(),
        );
        // They stand between, pass no pictures on, and cannot know what colours the terminal has.
        let is_between = value("TMUX").is_some()
            || value("STY").is_some()
            || term.starts_with("tmux")
            || term.starts_with("screen");
        let is_kitty = value("KITTY_WINDOW_ID").is_some()
            || ["xterm-kitty", "xterm-ghostty"].contains(&term.as_str())
            || program == "ghostty";
        if is_kitty && !is_between {
            return Ok(Self::Kitty);
        }
        // The second is what iTerm2 hands on to other machines.
        let is_iterm = ["iTerm.app", "WezTerm"].contains(&program.as_str())
            || value("LC_TERMINAL").as_deref() == Some("iTerm2");
        if is_iterm && !is_between {
            return Ok(Self::Iterm);
        }
        if ["", "dumb"].contains(&term.as_str()) {
            bail!(
                "this terminal ({}TERM={}) has no colours\nhint: give a file, such as --preview preview.png",
                match program.as_str() {
                    "" => String::new(),
                    name => format!("{}, ", name.escape_debug()),
                },
                term
            );
        }
        if is_between {
            return Ok(Self::Palette);
        }
        let colours = value("COLORTERM").unwrap_or_default();
        let has_all = ["truecolor", "24bit"].contains(&colours.as_str())
            || value("WT_SESSION").is_some()
            || ["-direct", "alacritty", "foot"]
                .iter()
                .any(|name| term.contains(name));
        Ok(if has_all { Self::Blocks } else { Self::Palette })
    }

    /// Pictures that are worth showing side by side.
    pub(crate) fn side_by_side(self) -> u32 {
        match self {
            Self::Kitty | Self::Iterm => 5,
            Self::Blocks | Self::Palette => 3,
        }
    }

    /// What to write to show a picture below the cursor's line, or in place of the last one, which
    /// took `before` lines above it; and the lines that it takes.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub(crate) fn draw(
        self,
        picture: &RgbImage,
        space: Space,
        before: u32,
    ) -> Result<(Vec<u8>, u32)> {
        // A character is about twice as high as wide.
        let (width, height) = (picture.width().max(1), picture.height().max(1));
        let rows = (space.columns * height / (2 * width)).clamp(1, space.rows);
        let columns = (rows * 2 * width / height).clamp(1, space.columns);
        // Room first, so that the terminal has scrolled when the picture comes; then back up, and
        // down again to the line after it.
        let room = match before {
            0 => "\n".repeat(rows as usize),
            _ => String::new(),
        };
        let mut text = format!("{room}\r\x1b[{rows}A\x1b7");
        match self {
            Self::Blocks => text += &blocks(picture, columns, rows, true_colour),
            Self::Palette => text += &blocks(picture, columns, rows, palette_colour),
            Self::Kitty => {
                let data = png(picture)?;
                // Show a PNG at once, say nothing back, leave the cursor alone.
                let mut keys = format!("a=T,f=100,q=2,C=1,i={ID},c={columns},r={rows},");
                let data = STANDARD.encode(data);
                let mut rest = data.as_str();
                while !rest.is_empty() {
                    let (chunk, tail) = rest.split_at(CHUNK.min(rest.len()));
                    let more = u8::from(!tail.is_empty());
                    text += &format!("\x1b_G{keys}m={more};{chunk}\x1b\\");
                    keys = "q=2,".into();
                    rest = tail;
                }
            }
            Self::Iterm => {
                let data = png(picture)?;
                text += &format!(
                    "\x1b]1337;File=inline=1;size={};width={columns};height={rows};\
                     preserveAspectRatio=1:{}\x07",
                    data.len(),
                    STANDARD.encode(data)
                );
            }
        }
        text += &format!("\x1b8\x1b[{rows}B");
        Ok((text.into_bytes(), rows))
    }
}

fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png)?;
    Ok(png.into_inner())
}

/// The picture in half blocks: the upper pixel of two is the character's colour, the lower one that of
/// its ground. The cursor ends where it was.
fn blocks(picture: &RgbImage, columns: u32, rows: u32, colour: fn(Rgb<u8>) -> String) -> String {
    let small = resize(picture, columns, 2 * rows, FilterType::Triangle);
    let mut text = String::new();
    for row in 0..rows {
        for column in 0..columns {
            let [upper, lower] =
                [0, 1].map(|half| colour(*small.get_pixel(column, 2 * row + half)));
            text += &format!("\x1b[38;{upper};48;{lower}m▀");
        }
        text += "\x1b[0m\r\x1b[1B";
    }
    text
}

fn true_colour(Rgb([red, green, blue]): Rgb<u8>) -> String {
    format!("2;{red};{green};{blue}")
}

/// The nearest of xterm's palette: a cube of six levels a side, and 24 greys.
fn palette_colour(Rgb(pixel): Rgb<u8>) -> String {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |colour: [u8; 3]| -> u32 {
        let sides = colour.into_iter().zip(pixel);
        sides.map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
    };
    let nearest = |value: u8| {
        (0..6)
            .min_by_key(|&at: &usize| LEVELS[at].abs_diff(value))
            .unwrap_or(0)
    };
    let cube = pixel.map(nearest);
    let grey = (0..24_u8).map(|step| (step, [8 + 10 * step; 3]));
    let grey = grey.min_by_key(|(_, colour)| distance(*colour));
    match grey {
        Some((step, colour)) if distance(colour) < distance(cube.map(|at| LEVELS[at])) => {
            format!("5;{}", 232 + u32::from(step))
        }
        _ => format!("5;{}", 16 + 36 * cube[0] + 6 * cube[1] + cube[2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Protocol> {
        Protocol::of(|name| {
            let found = variables.iter().find(|variable| variable.0 == name);
            found.map(|variable| variable.1.to_owned())
        })
    }

    #[test]
    fn terminals_are_told_by_their_variables() {
        let kitty = [
            ("KITTY_WINDOW_ID", "1"),
            ("TERM", "xterm-kitty"),
            ("TERM", "xterm-ghostty"),
            ("TERM_PROGRAM", "ghostty"),
        ];
        for variable in kitty {
            assert_eq!(of(&[variable]).unwrap(), Protocol::Kitty);
        }
        for variable in [
            ("TERM_PROGRAM", "iTerm.app"),
            ("TERM_PROGRAM", "WezTerm"),
            ("LC_TERMINAL", "iTerm2"),
        ] {
            assert_eq!(of(&[("TERM", "xterm"), variable]).unwrap(), Protocol::Iterm);
        }
        let xterm = ("TERM", "xterm-256color");
        for (variables, expected) in [
            (&[xterm, ("COLORTERM", "truecolor")][..], Protocol::Blocks),
            (&[xterm, ("WT_SESSION", "x")], Protocol::Blocks),
            (&[("TERM", "alacritty")], Protocol::Blocks),
            (&[xterm], Protocol::Palette),
            (
                &[xterm, ("TERM_PROGRAM", "Apple_Terminal")],
                Protocol::Palette,
            ),
            (
                &[xterm, ("TMUX", "x"), ("COLORTERM", "truecolor")],
                Protocol::Palette,
            ),
            (
                &[("TERM", "screen-256color"), ("KITTY_WINDOW_ID", "1")],
                Protocol::Palette,
            ),
            (
                &[("TERM", "tmux-256color"), ("TERM_PROGRAM", "tmux")],
                Protocol::Palette,
            ),
            (
                &[xterm, ("STY", "7"), ("LC_TERMINAL", "iTerm2")],
                Protocol::Palette,
            ),
        ] {
            assert_eq!(of(variables).unwrap(), expected, "{variables:?}");
        }
        let error = of(&[("TERM", "dumb"), ("TERM_PROGRAM", "a\u{1b}"), ("TMUX", "")]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("(a\\u{1b}, TERM=dumb)"), "{error}");
        assert!(error.contains("--preview preview.png"), "{error}");
        assert!(of(&[]).is_err());
    }

    #[test]
    fn half_blocks_hold_two_pixels() {
        let picture = RgbImage::from_fn(2, 2, |x, y| match (x, y) {
            (0, 0) => Rgb([255, 0, 0]),
            (1, 1) => Rgb([12, 20, 9]),
            _ => Rgb([250, 250, 255]),
        });
        let space = Space {
            columns: 2,
            rows: 9,
        };
        let (text, rows) = Protocol::Blocks.draw(&picture, space, 0).unwrap();
        assert_eq!(rows, 1);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "\n\r\x1b[1A\x1b7\
             \x1b[38;2;255;0;0;48;2;250;250;255m▀\x1b[38;2;250;250;255;48;2;12;20;9m▀\
             \x1b[0m\r\x1b[1B\x1b8\x1b[1B"
        );
        let (text, _) = Protocol::Palette.draw(&picture, space, 1).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("\r\x1b[1A\x1b7\x1b[38;5;196;48;5;231m▀"),
            "{text:?}"
        );
        for (pixel, expected) in [
            ([0, 0, 0], 16),
            ([128, 128, 128], 244),
            ([95, 135, 255], 69),
        ] {
            assert_eq!(palette_colour(Rgb(pixel)), format!("5;{expected}"));
        }
    }

    /// Noise, which no PNG packs into one chunk.
    fn picture(width: u32, height: u32) -> RgbImage {
        let mut state = 1_u32;
        RgbImage::from_fn(width, height, |_, _| {
            image::Rgb(std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        })
    }

    fn decoded(data: &str) -> RgbImage {
        let png = STANDARD.decode(data).unwrap();
        image::load_from_memory(&png).unwrap().into_rgb8()
    }

    #[test]
    fn kitty_gets_chunks_of_a_png() {
        let picture = picture(200, 100);
        let (text, rows) = Protocol::Kitty.draw(&picture, MOST, 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(rows, 16);
        let room = "\n".repeat(16) + "\r\x1b[16A\x1b7";
        let body = text.strip_prefix(&room).unwrap();
        let body = body.strip_suffix("\x1b8\x1b[16B").unwrap();
        let chunks: Vec<(&str, &str)> = body
            .split_terminator("\x1b\\")
            .map(|chunk| {
                chunk
                    .strip_prefix("\x1b_G")
                    .unwrap()
                    .split_once(';')
                    .unwrap()
            })
            .collect();
        assert!(chunks.len() > 2);
        assert!(chunks[0].0.starts_with("a=T,f=100,q=2,C=1,i="));
        assert!(chunks[0].0.ends_with(",c=64,r=16,m=1"), "{}", chunks[0].0);
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last.0, "q=2,m=0");
        assert!(others.iter().all(|chunk| chunk.1.len() == CHUNK));
        let data: String = chunks.iter().map(|chunk| chunk.1).collect();
        assert_eq!(decoded(&data), picture);
        // The next one takes its place: no room is made.
        let (next, _) = Protocol::Kitty.draw(&picture, MOST, rows).unwrap();
        assert!(next.starts_with(b"\r\x1b[16A\x1b7\x1b_G"));
    }

    #[test]
    fn iterm_gets_a_png() {
        let picture = picture(1064, 146);
        let (text, rows) = Protocol::Iterm.draw(&picture, MOST, 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(rows, 5);
        let (_, rest) = text.split_once("\x1b]1337;File=inline=1;size=").unwrap();
        let (keys, rest) = rest.split_once(':').unwrap();
        assert!(
            keys.ends_with(";width=72;height=5;preserveAspectRatio=1"),
            "{keys}"
        );
        let (data, end) = rest.split_once('\x07').unwrap();
        assert_eq!(decoded(data), picture);
        assert_eq!(end, "\x1b8\x1b[5B");
        assert!(keys.starts_with(&format!("{};", STANDARD.decode(data).unwrap().len())));
    }

    #[test]
    fn pictures_of_any_shape_fit_the_terminal() {
        for (width, height) in [(1, 1), (1, 5000), (5000, 1), (1600, 900), (700, 270)] {
            let picture = RgbImage::new(width, height);
            let (_, rows) = Protocol::Kitty.draw(&picture, MOST, 0).unwrap();
            assert!((1..=MOST.rows).contains(&rows), "{width}x{height}: {rows}");
        }
        for (terminal, columns, rows) in [((80, 24), 76, 16), ((60, 10), 59, 7), ((0, 0), 1, 1)] {
            assert_eq!(Space::of(terminal), Space { columns, rows });
        }
    }
}
