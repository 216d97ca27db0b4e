//! Why clap refuses a flag or its value, in this program's words.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use crate::util::suggest::nearest;

/// What is wrong with a flag's value, in a sentence, with a hint where another value may be meant.
pub(crate) fn reason(error: &Error) -> String {
    let flag = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => format!("unknown flag {}", flag),
        ErrorKind::ValueValidation => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            format!("invalid value '{value}' for '{flag}': {why}")
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("'{flag}' has no value"),
        ErrorKind::InvalidValue => {
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(known)) => known.as_slice(),
                _ => &[],
            };
            let hint = nearest(&value, known.iter().map(String::as_str));
            let hint = hint.map(|known| format!("\nhint: did you mean {known}?"));
            format!(
                "invalid value '{value}' for '{flag}'; expected one of {}{}",
                known.join(", "),
                hint.unwrap_or_default()
            )
        }
        ErrorKind::MissingRequiredArgument => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => {
                let verb = if missing.len() == 1 { "is" } else { "are" };
                format!("{} {verb} missing", missing.join(" and "))
            }
            _ => lines(error),
        },
        _ => lines(error),
    }
}

/// Clap's own words in a line, without its advice.
fn lines(error: &Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.take_while(|line| {
        let ends = ["Usage:", "For more", "tip:"];
        !ends.iter().any(|end| line.starts_with(end))
    });
    let lines: Vec<&str> = lines.collect();
    lines.join("; ").trim_start_matches("error: ").to_owned()
}

/// What clap says of an error under a heading.
pub(crate) fn context(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}
