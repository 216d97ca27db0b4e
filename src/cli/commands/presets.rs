//! `wan-i2v presets`: what presets there are.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::config::{Preset, Presets};
use crate::cli::flags::{PresetsArgs, Steps, parse_guide_scale, parse_steps};
use crate::cli::ui::{print, print_json};
use crate::clip::{Options, Switch};
use crate::sampling::Sigmas;
use crate::util::quote::quoted;

impl PresetsArgs {
    /// Prints them.
    pub(crate) fn run(self, presets: &Presets) -> Result<()> {
        if self.json {
            let all = presets.all.iter().map(|(name, preset)| {
                json!({
                    "name": name,
                    "about": preset.about,
                    "source": preset.source,
                    "passes": passes(preset),
                    "settings": preset.settings,
                })
            });
            return print_json(&all.collect::<Vec<_>>());
        }
        let mut text = String::new();
        for (name, preset) in &presets.all {
            let passes = passes(preset).map(|passes| format!("{passes} passes"));
            let source = Some(&preset.source).filter(|source| !source.is_empty());
            let lines = [
                Some(preset.about.clone()).filter(|about| !about.is_empty()),
                Some(flags(preset)),
                passes,
                source.map(|source| format!("source: {source}")),
            ];
            let mut label = name.as_str();
            for line in lines.into_iter().flatten() {
                let _ = writeln!(text, "{label:<18}{line}");
                label = "";
            }
        }
        print(&text)
    }
}

/// A preset's settings as the command line has them.
fn flags(preset: &Preset) -> String {
    let words = preset.settings.iter().map(|(flag, value)| {
        let flag = flag.replace('_', "-");
        match value {
            Value::Bool(true) => format!("--{flag}"),
            Value::String(text) => format!("--{flag} {}", quoted(text)),
            other => format!("--{flag} {other}"),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The steps and the guidance that a preset asks for.
pub(super) fn sampling(preset: &Preset) -> Options {
    let text = |flag: &str| match preset.settings.get(flag)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let steps = text("steps").and_then(|text| parse_steps(&text).ok());
    Options {
        steps: steps.map(|steps| steps.all),
        switch: steps.map(|steps| steps.switch),
        sigmas: text("sigmas").and_then(|text| text.parse().ok()),
        guide_scale: text("guide-scale").and_then(|text| parse_guide_scale(&text).ok()),
        ..Options::default()
    }
}

/// The passes through the experts that a preset asks for, if it says.
fn passes(preset: &Preset) -> Option<u32> {
    let text = |flag: &str| match preset.settings.get(flag)? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let list = || match text("sigmas")?.parse().ok()? {
        Sigmas::List(list) => Some(Steps {
            all: list.len() as u32,
            switch: Switch(None),
        }),
        _ => None,
    };
    let steps = text("steps").and_then(|text| parse_steps(&text).ok());
    let steps = steps.or_else(list)?;
    let scale = parse_guide_scale(&text("guide-scale")?).ok()?;
    let each = |scale: f32| if scale == 1.0 { 1 } else { 2 };
    match steps.switch {
        Switch(Some(high)) => Some((steps.all - high) * each(scale.low) + high * each(scale.high)),
        // Which steps are whose is the boundary's to say.
        Switch(None) => (each(scale.low) == each(scale.high)).then(|| steps.all * each(scale.low)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_say_what_they_cost() {
        let presets = Presets::new(serde_json::Map::new(), "test").unwrap();
        let of = |name: &str| &presets.all[name];
        assert_eq!(passes(of("lightning")), Some(4));
        assert_eq!(passes(of("lightning-8")), Some(8));
        // Two steps without guidance, four with it.
        assert_eq!(passes(of("lightning-motion")), Some(10));
        let words = flags(of("lightning-motion"));
        assert!(
            words.contains("--steps 2,4") && words.contains("--shift 5"),
            "{words}"
        );
    }
}
