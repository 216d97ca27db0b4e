//! Pictures in terminals that show some.
//!
//! Kitty's graphics protocol (<https://sw.kovidgoyal.net/kitty/graphics-protocol/>) and iTerm2's
//! inline images (<https://iterm2.com/documentation-images.html>).

use std::io::Cursor;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};

/// Characters of a line that a picture takes at most.
const COLUMNS: u32 = 76;
/// Lines that it takes at most.
const ROWS: u32 = 16;
/// Bytes that Kitty's protocol takes at a time.
const CHUNK: usize = 4096;
/// The picture's number in Kitty's protocol, by which each replaces the one before: any.
const ID: u32 = 2_202_114;

/// How a terminal is given pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Kitty,
    Iterm,
}

impl Protocol {
    /// What the terminal understands, by the environment's variables.
    ///
    /// # Errors
    /// When it is none that is known to show pictures; says what is there and what to do.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (term, program) = (value("TERM"), value("TERM_PROGRAM"));
        let is = |value: &Option<String>, names: &[&str]| {
            value.as_deref().is_some_and(|value| names.contains(&value))
        };
        // They stand between and pass no pictures on.
        let multiplexed = value("TMUX").is_some()
            || value("STY").is_some()
            || term
                .as_deref()
                .is_some_and(|t| t.starts_with("tmux") || t.starts_with("screen"));
        if !multiplexed {
            if value("KITTY_WINDOW_ID").is_some()
                || is(&term, &["xterm-kitty", "xterm-ghostty"])
                || is(&program, &["ghostty"])
            {
                return Ok(Self::Kitty);
            }
            // The second is what iTerm2 hands on to other machines.
            if is(&program, &["iTerm.app", "WezTerm"]) || is(&value("LC_TERMINAL"), &["iTerm2"]) {
                return Ok(Self::Iterm);
            }
        }
        bail!(
            "this terminal ({}{}TERM={}) is none that is known to show pictures\nhint: use kitty, Ghostty, \
             iTerm2 or WezTerm, or a file, such as --preview preview.png",
            if multiplexed {
                "inside tmux or screen, "
            } else {
                ""
            },
            program
                .map(|name| format!("{}, ", name.escape_debug()))
                .unwrap_or_default(),
            term.unwrap_or_default().escape_debug()
        )
    }

    /// What to write to show a picture below the cursor's line, or in place of the last one, which
    /// took `before` lines above it; and the lines that it takes.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub(crate) fn draw(self, picture: &RgbImage, before: u32) -> Result<(Vec<u8>, u32)> {
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png)?;
        let png = png.into_inner();
        let data = STANDARD.encode(&png);
        // A character is about twice as high as wide.
        let (width, height) = (picture.width().max(1), picture.height().max(1));
        let rows = (COLUMNS * height / (2 * width)).clamp(1, ROWS);
        let columns = (rows * 2 * width / height).clamp(1, COLUMNS);
        // Room first, so that the terminal has scrolled when the picture comes; then back up, and
        // down again to the line after it.
        let room = match before {
            0 => "\n".repeat(rows as usize),
            _ => String::new(),
        };
        let mut text = format!("{room}\r\x1b[{rows}A\x1b7");
        match self {
            Self::Kitty => {
                // Show a PNG at once, say nothing back, leave the cursor alone.
                let mut keys = format!("a=T,f=100,q=2,C=1,i={ID},c={columns},r={rows},");
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
                text += &format!(
                    "\x1b]1337;File=inline=1;size={};width={columns};height={rows};\
                     preserveAspectRatio=1:{data}\x07",
                    png.len()
                );
            }
        }
        text += &format!("\x1b8\x1b[{rows}B");
        Ok((text.into_bytes(), rows))
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
        for between in [
            ("TMUX", "/tmp/x"),
            ("TERM", "screen-256color"),
            ("STY", "7"),
        ] {
            let error = of(&[between, ("KITTY_WINDOW_ID", "1")]).unwrap_err();
            assert!(error.to_string().contains("tmux or screen"), "{error}");
        }
        let error = of(&[("TERM", "xterm"), ("TERM_PROGRAM", "a\u{1b}"), ("TMUX", "")]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("(a\\u{1b}, TERM=xterm)"), "{error}");
        assert!(error.contains("--preview preview.png"), "{error}");
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
        let (text, rows) = Protocol::Kitty.draw(&picture, 0).unwrap();
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
        let (next, _) = Protocol::Kitty.draw(&picture, rows).unwrap();
        assert!(next.starts_with(b"\r\x1b[16A\x1b7\x1b_G"));
    }

    #[test]
    fn iterm_gets_a_png() {
        let picture = picture(1064, 146);
        let (text, rows) = Protocol::Iterm.draw(&picture, 0).unwrap();
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
            let (_, rows) = Protocol::Kitty.draw(&picture, 0).unwrap();
            assert!((1..=ROWS).contains(&rows), "{width}x{height}: {rows}");
        }
    }
}
