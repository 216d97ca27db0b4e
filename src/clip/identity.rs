//! What a clip's content depends on, and the stages of making it.

use std::fmt;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::runtime::Tuning;

/// The flag of [`Settings::seed`](super::Settings::seed).
pub(super) const SEED: &str = "--seed";

/// The stages of making a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Encoding a text. Which text is not part of the stage: an encoding is found by its tokens.
    Text,
    /// Encoding the pictures.
    Image,
    /// Denoising the latents.
    Denoise,
    /// Decoding them.
    Decode,
    /// Writing the file, which changes no pixel.
    File,
}

/// Something that a clip depends on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// What a user calls it: a flag, or a few words.
    pub name: String,
    /// Its value; of weights and pictures a hash.
    pub value: String,
    /// The stages that it affects, apart from what they pass to later ones.
    pub stages: Vec<Stage>,
    /// Whether it follows from `--memory-budget` or tuning: it decides in which parts or ways something
    /// is computed, which changes last bits alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_budget: bool,
    /// The value as messages show it, with names on which nothing depends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<String>,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        let all = |item: &Self| (item.stages.clone(), item.by_budget);
        (&self.name, &self.value) == (&other.name, &other.value) && all(self) == all(other)
    }
}

impl Eq for Item {}

impl Item {
    /// An item.
    pub fn new(name: impl Into<String>, stages: &[Stage], value: impl ToString) -> Self {
        Self {
            name: name.into(),
            value: value.to_string(),
            stages: stages.to_vec(),
            by_budget: false,
            shown: None,
        }
    }

    /// Its value as messages show it.
    fn shown(&self) -> String {
        let value = &self.value;
        match &self.shown {
            Some(shown) => shown.clone(),
            None if is_hash(value) => value.chars().take(12).collect(),
            None if value.chars().count() > SHOWN => {
                value.chars().take(SHOWN).chain(['…']).collect()
            }
            None => value.clone(),
        }
    }

    /// What a measurement has chosen.
    pub fn tuning(tuning: &Tuning) -> Self {
        let stages = [Stage::Text, Stage::Image, Stage::Denoise, Stage::Decode];
        Self {
            by_budget: true,
            ..Self::new(TUNING, &stages, serde_json::json!(tuning))
        }
    }
}

/// Everything that a clip depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(Vec<Item>);

/// The item of a run that was computed in parts of several kinds.
const MIXED: &str = "parts after memory ran out (--memory-budget)";

/// The item of [`Item::tuning`].
const TUNING: &str = "the tuning (wan-i2v tune)";

/// Characters of a value that a message shows.
const SHOWN: usize = 80;

/// An item in which two runs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    name: String,
    saved: Option<Item>,
    now: Option<Item>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [saved, now] = self.values();
        write!(f, "{}: {saved} then, {now} now", self.name)
    }
}

impl Difference {
    /// What differs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The saved run's value and this one's, as messages show them.
    pub fn values(&self) -> [String; 2] {
        [&self.saved, &self.now]
            .map(|item| (item.as_ref()).map_or_else(|| "nothing".to_owned(), Item::shown))
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl From<Vec<Item>> for Identity {
    fn from(items: Vec<Item>) -> Self {
        let mut identity = Self(items);
        if let Some(seed) = identity.seed() {
            identity.set_seed(seed);
        }
        identity
    }
}

impl Identity {
    /// Takes another seed, of which the low 32 bits count.
    pub fn set_seed(&mut self, seed: u64) {
        let seed = (seed & u64::from(u32::MAX)).to_string();
        for item in self.0.iter_mut().filter(|item| item.name == SEED) {
            item.value.clone_from(&seed);
        }
    }

    /// The seed.
    pub fn seed(&self) -> Option<u64> {
        self.get(SEED)?.value.parse().ok()
    }

    /// What a measurement had chosen when the run began.
    pub fn tuning(&self) -> Tuning {
        let item = self.get(TUNING);
        let tuning = item.and_then(|item| serde_json::from_str(&item.value).ok());
        tuning.filter(Tuning::is_plausible).unwrap_or_default()
    }

    /// Has the run resume, and be resumed, in whatever parts: memory ran out, and so it cannot be computed in
    /// one kind of parts from its beginning to its end.
    pub fn mix_parts(&mut self) {
        // No pixel depends on the item itself.
        let item = Item::new(MIXED, &[Stage::File], "mixed");
        self.0.push(Item {
            by_budget: true,
            ..item
        });
    }

    /// Whether it is of the same clip, computed in the same parts or in whatever ones memory allowed.
    pub fn is_of_same(&self, other: &Self) -> bool {
        let mixed = self.is_mixed() || other.is_mixed();
        self == other || mixed && self.digest() == other.digest()
    }

    /// Whether it is computed in the same parts.
    pub fn has_parts_of(&self, other: &Self) -> bool {
        let parts = |run: &Self| -> Vec<Item> {
            let items = run.0.iter();
            let items = items.filter(|item| item.by_budget && item.name != MIXED);
            items.cloned().collect()
        };
        parts(self) == parts(other)
    }

    fn is_mixed(&self) -> bool {
        self.get(MIXED).is_some()
    }

    /// Everything, in order.
    pub fn items(&self) -> &[Item] {
        &self.0
    }

    fn get(&self, name: &str) -> Option<&Item> {
        self.0.iter().find(|item| item.name == name)
    }

    /// A hash of all items that affect `stage`.
    pub fn hash_of(&self, stage: Stage) -> String {
        self.hash(|item| item.stages.contains(&stage))
    }

    /// A hash of the clip, whatever the parts that it is computed in.
    pub fn digest(&self) -> String {
        self.hash(|item| !item.by_budget)
    }

    fn hash(&self, wanted: impl Fn(&Item) -> bool) -> String {
        let items = self.0.iter().filter(|item| wanted(item));
        let items: Vec<_> = items.map(|item| (&item.name, &item.value)).collect();
        let text = format!("{items:?}");
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Checks that `machine` makes the same clip as this one does, whatever the parts that each computes it
    /// in.
    ///
    /// # Errors
    /// Names what differs.
    pub(crate) fn check_rank(&self, machine: &str, here: &Self) -> Result<()> {
        let mut there = self.clone();
        there.mix_parts();
        let differences = there.differences(here);
        let lines = differences.iter().map(|difference| {
            let [there, here] = difference.values();
            format!("\n  {}: {there} there, {here} here", difference.name())
        });
        let lines: String = lines.collect();
        ensure!(
            lines.is_empty(),
            "{machine} makes another clip:{lines}\n\
             hint: give every machine the same flags, pictures and model"
        );
        Ok(())
    }

    /// The differences of `now` from this saved run, in what its latents and pixels depend on.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let gone = self.0.iter().filter(|item| now.get(&item.name).is_none());
        let pixels = now.0.iter().chain(gone);
        let mixed = self.is_mixed() || now.is_mixed();
        let pixels =
            pixels.filter(|item| item.stages != [Stage::File] && !(mixed && item.by_budget));
        pixels
            .map(|Item { name, .. }| Difference {
                name: name.clone(),
                saved: self.get(name).cloned(),
                now: now.get(name).cloned(),
            })
            .filter(|Difference { saved, now, .. }| {
                let [saved, now] = [saved, now].map(|item| item.as_ref().map(|item| &item.value));
                saved != now
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(items: &[(&str, Stage, &str)]) -> Identity {
        let items = items.iter();
        let items = items.map(|(name, stage, value)| Item::new(*name, &[*stage], value));
        Identity::from(items.collect::<Vec<_>>())
    }

    #[test]
    fn differences_have_names() {
        let picture = ["ab".repeat(32), "cd".repeat(32)];
        let saved = identity(&[
            ("--steps", Stage::Denoise, "12"),
            ("the picture", Stage::Image, &picture[0]),
            ("gone", Stage::Denoise, "x"),
            ("--fps", Stage::File, "16"),
            (SEED, Stage::Denoise, "7"),
        ]);
        assert_eq!(saved.differences(&saved.clone()), []);
        let long = "y".repeat(100);
        let mut now = identity(&[
            ("--steps", Stage::Denoise, "12"),
            ("the picture", Stage::Image, &picture[1]),
            ("new", Stage::Decode, &long),
            // No pixel depends on it.
            ("--fps", Stage::File, "24"),
            // Only the low bits count.
            (SEED, Stage::Denoise, &(7 + (1_u64 << 32)).to_string()),
        ]);
        let lines = |now: &Identity| -> Vec<String> {
            let differences = saved.differences(now);
            differences.iter().map(ToString::to_string).collect()
        };
        let long = format!("new: nothing then, {}… now", "y".repeat(80));
        let expected = [
            "the picture: abababababab then, cdcdcdcdcdcd now",
            long.as_str(),
            "gone: x then, nothing now",
        ];
        assert_eq!(lines(&now), expected);
        now.set_seed(8);
        assert_eq!(now.seed(), Some(8));
        assert!(lines(&now).contains(&"--seed: 7 then, 8 now".to_owned()));
    }

    #[test]
    fn a_run_keeps_the_tuning_that_it_began_with() {
        let untuned = identity(&[("--steps", Stage::Denoise, "4")]);
        assert_eq!(untuned.tuning(), Tuning::NONE);
        let chosen = Tuning {
            dense_above: Some(512),
            ..Tuning::NONE
        };
        let mut tuned = untuned.clone();
        tuned.0.push(Item::tuning(&chosen));
        assert_eq!(tuned.tuning(), chosen);
        // It is the same clip, but for last bits.
        assert_eq!(tuned.digest(), untuned.digest());
        assert_ne!(tuned.hash_of(Stage::Text), untuned.hash_of(Stage::Text));
        let differences = tuned.differences(&untuned);
        let expected = r#"the tuning (wan-i2v tune): {"dense_above":512} then, nothing now"#;
        assert_eq!(differences[0].to_string(), expected);
        // What nobody can have chosen is not taken from a file.
        let odd = Tuning {
            dense_above: Some(-1),
            ..Tuning::NONE
        };
        let mut damaged = untuned.clone();
        damaged.0.push(Item::tuning(&odd));
        assert_eq!(damaged.tuning(), Tuning::NONE);
        assert_eq!(damaged.differences(&untuned).len(), 1);
    }

    #[test]
    fn a_stage_has_a_hash_of_what_affects_it() {
        let one = identity(&[("--steps", Stage::Denoise, "4"), ("a", Stage::Image, "b")]);
        let other = identity(&[("--steps", Stage::Denoise, "5"), ("a", Stage::Image, "b")]);
        assert_eq!(one.hash_of(Stage::Image), other.hash_of(Stage::Image));
        assert_ne!(one.hash_of(Stage::Denoise), other.hash_of(Stage::Denoise));
        assert_ne!(one.digest(), other.digest());
        let mut parts = one.clone();
        let budget = Item::new("tiles", &[Stage::Decode], 4);
        parts.0.push(Item {
            by_budget: true,
            ..budget
        });
        assert_eq!(parts.digest(), one.digest());
        assert_eq!(one.differences(&parts).len(), 1);
        // Where memory has run out, they may be others, now and later.
        let mut mixed = one.clone();
        mixed.mix_parts();
        assert_eq!(mixed.digest(), one.digest());
        assert_eq!(parts.differences(&mixed), []);
        assert_eq!(mixed.differences(&parts), []);
        assert_eq!(mixed.differences(&other).len(), 1);
        assert!(one.has_parts_of(&mixed) && !one.has_parts_of(&parts));
        assert!(parts.is_of_same(&mixed) && mixed.is_of_same(&parts));
        assert!(!parts.is_of_same(&one) && !mixed.is_of_same(&other));
    }
}
