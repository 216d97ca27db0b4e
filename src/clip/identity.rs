//! What a run must have in common with the one that it goes on from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that a clip's latents depend on, by the name that a user knows it by: settings as
/// text, weights and the picture as hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(Vec<(String, String)>);

/// The seed's name.
const SEED: &str = "--seed";
/// Characters of a value that a message shows.
const SHOWN: usize = 80;

/// A setting that two runs do not share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    what: String,
    then: Option<String>,
    now: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| match value {
            None => "nothing".to_owned(),
            Some(hash) if is_hash(hash) => hash.chars().take(12).collect(),
            Some(text) if text.chars().count() > SHOWN => {
                text.chars().take(SHOWN).chain(['…']).collect()
            }
            Some(text) => text.clone(),
        };
        let Self { what, then, now } = self;
        write!(f, "{what}: {} then, {} now", show(then), show(now))
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl<const N: usize> From<[(&str, String); N]> for Identity {
    fn from(items: [(&str, String); N]) -> Self {
        let items = items.into_iter();
        Self(
            items
                .map(|(what, value)| (what.to_owned(), value))
                .collect(),
        )
    }
}

impl Identity {
    /// Adds something.
    pub fn add(&mut self, what: impl Into<String>, value: String) {
        self.0.push((what.into(), value));
    }

    /// The same run with another seed, of which the low 32 bits count.
    pub fn set_seed(&mut self, seed: u64) {
        self.0.retain(|(what, _)| what != SEED);
        self.add(SEED, (seed & u64::from(u32::MAX)).to_string());
    }

    /// The seed.
    pub fn seed(&self) -> Option<u64> {
        self.get(SEED)?.parse().ok()
    }

    fn get(&self, what: &str) -> Option<&String> {
        let found = self.0.iter().find(|(name, _)| name == what);
        found.map(|(_, value)| value)
    }

    /// A hash of everything that `wanted` names.
    pub fn hash_of(&self, wanted: impl Fn(&str) -> bool) -> String {
        let items: Vec<_> = self.0.iter().filter(|(what, _)| wanted(what)).collect();
        blake3::hash(format!("{items:?}").as_bytes())
            .to_hex()
            .to_string()
    }

    /// How `now` differs from this one, the run then.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let names = now
            .0
            .iter()
            .chain(self.0.iter().filter(|(what, _)| now.get(what).is_none()));
        names
            .filter(|(what, _)| self.get(what) != now.get(what))
            .map(|(what, _)| Difference {
                what: what.clone(),
                then: self.get(what).cloned(),
                now: now.get(what).cloned(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_name() {
        let mut then = Identity::from([
            ("--steps", "12".to_owned()),
            ("the picture", "ab".repeat(32)),
            ("gone", "x".to_owned()),
        ]);
        then.set_seed(7);
        assert_eq!(then.differences(&then.clone()), []);
        let mut now = Identity::from([
            ("--steps", "12".to_owned()),
            ("the picture", "cd".repeat(32)),
            ("new", "y".repeat(100)),
        ]);
        // Only the low bits count.
        now.set_seed(7 + (1 << 32));
        let told: Vec<String> = then
            .differences(&now)
            .iter()
            .map(ToString::to_string)
            .collect();
        let long = format!("new: nothing then, {}… now", "y".repeat(80));
        let expected = [
            "the picture: abababababab then, cdcdcdcdcdcd now",
            long.as_str(),
            "gone: x then, nothing now",
        ];
        assert_eq!(told, expected);
        now.set_seed(8);
        assert_eq!(now.seed(), Some(8));
        let last = then.differences(&now);
        assert!(
            last.iter()
                .any(|d| d.to_string() == "--seed: 7 then, 8 now")
        );
    }
}
