//! Names of outputs with places for what tells clips apart.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};

/// What a name may have in it.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// The job's name.
    pub name: &'a str,
    /// The seed.
    pub seed: u64,
    /// The job's number in its file, from 1.
    pub index: usize,
    /// Digits that it is written with.
    pub digits: usize,
    /// The number of the seed among the job's, from 1.
    pub take: usize,
    /// The picture's name, without its folder and extension.
    pub image: &'a str,
}

/// The fields by their names in a template.
const KNOWN: &str = "{name}, {seed}, {index}, {take} and {image}";

impl Fields<'_> {
    /// `template` with `{name}`, `{seed}`, `{index}`, `{take}` and `{image}` filled in; `{{` and
    /// `}}` stand for braces.
    ///
    /// # Errors
    /// Names a field that there is not, or a brace that stands alone.
    pub fn fill(&self, template: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            filled += before;
            if let Some(after) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                filled.push_str(&from[..1]);
                rest = after;
                continue;
            }
            let Some((field, after)) = from.strip_prefix('{').and_then(|f| f.split_once('}'))
            else {
                bail!("{template:?}: a brace stands alone; write {{{{ or }}}} for a brace");
            };
            filled += &match field {
                "name" => self.name.to_owned(),
                "seed" => self.seed.to_string(),
                "index" => format!("{:0digits$}", self.index, digits = self.digits),
                "take" => self.take.to_string(),
                "image" => self.image.to_owned(),
                _ => bail!("{template:?}: there is no field {{{field}}}; there are {KNOWN}"),
            };
            rest = after;
        }
        Ok(filled + rest)
    }

    /// [`Self::fill`] as a path that stays in `folder`.
    ///
    /// # Errors
    /// As there, and when it would lead out of it.
    pub fn path(&self, template: &str, folder: &Path) -> Result<PathBuf> {
        let filled = self.fill(template)?;
        let path = Path::new(&filled);
        let stays = |component| matches!(component, Component::Normal(_) | Component::CurDir);
        ensure!(
            !filled.is_empty() && path.components().all(stays),
            "{filled:?}: expected a name in the batch's folder"
        );
        Ok(folder.join(path))
    }
}

/// Checks that a job's name can be a part of a file's.
///
/// # Errors
/// When it cannot.
pub fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_control() || matches!(c, '/' | '\\');
    ensure!(
        !name.is_empty() && !name.starts_with('.') && !name.contains(bad),
        "name {name:?}: expected what can be a part of a file's name: no slash, no control \
         character, no dot first"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: Fields<'_> = Fields {
        name: "cat",
        seed: 7,
        index: 3,
        digits: 3,
        take: 2,
        image: "start",
    };

    #[test]
    fn fields_are_filled_in() {
        for (template, expected) in [
            ("{name}_{seed}.mp4", "cat_7.mp4"),
            ("{index}/{image}-{take}.gif", "003/start-2.gif"),
            ("{{{name}}}", "{cat}"),
            ("plain", "plain"),
        ] {
            assert_eq!(FIELDS.fill(template).unwrap(), expected);
        }
        for (template, part) in [
            ("{nam}.mp4", "no field {nam}; there are {name}"),
            ("{}", "no field {}"),
            ("{name", "a brace stands alone"),
            ("name}", "a brace stands alone"),
        ] {
            let error = FIELDS.fill(template).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let folder = Path::new("out");
        let path = FIELDS.path("{name}/{seed}/", folder).unwrap();
        assert_eq!(path, Path::new("out/cat/7/"));
        assert!(path.to_string_lossy().ends_with('/'));
        for template in ["../{name}.mp4", "/tmp/{name}.mp4", "a/../../b", ""] {
            let error = FIELDS.path(template, folder).unwrap_err().to_string();
            assert!(error.contains("in the batch's folder"), "{error}");
        }
        assert!(check_name("a cat, 一只猫").is_ok());
        for name in ["", "a/b", "..", ".x", "a\nb"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
