//! What is varied, and the runs that it makes.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};

/// The most runs of a sweep.
const MAX_RUNS: usize = 1000;
/// Characters of a run's name beyond which it is cut.
const MAX_NAME: usize = 80;

/// A setting and the values that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The flag's name, without hyphens in front.
    pub flag: String,
    /// Its values in order.
    pub values: Vec<String>,
}

impl FromStr for Axis {
    type Err = anyhow::Error;

    /// `steps=6,12,24`; where a `;` is among the values, it parts them instead of the comma, which
    /// is then part of a value: `guide-scale=2;3,4`. A range of whole numbers has both its ends:
    /// `seed=1..4`, `steps=10..40..10`.
    fn from_str(text: &str) -> Result<Self> {
        let Some((flag, values)) = text.split_once('=') else {
            bail!("expected a flag and its values, such as steps=6,12,24");
        };
        let flag = flag.trim().trim_start_matches('-').replace('_', "-");
        ensure!(!flag.is_empty(), "there is no flag before the =");
        let by = if values.contains(';') { ';' } else { ',' };
        let parts: Vec<Vec<String>> = values.split(by).map(range).collect::<Result<_>>()?;
        let values = parts.concat();
        let mut seen = BTreeSet::new();
        for value in &values {
            ensure!(
                !value.is_empty(),
                "{flag} has an empty value; expected values such as steps=6,12,24"
            );
            ensure!(seen.insert(value), "{flag} has the value {value} twice");
        }
        Ok(Self { flag, values })
    }
}

/// The values that one of them stands for: those of a range, or itself.
fn range(value: &str) -> Result<Vec<String>> {
    let value = value.trim();
    let mut numbers = value.splitn(3, "..").map(|number| {
        // As Rust writes that the end belongs to it.
        number.trim().trim_start_matches('=').parse::<u64>().ok()
    });
    let (Some(Some(first)), Some(Some(last))) = (numbers.next(), numbers.next()) else {
        return Ok(vec![value.to_owned()]);
    };
    let step = numbers.next().unwrap_or(Some(1));
    let Some(step) = step.filter(|step| *step > 0 && first <= last) else {
        bail!(
            "{value}: expected a range from the smaller number to the larger, such as 1..4 or 10..40..10"
        );
    };
    ensure!(
        (last - first) / step < MAX_RUNS as u64,
        "{value}: at most {MAX_RUNS} runs are made"
    );
    let count = (last - first) / step;
    Ok((0..=count)
        .map(|n| (first + n * step).to_string())
        .collect())
}

/// One combination of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What its files are called. It depends on the settings alone, so that a larger sweep finds
    /// the runs of a smaller one.
    pub name: String,
    /// Flags and values, in the order of the axes.
    pub settings: Vec<(String, String)>,
    /// Which value of each axis.
    pub place: Vec<usize>,
}

impl Run {
    /// The name of its clip.
    pub fn clip(&self) -> String {
        format!("{}.mp4", self.name)
    }

    /// The name of the file with its outcome.
    pub fn record(&self) -> String {
        format!("{}.json", self.name)
    }
}

/// All combinations; the last axis changes fastest.
///
/// # Errors
/// When there is no axis, a flag is there twice, or there are too many runs.
pub fn runs(axes: &[Axis]) -> Result<Vec<Run>> {
    ensure!(
        !axes.is_empty(),
        "nothing is varied\nhint: give --vary, such as --vary steps=6,12,24"
    );
    let mut seen = BTreeSet::new();
    for axis in axes {
        ensure!(
            seen.insert(&axis.flag),
            "--vary {0}: {0} is varied twice\nhint: name all of its values at once",
            axis.flag
        );
    }
    let counts = axes.iter().map(|axis| axis.values.len());
    let count = counts.fold(1_usize, usize::saturating_mul);
    ensure!(
        count <= MAX_RUNS,
        "--vary: {count} combinations; at most {MAX_RUNS} are made"
    );
    let run = |index: usize| {
        let mut rest = index;
        let mut place: Vec<usize> = axes
            .iter()
            .rev()
            .map(|axis| {
                let value = rest % axis.values.len();
                rest /= axis.values.len();
                value
            })
            .collect();
        place.reverse();
        let settings: Vec<(String, String)> = axes
            .iter()
            .zip(&place)
            .map(|(axis, &value)| (axis.flag.clone(), axis.values[value].clone()))
            .collect();
        Run {
            name: name(&settings),
            settings,
            place,
        }
    };
    Ok((0..count).map(run).collect())
}

/// A file name that tells the settings, with a hash of them where it cannot tell them whole.
fn name(settings: &[(String, String)]) -> String {
    let parts: Vec<String> = settings.iter().map(|(f, v)| format!("{f}-{v}")).collect();
    let whole = parts.join("_");
    let plain: String = whole
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '.' | ',' | '_' | '-' | '+' => c,
            _ => '-',
        })
        .take(MAX_NAME)
        .collect();
    if plain == whole {
        return plain;
    }
    let hash = blake3::hash(whole.as_bytes()).to_hex();
    format!("{plain}-{}", &hash[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        text.parse().unwrap()
    }

    #[test]
    fn values_are_parted_by_commas_or_semicolons() {
        assert_eq!(axis("--steps=6, 12").values, ["6", "12"]);
        assert_eq!(axis("guide_scale=2;3,4").flag, "guide-scale");
        assert_eq!(axis("guide_scale=2;3,4").values, ["2", "3,4"]);
        assert_eq!(axis("prompt=a = b;c").values, ["a = b", "c"]);
        for (text, expected) in [
            ("steps", "expected a flag and its values"),
            ("=3", "no flag before"),
            ("steps=", "empty value"),
            ("steps=3,,4", "empty value"),
            ("steps=3,4,3", "the value 3 twice"),
        ] {
            let error = text.parse::<Axis>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn ranges_have_both_ends() {
        assert_eq!(axis("seed=1..4").values, ["1", "2", "3", "4"]);
        assert_eq!(axis("seed=1..=2, 7").values, ["1", "2", "7"]);
        assert_eq!(axis("steps=10..40..10").values, ["10", "20", "30", "40"]);
        assert_eq!(axis("steps=10..35..10").values, ["10", "20", "30"]);
        assert_eq!(
            axis("seed=18446744073709551614..18446744073709551615")
                .values
                .len(),
            2
        );
        // No ranges of numbers.
        assert_eq!(axis("image=../a.png").values, ["../a.png"]);
        assert_eq!(axis("prompt=wait.. and..").values, ["wait.. and.."]);
        for (text, expected) in [
            ("seed=4..1", "from the smaller"),
            ("steps=1..4..0", "from the smaller"),
            ("steps=1..4..x", "from the smaller"),
            ("seed=0..18446744073709551615", "at most 1000 runs"),
            ("seed=1..3,2", "the value 2 twice"),
        ] {
            let error = text.parse::<Axis>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn runs_are_all_combinations_in_order() {
        let runs = runs(&[axis("steps=6,12"), axis("solver=unipc,euler,dpm++")]).unwrap();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let expected = [
            "steps-6_solver-unipc",
            "steps-6_solver-euler",
            "steps-6_solver-dpm++",
            "steps-12_solver-unipc",
            "steps-12_solver-euler",
            "steps-12_solver-dpm++",
        ];
        assert_eq!(names, expected);
        assert_eq!(runs[4].place, [1, 1]);
        assert_eq!(runs[4].settings[0], ("steps".into(), "12".into()));
    }

    #[test]
    fn names_are_safe_and_differ() {
        let runs = runs(&[axis("prompt=A cat/dog;a cat dog;../x")]).unwrap();
        let names: BTreeSet<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|name| !name.contains(['/', ' '])));
        let long = format!("prompt={}x;{}y", "a ".repeat(90), "a ".repeat(90));
        let names: BTreeSet<String> = super::runs(&[axis(&long)])
            .unwrap()
            .into_iter()
            .map(|run| run.name)
            .collect();
        assert_eq!(names.len(), 2);
        assert!(names.iter().all(|name| name.len() <= MAX_NAME + 9));
    }

    #[test]
    fn too_much_is_refused() {
        assert!(runs(&[]).is_err());
        let twice = runs(&[axis("seed=1"), axis("seed=2")]).unwrap_err();
        assert!(twice.to_string().contains("seed is varied twice"));
        let values = |flag: &str| {
            let values: Vec<String> = (0..40).map(|v| v.to_string()).collect();
            axis(&format!("{flag}={}", values.join(",")))
        };
        assert!(runs(&[values("seed"), values("steps")]).is_err());
    }
}
