//! Numbers in dots.

use image::{Rgb, RgbImage};

/// Dots of a digit's height and width.
pub const HEIGHT: u32 = 7;
const WIDTH: u32 = 5;

/// Rows of the digits 0 to 9, from the top; the highest of the five bits is on the left.
const DIGITS: [[u8; HEIGHT as usize]; 10] = [
    [
        0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110,
    ],
    [
        0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110,
    ],
    [
        0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111,
    ],
    [
        0b01110, 0b10001, 0b00001, 0b00110, 0b00001, 0b10001, 0b01110,
    ],
    [
        0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010,
    ],
    [
        0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110,
    ],
    [
        0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110,
    ],
    [
        0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000,
    ],
    [
        0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110,
    ],
    [
        0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100,
    ],
];

/// Draws a number with its upper left corner at `(left, top)`, in squares of `dot` pixels. What
/// lies outside the picture is left out.
pub fn draw(picture: &mut RgbImage, number: u32, (left, top): (u32, u32), dot: u32, ink: Rgb<u8>) {
    for (place, digit) in (0..).zip(number.to_string().bytes()) {
        let Some(rows) = DIGITS.get(usize::from(digit.wrapping_sub(b'0'))) else {
            continue;
        };
        for y in 0..HEIGHT * dot {
            for x in 0..WIDTH * dot {
                let bit = WIDTH - 1 - x / dot;
                if rows[(y / dot) as usize] >> bit & 1 == 0 {
                    continue;
                }
                let x = left + place * (WIDTH + 1) * dot + x;
                if let Some(pixel) = picture.get_pixel_mut_checked(x, top + y) {
                    *pixel = ink;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_drawn_in_its_place() {
        let mut picture = RgbImage::new(40, 18);
        draw(&mut picture, 407, (2, 3), 2, Rgb([255; 3]));
        let lines: Vec<String> = (0..9_u32)
            .map(|y| {
                let dot = |x: u32| match picture.get_pixel(2 * x, 2 * y + 1).0 {
                    [0, ..] => ' ',
                    _ => '#',
                };
                (0..20).map(dot).collect()
            })
            .collect();
        let expected = [
            "                    ",
            "    #   ###  #####  ",
            "   ##  #   #     #  ",
            "  # #  #   #    #   ",
            " #  #  #   #   #    ",
            " ##### #   #  #     ",
            "    #  #   #  #     ",
            "    #   ###   #     ",
            "                    ",
        ];
        assert_eq!(lines, expected);
        // Beyond the edge nothing is drawn, and nothing fails.
        draw(&mut picture, u32::MAX, (35, 12), 3, Rgb([255; 3]));
    }
}
