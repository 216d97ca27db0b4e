//! The config file.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::util::show::Show;
use crate::util::suggest;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Number, Value};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A config file: tables and what is not in one.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The settings outside of tables.
    pub(crate) top: Map<String, Value>,
    /// The tables, by name.
    pub(crate) sections: BTreeMap<String, Map<String, Value>>,
}

/// Where it is looked for: in `XDG_CONFIG_HOME`, or `~/.config`.
fn usual_path() -> Option<PathBuf> {
    let named = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    // The XDG base directory specification has relative paths ignored.
    let folder = named.filter(|path| path.is_absolute());
    let folder = folder.or_else(|| Some(env::home_dir()?.join(".config")))?;
    Some(folder.join("wan-i2v/config.toml"))
}

impl ConfigFile {
    /// Reads the file at `path`, or else the usual one if it is there.
    ///
    /// # Errors
    /// When it cannot be read or is not TOML: names the file and the line.
    pub(crate) fn find(path: Option<OsString>) -> Result<Option<Self>> {
        if let Some(path) = path {
            return Self::read(PathBuf::from(path)).map(Some);
        }
        match usual_path() {
            Some(path) if exists(&path) => Self::read(path).map(Some),
            _ => Ok(None),
        }
    }

    fn read(path: PathBuf) -> Result<Self> {
        let text = text(&path).with_context(|| format!("cannot read {}", path.shown()))?;
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let offset = error.span().unwrap_or_default().start;
                let line = text[..offset.min(text.len())].matches('\n').count() + 1;
                bail!("{}, line {line}: {}", path.shown(), error.message())
            }
        };
        let (mut top, mut sections) = (Map::new(), BTreeMap::new());
        for (key, value) in table {
            match json(value) {
                Value::Object(section) => drop(sections.insert(key, section)),
                value => drop(top.insert(key, value)),
            }
        }
        Ok(Self {
            path,
            top,
            sections,
        })
    }
}

/// Whether something exists there: the reader reports what cannot be read.
fn exists(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

fn text(path: &Path) -> Result<String> {
    let file = suggest::open_regular(path)?;
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content)?;
    ensure!(
        content.len() as u64 <= MAX_FILE,
        "it is larger than 1 MiB; expected a config file"
    );
    String::from_utf8(content).context("it is not UTF-8 text")
}

/// The same in JSON. Numbers that JSON does not have, and dates, are their text, which the flags'
/// own parsers then refuse.
pub(super) fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => {
            let known = Number::from_f64(number).map(Value::Number);
            known.unwrap_or_else(|| Value::String(number.to_string()))
        }
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json).collect()),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(k, v)| (k, json(v))).collect())
        }
    }
}
