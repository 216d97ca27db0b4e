//! `wan-i2v show`: how a clip was made, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::clip::metadata::Metadata;
use crate::persist::{SavedRun, file, state_path};
use crate::weights::PartName;
use anyhow::Result;
use serde::Serialize;

use crate::cli::flags::{PromptSource, ShowArgs};
use crate::cli::ui::{print, print_json};
use crate::util::quote::quoted;
use crate::util::show::visible;

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    record: Metadata,
    /// Words of the command, not quoted.
    command: Vec<String>,
}

impl ShowArgs {
    /// Prints it.
    pub(crate) fn run(self) -> Result<()> {
        let unfinished = state_path(&self.file);
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        if file::is_state(&self.file) {
            return saved(&self.file, self.json);
        }
        if !is_there(&self.file) && file::is_state(&unfinished) {
            return saved(&unfinished, self.json);
        }
        let record = Metadata::read(&self.file)?;
        let command = command(&record, &again(&self.file));
        if self.json {
            let report = Report { record, command };
            return print_json(&report);
        }
        print(&table(&record, &command))
    }
}

/// Prints what is known of a saved run.
fn saved(path: &Path, json: bool) -> Result<()> {
    let run = SavedRun::read(path)?;
    let flags = run.identity.items().iter();
    let flags = flags.filter(|item| item.name.starts_with("--") && !item.value.is_empty());
    let settings: Vec<(&str, &str)> = flags
        .map(|item| (&item.name[2..], item.value.as_str()))
        .collect();
    let steps = settings.iter().find(|(name, _)| *name == "steps");
    let steps = steps.map(|(_, steps)| *steps).unwrap_or_default();
    if json {
        return print_json(&serde_json::json!({
            "path": path.to_string_lossy(),
            "steps_taken": run.steps_taken(),
            "settings": settings.into_iter().collect::<BTreeMap<_, _>>(),
            "made_with": run.made_with,
            "started": run.started,
        }));
    }
    let row =
        |name: &str, value: &str| format!("{name:<16}{}\n", visible(value, "\n                "));
    let mut text = row(
        "saved run",
        &format!("{} of {steps} steps are taken", run.steps_taken()),
    );
    text += &row("made with", &run.made_with.to_string());
    text.extend(settings.iter().map(|(name, value)| row(name, value)));
    let Some(started) = run.started else {
        return print(&(text + "\nthe command that began it resumes it\n"));
    };
    let words: Vec<String> = started.arguments.iter().map(|word| quoted(word)).collect();
    let folder = quoted(&started.folder);
    print(&format!(
        "{text}\nthis resumes it:\ncd {folder} && wan-i2v {}\n",
        words.join(" ")
    ))
}

/// The record and the command for people.
fn table(record: &Metadata, command: &[String]) -> String {
    let model = &record.model;
    let clip = &record.settings;
    let (guide, interval) = (clip.guide_scale, clip.guide_interval);
    let decoded = match record.frame_size {
        Some((width, height)) => format!(", decoded to {width} x {height}"),
        None => String::new(),
    };
    let mut rows = vec![
        (
            "software",
            format!("{}, MLX {}", record.software, record.mlx),
        ),
        ("prompt", record.prompt.clone()),
        ("negative", record.settings.negative_prompt.clone()),
    ];
    if let Some(first) = &record.image {
        rows.push(("picture", first.name.clone()));
        rows.push(("", format!("SHA-256 {}", first.sha256)));
    }
    if let Some(last) = &record.last_image {
        rows.push(("last", last.name.clone()));
        rows.push(("", format!("SHA-256 {}", last.sha256)));
    }
    rows.push(("model", model.name.clone()));
    for (flag, name) in &model.parts {
        rows.push(("", format!("{flag} {name}")));
    }
    for (flag, bits) in &model.bits {
        rows.push(("", format!("{flag} {bits}")));
    }
    for (part, stored) in &model.stored {
        rows.push(("", format!("{part} stored as {stored}")));
    }
    for adapter in &model.adapters {
        rows.push(match adapter.name.is_empty() {
            true => ("", "its own four-step adapter".into()),
            false => ("", format!("{} {}", adapter.flag, adapter.value())),
        });
    }
    rows.extend([
        ("", format!("fingerprint {}", model.fingerprint)),
        (
            "clip",
            format!(
                "{} x {} pixels{decoded}, {} frames at {} fps",
                clip.width, clip.height, clip.frames, clip.fps
            ),
        ),
        (
            "sampling",
            format!(
                "{} steps of {}, shift {}, seed {}",
                clip.steps, clip.solver, clip.shift, clip.seed
            ),
        ),
        (
            "guidance",
            format!(
                "{} low-noise, {} high-noise, from {} to {} of the steps",
                guide.low, guide.high, interval.start, interval.end
            ),
        ),
        ("cache", clip.cache.to_string()),
        ("resize", clip.resize.to_string()),
        ("computed", format!("{} on {}", record.dtype, record.device)),
    ]);
    let mut text = String::new();
    for (name, value) in rows.into_iter().filter(|row| !row.1.is_empty()) {
        let _ = writeln!(text, "{name:<10}{}", visible(&value, "\n          "));
    }
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let _ = writeln!(text, "\n{}", words.join(" "));
    text
}

/// The words of a command that renders the clip again, to `output`.
fn command(record: &Metadata, output: &str) -> Vec<String> {
    let mut words = vec!["wan-i2v".to_owned()];
    let mut flag = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    if !record.model.name.is_empty() {
        flag("--model", record.model.name.clone());
    }
    for (name, value) in record.model.parts.iter().filter(|part| is_flag(part.0)) {
        flag(name, value.clone());
    }
    for (name, bits) in record.model.bits.iter().filter(|part| is_flag(part.0)) {
        flag(name, bits.to_string());
    }
    for adapter in &record.model.adapters {
        match adapter.name.is_empty() {
            true => flag("--preset", "lightning".into()),
            false if LORAS.contains(&adapter.flag.as_str()) => {
                flag(&adapter.flag, adapter.value());
            }
            false => {}
        }
    }
    if record.model.lora_merge {
        words.push("--lora-merge".into());
    }
    let mut flag = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    if let Some(first) = &record.image {
        flag("--image", first.name.clone());
    }
    if let Some(last) = &record.last_image {
        flag("--last-image", last.name.clone());
    }
    let prompt = |text: &String| PromptSource::Text(text.clone()).to_string();
    flag("--prompt", prompt(&record.prompt));
    if record.settings.guide_scale.needs_negative() {
        flag(
            "--negative-prompt",
            prompt(&record.settings.negative_prompt),
        );
    }
    for item in record.settings.items() {
        flag(&item.name, item.value);
    }
    flag("--device", record.device.clone());
    flag("--dtype", record.dtype.clone());
    flag("--output", output.to_owned());
    words
}

/// Flags of adapters that metadata may name.
const LORAS: [&str; 3] = ["--lora", "--lora-high", "--lora-low"];

/// Whether metadata may name this flag: anybody can write a file.
fn is_flag(name: &str) -> bool {
    const OTHERS: [&str; 5] = [
        "--tokenizer",
        "--high-bits",
        "--low-bits",
        "--text-bits",
        "--group-size",
    ];
    OTHERS.contains(&name) || PartName::ALL.map(PartName::flag).contains(&name)
}

/// Another name of the same kind, in the current folder: `clip-again.mp4`, `frames-again/`.
fn again(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    match extension.to_ascii_lowercase().as_str() {
        "mp4" | "gif" if !file.is_dir() => format!("{stem}-again.{extension}"),
        _ if stem.is_empty() => "again/".into(),
        _ => format!("{stem}-again/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_clip_does_not_replace_this_one() {
        for (file, expected) in [
            ("a/clip.mp4", "clip-again.mp4"),
            ("clip.GIF", "clip-again.GIF"),
            ("frames/frame_00003.png", "frame_00003-again/"),
            ("frames/", "frames-again/"),
            ("/", "again/"),
        ] {
            assert_eq!(again(Path::new(file)), expected);
        }
    }
}
