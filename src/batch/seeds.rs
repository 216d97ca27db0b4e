//! The seeds of a job: one, several, ranges of them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// More clips than this a job are taken for a mistake.
const MOST: u64 = 10_000;

/// The seeds that `value` names: a number, a range `1..4` with both ends, or several of either, in
/// an array or with commas between.
///
/// # Errors
/// When it is something else, names one twice, or more than 10,000.
pub fn seeds(value: &Value) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    add(value, &mut found)?;
    ensure!(!found.is_empty(), "no seed is named");
    let mut sorted = found.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        ensure!(pair[0] != pair[1], "{} is named twice", pair[0]);
    }
    Ok(found)
}

fn add(value: &Value, found: &mut Vec<u64>) -> Result<()> {
    let expected =
        || format!("{value}: expected a number from 0, a range such as 1..4, or several of them");
    match value {
        Value::Number(number) => found.push(number.as_u64().with_context(expected)?),
        Value::String(text) => {
            for part in text.split(',').map(str::trim) {
                let (first, last) = part.split_once("..").unwrap_or((part, part));
                let number = |text: &str| text.trim().parse::<u64>().ok().with_context(expected);
                let (first, last) = (number(first)?, number(last)?);
                ensure!(
                    first <= last && last - first < MOST,
                    "{part}: expected a range from the smaller seed to the larger, of at most {MOST}"
                );
                found.extend(first..=last);
            }
        }
        Value::Array(items) => items.iter().try_for_each(|item| add(item, found))?,
        _ => anyhow::bail!(expected()),
    }
    ensure!(found.len() as u64 <= MOST, "more than {MOST} seeds");
    Ok(())
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
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_ranges_and_lists() {
        let read = |value: Value| seeds(&value).unwrap();
        assert_eq!(read(json!(7)), [7]);
        assert_eq!(read(json!(u64::MAX)), [u64::MAX]);
        assert_eq!(read(json!("1..4")), [1, 2, 3, 4]);
        assert_eq!(read(json!("9, 1 .. 2,5")), [9, 1, 2, 5]);
        assert_eq!(read(json!([3, "5..6"])), [3, 5, 6]);
        for (value, part) in [
            (json!(-1), "expected a number"),
            (json!(1.5), "expected a number"),
            (json!("a"), "\"a\": expected"),
            (json!(""), "expected"),
            (json!("4..1"), "smaller"),
            (json!("0..99999999999"), "at most"),
            (json!([1, "0..1"]), "1 is named twice"),
            (json!([]), "no seed"),
            (json!(true), "true: expected"),
        ] {
            let error = seeds(&value).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn a_name_has_its_seed() {
        assert_eq!(seed_of_name("cat"), seed_of_name("cat"));
        assert_ne!(seed_of_name("cat"), seed_of_name("cat-2"));
        assert!(seed_of_name("cat") <= u64::from(u32::MAX));
    }
}
