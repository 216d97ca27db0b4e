//! How far two sets of tensors are apart: dumps, files, checkpoints in any layout; and two clips
//! ([`clips`]).
//!
//! [`Input`] finds out what a path is, `tensor` reads values a stretch at a time whatever they are
//! stored as, [`difference`] adds up, and [`stages`] knows the pipeline's order. Nothing larger than
//! a stretch is in memory, but for tensors whose axes lie in another order.

mod checkpoint;
pub mod clips;
pub mod difference;
mod input;
mod npy;
pub mod stages;
mod tensor;

pub use input::Input;
pub use tensor::{affine_tolerance, tolerance};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use self::difference::{Difference, measure};
use self::stages::stage;
use self::tensor::Tensor;
use crate::weights::PartName;
use crate::weights::store::TensorStore;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Two folders that `--dump` wrote, in the pipeline's order.
    Dumps,
    /// Tensors by the names that the files have.
    Files,
    /// Networks by their tensors' canonical names.
    Checkpoints,
}

/// Where something is missing or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// In the first.
    A,
    /// In the second.
    B,
    /// In both.
    Both,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::A => "A",
            Side::B => "B",
            Side::Both => "both",
        })
    }
}

/// A tensor that both have.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The part of the model, when several are compared.
    pub part: Option<PartName>,
    /// Its common name.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// How each side stores it, in a few letters.
    pub stored: [String; 2],
    /// How far apart they are.
    #[serde(flatten)]
    pub difference: Difference,
    /// The most that [`Difference::error`] may be.
    pub tolerance: f64,
    /// Whether it is no more, and what is not finite on one side is the same on the other.
    pub inside: bool,
}

/// Why a tensor cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// It is not there.
    Missing {
        /// Where.
        side: Side,
    },
    /// It is there, and no network of this kind has it.
    Unexpected {
        /// Where.
        side: Side,
    },
    /// The shapes differ.
    Misshapen {
        /// The first's.
        a: Vec<usize>,
        /// The second's.
        b: Vec<usize>,
    },
    /// It is not what the network has there.
    Wrong {
        /// Where.
        side: Side,
        /// What was found and what was expected.
        why: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Missing { side } => write!(f, "missing in {side}"),
            Problem::Unexpected { side } => {
                write!(f, "in {side}, where no network of this kind has it")
            }
            Problem::Misshapen { a, b } => write!(f, "{a:?} in A, {b:?} in B"),
            Problem::Wrong { side, why } => write!(f, "in {side}: {why}"),
        }
    }
}

/// A tensor that cannot be compared.
#[derive(Clone, Debug, Serialize)]
pub struct Unmatched {
    /// The part of the model, when several are compared.
    pub part: Option<PartName>,
    /// Its name: the common one, or the file's when it has no other.
    pub name: String,
    /// Why.
    #[serde(flatten)]
    pub problem: Problem,
}

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Departure {
    /// The first tensor, in the pipeline's order, that is not the same.
    pub name: String,
    /// What that is, and what to look at.
    pub stage: String,
}

/// How far two sets of tensors are apart.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What they are.
    pub what: What,
    /// Tensors that both have: of dumps in the pipeline's order, else the worst first.
    pub rows: Vec<Row>,
    /// Those that cannot be compared.
    pub unmatched: Vec<Unmatched>,
    /// Where two dumps part.
    pub departs: Option<Departure>,
    /// Whether every tensor is there twice and within its tolerance.
    pub inside: bool,
}

/// What a comparison tells of its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes that will be read, at most.
    Total(u64),
    /// So many more have been read.
    Read(u64),
}

/// Compares `a` with `b`, each tensor against `tolerance`, or by how it is stored
/// ([`tolerance()`]).
///
/// # Errors
/// When the two are no such pair, a file is damaged, or they have no tensor in common.
pub fn compare(
    a: &Input,
    b: &Input,
    tolerance: Option<f64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Comparison> {
    let mut pairs = Pairs {
        tolerance,
        rows: Vec::new(),
        unmatched: Vec::new(),
        progress,
    };
    let what = match (a, b) {
        (Input::Dump(a), Input::Dump(b)) => {
            let bytes = a.bytes()? + b.bytes()?;
            (pairs.progress)(Progress::Total(bytes));
            for name in union(a.names(), b.names()) {
                pairs.of_names(&name, a.read(&name)?, b.read(&name)?)?;
            }
            What::Dumps
        }
        (Input::Npy(a), Input::Npy(b)) => {
            let (a, b) = (a.tensor()?, b.tensor()?);
            (pairs.progress)(Progress::Total(a.bytes() + b.bytes()));
            let name = a.name.clone();
            pairs.pair(None, &name, &a, &b)?;
            What::Files
        }
        (Input::Tensors(a) | Input::Part(_, a), Input::Tensors(b))
        | (Input::Tensors(a), Input::Part(_, b)) => {
            pairs.of_stores(&TensorStore::open(a)?, &TensorStore::open(b)?)?;
            What::Files
        }
        _ => {
            checkpoint::compare(a, b, &mut pairs)?;
            What::Checkpoints
        }
    };
    ensure!(
        !pairs.rows.is_empty() || !pairs.unmatched.is_empty(),
        "there is no tensor in either"
    );
    Ok(conclude(what, pairs.rows, pairs.unmatched))
}

/// Sorts, and finds the verdict.
fn conclude(what: What, mut rows: Vec<Row>, unmatched: Vec<Unmatched>) -> Comparison {
    let inside = unmatched.is_empty() && rows.iter().all(|row| row.inside);
    let mut departs = None;
    if what == What::Dumps {
        rows.sort_by_cached_key(|row| stage(&row.name).order);
        let outside = rows.iter().filter(|row| !row.inside).map(|row| &row.name);
        let first = outside
            .chain(unmatched.iter().map(|tensor| &tensor.name))
            .min_by_key(|name| stage(name).order);
        departs = first.map(|name| Departure {
            name: name.clone(),
            stage: stage(name).about,
        });
    } else {
        rows.sort_by(|a, b| b.excess().total_cmp(&a.excess()));
    }
    Comparison {
        what,
        rows,
        unmatched,
        departs,
        inside,
    }
}

impl Row {
    /// The error as a multiple of the tolerance; infinite when what is not finite differs.
    pub fn excess(&self) -> f64 {
        let error = self.difference.error;
        if self.difference.unequal > 0 {
            f64::INFINITY
        } else if error == 0.0 {
            0.0
        } else {
            error / self.tolerance
        }
    }
}

/// A comparison under way.
struct Pairs<'a> {
    tolerance: Option<f64>,
    rows: Vec<Row>,
    unmatched: Vec<Unmatched>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Pairs<'_> {
    fn unmatched(&mut self, part: Option<PartName>, name: &str, problem: Problem) {
        self.unmatched.push(Unmatched {
            part,
            name: name.to_owned(),
            problem,
        });
    }

    /// Compares two tensors that are one by their name.
    fn pair(&mut self, part: Option<PartName>, name: &str, a: &Tensor, b: &Tensor) -> Result<()> {
        if a.shape != b.shape {
            let (a, b) = (a.shape.clone(), b.shape.clone());
            self.unmatched(part, name, Problem::Misshapen { a, b });
            return Ok(());
        }
        let tolerance = self.tolerance.unwrap_or(a.tolerance.max(b.tolerance));
        let difference = measure(a, b, tolerance)?;
        (self.progress)(Progress::Read(a.bytes() + b.bytes()));
        self.rows.push(Row {
            part,
            name: name.to_owned(),
            shape: a.shape.clone(),
            stored: [a.label.clone(), b.label.clone()],
            inside: difference.unequal == 0 && difference.error <= tolerance,
            difference,
            tolerance,
        });
        Ok(())
    }

    /// As [`Self::pair`], where either may be missing.
    fn of_names(&mut self, name: &str, a: Option<Tensor<'_>>, b: Option<Tensor<'_>>) -> Result<()> {
        let side = match (a, b) {
            (Some(a), Some(b)) => return self.pair(None, name, &a, &b),
            (None, Some(_)) => Side::A,
            (Some(_), None) => Side::B,
            (None, None) => Side::Both,
        };
        self.unmatched(None, name, Problem::Missing { side });
        Ok(())
    }

    /// Two files' tensors by the names that they have there.
    fn of_stores(&mut self, a: &TensorStore, b: &TensorStore) -> Result<()> {
        let names = union(a.entries().keys().cloned(), b.entries().keys().cloned());
        (self.progress)(Progress::Total(a.file_bytes() + b.file_bytes()));
        let of = |store: &'_ TensorStore, name: &str| store.entries().contains_key(name);
        if !names.iter().any(|name| of(a, name) && of(b, name)) {
            bail!(
                "no tensor of {} has the name of one of {} ({}; {}), and they are not two parts \
                 of one kind whose names this program could match",
                a.location(),
                b.location(),
                examples(a),
                examples(b)
            );
        }
        for name in names {
            let [a, b] = [a, b].map(|store| Tensor::stored(store, &name));
            self.of_names(&name, a, b)?;
        }
        Ok(())
    }
}

/// Some of the names in a file.
fn examples(store: &TensorStore) -> String {
    let names: Vec<&str> = store.entries().keys().map(String::as_str).collect();
    match names.as_slice() {
        [] => "it holds none".into(),
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{first} to {last}"),
    }
}

/// Names that either has, the first's first.
fn union(a: impl IntoIterator<Item = String>, b: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = a.into_iter().collect();
    let known: std::collections::HashSet<String> = names.iter().cloned().collect();
    names.extend(b.into_iter().filter(|name| !known.contains(name)));
    names
}
