//! The seeds of a job: one, several, ranges of them.

use anyhow::{Context, Result, ensure};

/// More clips than this a job are taken for a mistake.
const MOST: u64 = 10_000;

/// The seeds that `text` names: a number, a range `1..4` with both ends, or several of either with
/// commas between.
///
/// # Errors
/// When it is something else, names one twice, or more than 10,000.
pub fn seeds(text: &str) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let number = |number: &str| {
            number.trim().parse::<u64>().ok().with_context(|| {
                format!(
                    "{text:?}: expected a number from 0, a range such as 1..4, or several of them"
                )
            })
        };
        let (first, last) = (number(first)?, number(last)?);
        ensure!(
            first <= last && last - first < MOST,
            "{part}: expected a range from the smaller seed to the larger, of at most {MOST}"
        );
        found.extend(first..=last);
        ensure!(found.len() as u64 <= MOST, "more than {MOST} seeds");
    }
    let mut sorted = found.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        ensure!(pair[0] != pair[1], "{} is named twice", pair[0]);
    }
    Ok(found)
}

/// The seed of a job that names none: always the same, so that a second run finds what the first
/// has made.
pub fn seed_of_name(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    u64::from(u32::from_le_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ranges_and_lists() {
        let read = |text: &str| seeds(text).unwrap();
        assert_eq!(read("7"), [7]);
        assert_eq!(read(&u64::MAX.to_string()), [u64::MAX]);
        assert_eq!(read("1..4"), [1, 2, 3, 4]);
        assert_eq!(read("9, 1 .. 2,5"), [9, 1, 2, 5]);
        for (text, part) in [
            ("-1", "expected a number"),
            ("1.5", "expected a number"),
            ("a", "\"a\": expected"),
            ("", "expected"),
            ("4..1", "smaller"),
            ("0..99999999999", "at most"),
            ("0..9999,10000", "more than"),
            ("1,0..1", "1 is named twice"),
        ] {
            let error = seeds(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_has_its_seed() {
        assert_eq!(seed_of_name("cat"), seed_of_name("cat"));
        assert_ne!(seed_of_name("cat"), seed_of_name("cat-2"));
        assert!(seed_of_name("cat") <= u64::from(u32::MAX));
    }
}
