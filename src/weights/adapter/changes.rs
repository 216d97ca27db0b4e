//! What an adapter's tensors make of one module's, by name and shape.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use regex::Regex;
use serde::Serialize;
use serde_json::Value;

use super::keys::{self, Slot};
use crate::sampling::Expert;
use crate::util::show::Show;
use crate::weights::store::TensorStore;

/// The header's key in which diffusers keeps PEFT's configuration.
const PEFT: &str = "lora_adapter_metadata";
/// Its key for the alpha of all modules.
const ALPHA: &str = "lora_alpha";
/// Its key for alphas of single modules. Ranks, which have a table too, are those of the tensors.
const ALPHA_PATTERN: &str = "alpha_pattern";

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// A product of two narrow matrices.
    Lora,
    /// The same, and a norm of its own for each row or column.
    Dora,
    /// The elementwise product of two of them.
    Loha,
    /// The Kronecker product of two matrices.
    Lokr,
    /// The change itself.
    Full,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Form::Lora => "LoRA",
            Form::Dora => "DoRA",
            Form::Loha => "LoHa",
            Form::Lokr => "LoKr",
            Form::Full => "whole changes",
        })
    }
}

/// A matrix by the names of its tensors: whole, or the product of two.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Factor {
    Whole(String),
    Product(String, String),
}

/// The change, without its scale.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// `up @ down`.
    Low { up: String, down: String },
    /// `(a b) * (c d)`, elementwise.
    Hada([(String, String); 2]),
    /// The Kronecker product.
    Kron([Factor; 2]),
    /// Itself.
    Full(String),
}

/// A change of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) what: What,
    /// The change's scale besides the adapter's strength.
    pub(super) scale: f64,
    /// DoRA's norms.
    pub(super) magnitude: Option<String>,
    rank: Option<usize>,
}

impl Change {
    pub(super) fn form(&self) -> Form {
        match (&self.what, &self.magnitude) {
            (_, Some(_)) => Form::Dora,
            (What::Low { .. }, _) => Form::Lora,
            (What::Hada(_), _) => Form::Loha,
            (What::Kron(_), _) => Form::Lokr,
            (What::Full(_), _) => Form::Full,
        }
    }

    pub(super) fn rank(&self) -> Option<usize> {
        self.rank
    }
}

/// Whether a file says of each tensor which expert's it is.
pub(super) fn marks(store: &TensorStore) -> bool {
    let says = |name: &String| name.starts_with("transformer_2.") && keys::is_key(name);
    store.entries().keys().any(says)
}

/// What the tensors of a module change, by the canonical names of what they change.
pub(super) fn of_module(
    store: &TensorStore,
    module: &str,
    slots: &BTreeMap<Slot, String>,
    shapes: &BTreeMap<&str, &[i32]>,
    peft: &Peft,
) -> Result<Vec<(String, Change)>> {
    let reader = Reader {
        store,
        peft,
        module,
        slots,
    };
    let mut changes = Vec::new();
    let weight = match shapes.contains_key(module) {
        true => module.to_owned(),
        false => format!("{module}.weight"),
    };
    let dimensions = |tensor: &str| -> Result<Vec<usize>> {
        let shape = shapes.get(tensor).with_context(|| {
            let first = slots.values().next().map_or("", String::as_str);
            format!(
                "{} changes {tensor}, which this model has not",
                first.shown()
            )
        })?;
        Ok(shape.iter().map(|&d| d as usize).collect())
    };
    let full = |name: &String, of: &str, scale| -> Result<Change> {
        reader.check_full(name, &dimensions(of)?)?;
        Ok(Change {
            what: What::Full(name.clone()),
            scale,
            magnitude: None,
            rank: None,
        })
    };
    let bias = format!("{module}.bias");
    for (slot, of) in [
        (Slot::Weight, &weight),
        (Slot::Modulation, &weight),
        (Slot::Bias, &bias),
    ] {
        if let Some(name) = slots.get(&slot) {
            changes.push((of.clone(), full(name, of, 1.0)?));
        }
    }
    if let Some(change) = reader.factored(&weight, &dimensions)? {
        if let Some(name) = slots.get(&Slot::UpBias) {
            changes.push((bias.clone(), full(name, &bias, change.scale)?));
        }
        changes.push((weight, change));
    }
    Ok(changes)
}

/// Reads one module's tensors.
struct Reader<'a> {
    store: &'a TensorStore,
    peft: &'a Peft,
    module: &'a str,
    slots: &'a BTreeMap<Slot, String>,
}

impl Reader<'_> {
    /// The change that is a product, of whatever kind; none when there is none.
    fn factored(
        &self,
        weight: &str,
        dimensions: &dyn Fn(&str) -> Result<Vec<usize>>,
    ) -> Result<Option<Change>> {
        if let Some(name) = self.slots.get(&Slot::Unsupported) {
            bail!(
                "{}: found a decomposition of a convolution; expected two factors",
                name.shown()
            );
        }
        let has = |slots: &[Slot]| slots.iter().any(|slot| self.slots.contains_key(slot));
        let low = has(&[Slot::Down, Slot::Up]);
        let hada = (0..2).any(|i| has(&[Slot::Hada([i, 0]), Slot::Hada([i, 1])]));
        let kron = (0..2).any(|i| {
            has(&[
                Slot::Kron(i),
                Slot::KronSide([i, 0]),
                Slot::KronSide([i, 1]),
            ])
        });
        let kinds = [low, hada, kron].iter().filter(|is| **is).count();
        ensure!(
            kinds < 2,
            "{}: found tensors of several kinds of adapters; expected one",
            self.module
        );
        if kinds == 0 {
            for slot in [Slot::Alpha, Slot::Magnitude, Slot::UpBias] {
                if let Some(name) = self.slots.get(&slot) {
                    bail!("{}: found it alone; expected what it scales", name.shown());
                }
            }
            return Ok(None);
        }
        let shape = dimensions(weight)?;
        let (outputs, inputs) = match shape.split_first() {
            Some((outputs, rest)) => (*outputs, rest.iter().product()),
            None => (1, 1),
        };
        let (what, rank) = if low {
            let (up, down) = (self.need(Slot::Up)?, self.need(Slot::Down)?);
            let rank = self.product(&up, &down, outputs, inputs)?;
            (What::Low { up, down }, Some(rank))
        } else if hada {
            let mut sides = Vec::new();
            let mut rank = 0;
            for i in 0..2 {
                let (a, b) = (
                    self.need(Slot::Hada([i, 0]))?,
                    self.need(Slot::Hada([i, 1]))?,
                );
                rank = self.product(&a, &b, outputs, inputs)?;
                sides.push((a, b));
            }
            let [first, second] = <[_; 2]>::try_from(sides)
                .map_err(|_| anyhow::anyhow!("{}: two products", self.module))?;
            (What::Hada([first, second]), Some(rank))
        } else {
            self.kronecker(outputs, inputs)?
        };
        let alpha = self.alpha()?;
        let scale = match (alpha, rank) {
            (Some((alpha, root)), Some(rank)) => match root {
                true => alpha / (rank as f64).sqrt(),
                false => alpha / rank as f64,
            },
            _ => 1.0,
        };
        let magnitude = self.slots.get(&Slot::Magnitude).cloned();
        if let Some(name) = &magnitude {
            let count = self.elements(name);
            ensure!(
                count == outputs || count == inputs,
                "{} has {count} values; expected {outputs}, or {inputs}",
                name.shown()
            );
        }
        Ok(Some(Change {
            what,
            scale,
            magnitude,
            rank,
        }))
    }

    fn kronecker(&self, outputs: usize, inputs: usize) -> Result<(What, Option<usize>)> {
        let mut rank = None;
        let mut sides = [1_usize, 1];
        let mut factors = Vec::new();
        for i in 0..2 {
            let (factor, [rows, columns]) = match self.slots.get(&Slot::Kron(i)) {
                Some(name) => (Factor::Whole(name.clone()), self.matrix(name)?),
                None => {
                    let (a, b) = (
                        self.need(Slot::KronSide([i, 0]))?,
                        self.need(Slot::KronSide([i, 1]))?,
                    );
                    let (rows, columns) = (self.matrix(&a)?[0], self.matrix(&b)?[1]);
                    rank = Some(self.product(&a, &b, rows, columns)?);
                    (Factor::Product(a, b), [rows, columns])
                }
            };
            sides = [
                sides[0].saturating_mul(rows),
                sides[1].saturating_mul(columns),
            ];
            factors.push(factor);
        }
        ensure!(
            sides == [outputs, inputs],
            "{}: its factors make {sides:?}; expected [{outputs}, {inputs}]",
            self.module
        );
        let [first, second] = <[_; 2]>::try_from(factors)
            .map_err(|_| anyhow::anyhow!("{}: two factors", self.module))?;
        Ok((What::Kron([first, second]), rank))
    }

    fn need(&self, slot: Slot) -> Result<String> {
        let found = self.slots.get(&slot).cloned();
        found.with_context(|| {
            let first = self.slots.values().next().map_or("", String::as_str);
            format!(
                "{}: found without the other factor of its product\nhint: download it again",
                first.shown()
            )
        })
    }

    fn shape(&self, name: &str) -> &[usize] {
        let entry = self.store.entries().get(name);
        entry.map_or(&[], |entry| entry.shape.as_slice())
    }

    fn elements(&self, name: &str) -> usize {
        self.shape(name).iter().product()
    }

    /// Rows and columns of a tensor, its axes behind the first taken together.
    fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        match self.shape(name).split_first() {
            Some((rows, rest)) if !rest.is_empty() => Ok([*rows, rest.iter().product()]),
            _ => bail!(
                "{} has shape {:?}; expected a matrix",
                name.shown(),
                self.shape(name)
            ),
        }
    }

    /// Checks `left` `[outputs, rank]` and `right` `[rank, inputs]`; returns the rank.
    fn product(&self, left: &str, right: &str, outputs: usize, inputs: usize) -> Result<usize> {
        let ([rows, rank], [other, columns]) = (self.matrix(left)?, self.matrix(right)?);
        ensure!(
            (rows, columns) == (outputs, inputs),
            "{} and {} make a change of [{rows}, {columns}]; this model's layer is [{outputs}, \
             {inputs}]: the adapter was made for another model",
            left.shown(),
            right.shown()
        );
        ensure!(
            rank == other && rank > 0 && rank <= outputs.saturating_add(inputs),
            "{} has shape {:?} and {} has {:?}; expected the same rank, at most {}",
            left.shown(),
            self.shape(left),
            right.shown(),
            self.shape(right),
            outputs.saturating_add(inputs)
        );
        for name in [left, right] {
            self.check_type(name)?;
        }
        Ok(rank)
    }

    fn check_type(&self, name: &str) -> Result<()> {
        let entry = self.store.entries().get(name);
        let encoding = entry.map(|entry| entry.encoding);
        ensure!(
            encoding.is_some_and(|encoding| encoding.is_float()),
            "{} is stored as {}; expected real numbers",
            name.shown(),
            encoding.map_or("nothing", |encoding| encoding.name())
        );
        Ok(())
    }

    fn check_full(&self, name: &str, shape: &[usize]) -> Result<()> {
        let long =
            |shape: &[usize]| -> Vec<usize> { shape.iter().copied().filter(|&d| d != 1).collect() };
        ensure!(
            long(self.shape(name)) == long(shape),
            "{} has shape {:?}; this model's is {shape:?}: the adapter was made for another model",
            name.shown(),
            self.shape(name)
        );
        self.check_type(name)
    }

    /// The module's alpha, and whether it is over the rank's root: its own tensor, or what PEFT's
    /// configuration in the header says.
    fn alpha(&self) -> Result<Option<(f64, bool)>> {
        let (alpha, root, name) = match self.slots.get(&Slot::Alpha) {
            Some(name) => {
                ensure!(
                    self.elements(name) == 1,
                    "{} has shape {:?}; expected one number",
                    name.shown(),
                    self.shape(name)
                );
                let mut value = [0.0];
                let entry = self.store.entries().get(name).context("alpha")?;
                self.check_type(name)?;
                entry
                    .encoding
                    .decode(self.store.bytes(entry), &mut value)
                    .with_context(|| name.shown().to_string())?;
                (f64::from(value[0]), false, name.as_str())
            }
            None => match self.configured() {
                Some((alpha, root)) => (alpha, root, PEFT),
                None => return Ok(None),
            },
        };
        ensure!(
            alpha.is_finite() && alpha != 0.0,
            "{} is {alpha}, which makes the adapter nothing; expected a number other than 0",
            name.shown()
        );
        Ok(Some((alpha, root)))
    }

    /// What PEFT's configuration says of the module, by its name in the file.
    fn configured(&self) -> Option<(f64, bool)> {
        let (path, expert) = keys::bare(keys::split(self.slots.values().next()?)?.0);
        self.peft.alpha(path, expert)
    }
}

/// PEFT's configuration, which diffusers keeps in the header.
#[derive(Debug, Default)]
pub(super) struct Peft {
    json: Value,
    /// By the key in the configuration: patterns of modules' names with their alphas, in the order in
    /// which they count. diffusers sorts them, as this does.
    patterns: Vec<(String, Vec<(Regex, f64)>)>,
}

impl Peft {
    /// Of a file's header.
    ///
    /// # Errors
    /// Names a pattern that is no regular expression, or says no number.
    pub(super) fn of(store: &TensorStore) -> Result<Self> {
        let Some(text) = store.metadata().get(PEFT) else {
            return Ok(Self::default());
        };
        let place = || format!("{}: {PEFT} in its header", store.location());
        let json = serde_json::from_str::<Value>(text);
        let json = json.map_err(|error| anyhow!("{}: {}", place(), error.to_string().shown()))?;
        let table = json.as_object();
        let table = table.with_context(|| format!("{}: expected a JSON object", place()))?;
        for (key, value) in table.iter().filter(|(key, _)| key.ends_with(ALPHA)) {
            ensure!(
                value.is_number() || value.is_null(),
                "{}: {} is {value}; expected a number",
                place(),
                key.shown()
            );
        }
        let tables = json.as_object().into_iter().flatten();
        let tables = tables.filter(|(key, _)| key.ends_with(ALPHA_PATTERN));
        let patterns = tables.map(|(key, table)| {
            let all = table.as_object().into_iter().flatten();
            let all =
                all.map(|(pattern, alpha)| Ok((module_pattern(pattern)?, number(pattern, alpha)?)));
            Ok((key.clone(), all.collect::<Result<_>>()?))
        });
        Ok(Self {
            patterns: patterns.collect::<Result<_>>()?,
            json,
        })
    }

    /// The alpha of a module, and whether it is over the rank's root.
    fn alpha(&self, path: &str, expert: Option<Expert>) -> Option<(f64, bool)> {
        // diffusers puts the component in front.
        let component = match expert {
            Some(Expert::LowNoise) => "transformer_2.",
            _ => "transformer.",
        };
        let keys = |key: &str| [format!("{component}{key}"), key.to_owned()];
        let value = |key: &str| keys(key).iter().find_map(|key| self.json.get(key));
        let table = |key: &String| self.patterns.iter().find(|(own, _)| own == key);
        let table = keys(ALPHA_PATTERN).iter().find_map(table);
        let own = table.and_then(|(_, all)| all.iter().find(|(name, _)| name.is_match(path)));
        let alpha = match own {
            Some((_, alpha)) => *alpha,
            None => value("lora_alpha")?.as_f64()?,
        };
        let root = value("use_rslora").and_then(Value::as_bool);
        Some((alpha, root.unwrap_or(false)))
    }
}

/// Modules that a key of `alpha_pattern` means: those whose name, or its end behind a dot, it matches
/// as a regular expression (huggingface/peft, `utils/other.py`, `get_pattern_key`).
fn module_pattern(key: &str) -> Result<Regex> {
    let pattern = Regex::new(&format!(r"^(.*\.)?({key})$"));
    // What the crate says of it has several lines.
    pattern.ok().with_context(|| {
        format!(
            "{PEFT}: {ALPHA_PATTERN}: {} cannot be read; expected a regular expression of modules' names",
            key.shown()
        )
    })
}

fn number(pattern: &str, alpha: &Value) -> Result<f64> {
    alpha.as_f64().with_context(|| {
        format!(
            "{PEFT}: {ALPHA_PATTERN}: {} is {alpha}; expected a number",
            pattern.shown()
        )
    })
}
