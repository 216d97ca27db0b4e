//! A prompt as a flag gives it.

use std::fmt;

/// Where a prompt comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PromptSource {
    /// The flag's value, `@@` for a leading `@`.
    Text(String),
    /// Standard input, `-`.
    Stdin,
    /// A file, `@PATH`.
    File(String),
}

impl From<String> for PromptSource {
    fn from(value: String) -> Self {
        match value.strip_prefix('@') {
            None if value == "-" => Self::Stdin,
            None => Self::Text(value),
            Some(text) if text.starts_with('@') => Self::Text(text.to_owned()),
            Some(path) => Self::File(path.to_owned()),
        }
    }
}

/// The value of the flag.
impl fmt::Display for PromptSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // White space at the ends does not count.
            Self::Text(text) if text == "-" => f.write_str(" -"),
            Self::Text(text) if text.starts_with('@') => write!(f, "@{text}"),
            Self::Text(text) => f.write_str(text),
            Self::Stdin => f.write_str("-"),
            Self::File(path) => write!(f, "@{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_were_written() {
        for prompt in ["a cat", "@cat", "@@cat", "", "a@b", "@", "-x", " - "] {
            let text = PromptSource::Text(prompt.to_owned());
            assert_eq!(PromptSource::from(text.to_string()), text);
        }
        let hyphen = PromptSource::Text("-".into()).to_string();
        assert_eq!(PromptSource::from(hyphen), PromptSource::Text(" -".into()));
    }
}
