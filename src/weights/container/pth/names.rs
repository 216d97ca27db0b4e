//! The tensors of a pickle by name.

use std::borrow::Cow;
use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};

use super::pickle::{Pickle, Tensor, Value};

/// Containers within containers at most.
const MAX_DEPTH: usize = 8;
/// Bytes of a tensor's name at most.
const MAX_NAME: usize = 512;
/// Tensors of a file at most.
const MAX_TENSORS: usize = 1 << 16;
/// Entries looked at altogether at most. Needed because one container may be found in many
/// places, which multiplies at every level.
const MAX_ENTRIES: usize = 1 << 20;

/// Every tensor with its name, in the order of the dictionaries.
///
/// # Errors
/// When the pickle holds no dictionary of tensors, or one that is past the limits.
pub(super) fn collect<'p>(pickle: &'p Pickle<'p>) -> Result<Vec<(String, &'p Tensor)>> {
    if !matches!(pickle.root, Value::Dict(_)) {
        bail!(
            "the checkpoint is {}; expected a dictionary of tensors",
            pickle.root.kind()
        );
    }
    let mut walk = Walk {
        pickle,
        found: Vec::new(),
        entries: 0,
    };
    let mut wrapper = None;
    let mut holders = 0;
    for (key, value) in walk.children(pickle.root)? {
        let before = walk.found.len();
        walk.visit(&key, value, 1)?;
        if walk.found.len() > before {
            holders += 1;
            wrapper = matches!(value, Value::Dict(_)).then_some(key);
        }
    }
    let mut found = walk.found;
    ensure!(
        !found.is_empty(),
        "the checkpoint holds no tensors; expected a dictionary of tensors"
    );
    if let (1, Some(key)) = (holders, wrapper) {
        for (name, _) in &mut found {
            name.drain(..=key.len());
        }
    }
    Ok(found)
}

struct Walk<'p> {
    pickle: &'p Pickle<'p>,
    found: Vec<(String, &'p Tensor)>,
    entries: usize,
}

impl<'p> Walk<'p> {
    fn visit(&mut self, name: &str, value: Value<'p>, depth: usize) -> Result<()> {
        if let Value::Tensor(tensor) = value {
            ensure!(
                self.found.len() < MAX_TENSORS,
                "more than {MAX_TENSORS} tensors; expected fewer"
            );
            self.found
                .push((name.to_owned(), &self.pickle.tensors[tensor]));
            return Ok(());
        }
        for (key, value) in self.children(value).with_context(|| name.to_owned())? {
            ensure!(
                depth < MAX_DEPTH,
                "{name}: more than {MAX_DEPTH} containers within each other"
            );
            let length = name.len() + 1 + key.len();
            check_length(length)?;
            self.visit(&format!("{name}.{key}"), value, depth + 1)?;
        }
        Ok(())
    }

    /// The entries of a container that are tensors or containers themselves.
    fn children(&mut self, value: Value<'p>) -> Result<Vec<(Cow<'p, str>, Value<'p>)>> {
        let values = match value {
            Value::Dict(dict) => return self.dict_children(&self.pickle.dicts[dict]),
            Value::List(list) => self.pickle.lists[list].as_slice(),
            Value::Tuple(span) => self.pickle.items(span),
            _ => return Ok(Vec::new()),
        };
        self.count(values.len())?;
        Ok(values
            .iter()
            .enumerate()
            .filter(|(_, value)| value.may_hold_tensors())
            .map(|(i, value)| (Cow::Owned(i.to_string()), *value))
            .collect())
    }

    fn dict_children(
        &mut self,
        entries: &'p [(Value<'p>, Value<'p>)],
    ) -> Result<Vec<(Cow<'p, str>, Value<'p>)>> {
        self.count(entries.len())?;
        let mut children = Vec::new();
        let mut keys = HashSet::new();
        for (key, value) in entries {
            let name = match key {
                Value::Str(name) => Cow::Borrowed(*name),
                Value::Int(number) => Cow::Owned(number.to_string()),
                _ if !value.may_hold_tensors() => continue,
                other => bail!("a key is {}; expected a string or an integer", other.kind()),
            };
            // PyTorch would let the last one win; a file that says two things is not to be trusted.
            ensure!(
                keys.insert(name.clone()),
                "the name {:?} stands in a dictionary twice; expected it once",
                name.chars().take(100).collect::<String>()
            );
            if value.may_hold_tensors() {
                ensure!(!name.is_empty(), "an entry has an empty name");
                check_length(name.len())?;
                children.push((name, *value));
            }
        }
        Ok(children)
    }

    fn count(&mut self, entries: usize) -> Result<()> {
        self.entries = self.entries.saturating_add(entries);
        ensure!(
            self.entries <= MAX_ENTRIES,
            "more than {MAX_ENTRIES} entries; no model has so many"
        );
        Ok(())
    }
}

fn check_length(length: usize) -> Result<()> {
    ensure!(
        length <= MAX_NAME,
        "a name of {length} bytes; expected at most {MAX_NAME}"
    );
    Ok(())
}
