//! Progress of a run on stderr: bars, lines or JSON.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clip::Settings;
use crate::pipeline::plan::Forecast;
use crate::pipeline::{
    Event, EventKind, Job, Memory, Passes, Phase, PhaseReport, Progress, StepReport, Summary,
};
use crate::runtime::{self, Device, DeviceKind};
use crate::sampling::Expert;
use crate::util::show::Show;
use anyhow::Result;
use indicatif::{MultiProgress, ProgressState, ProgressStyle};
use serde_json::{Value, json};

use super::stderr::{self, Style, confirm, detail, event, info, is_attended, note, style, success};
use super::terminal::{Bar, stderr_size, stdout_width, tell};
use super::units::{human_bytes, human_time};

/// Seconds from which on a run is asked about.
const HOUR: f64 = 3600.0;
/// Below it no time is forecast.
const MINUTE: f64 = 60.0;
/// How often a line is written of what takes long.
pub(super) const LINES: Duration = Duration::from_secs(30);

/// A reporter of a run in the chosen style. Bars are on `console`, whose
/// [`MultiProgress::suspend`] lets others write between. `names` are those of the clips that take
/// turns, if there are several.
pub(crate) fn reporter(
    console: MultiProgress,
    names: Vec<String>,
    outlook: Outlook,
) -> Box<dyn Progress> {
    let clips = Clips { names };
    match style() {
        Style::Bar => Box::new(Bars {
            console,
            clips,
            bar: None,
            due: Due::default(),
            outlook,
        }),
        Style::Plain => Box::new(PlainLines {
            clips,
            phase: None,
            told: Instant::now(),
            outlook,
        }),
        Style::Json => Box::new(Json { clips, outlook }),
        Style::None | Style::Quiet => Box::new(Warnings { clips }),
    }
}

/// The names of a batch's clips; none of a single clip.
#[derive(Debug)]
struct Clips {
    names: Vec<String>,
}

impl Clips {
    /// The number and the name of the clip that an event is about.
    fn named(&self, clip: Option<usize>) -> Option<(usize, &str)> {
        let clip = clip?;
        Some((clip, self.names.get(clip)?))
    }

    /// `3/10 cat_7: `, to be put before what is said of it.
    fn label(&self, clip: Option<usize>) -> String {
        self.named(clip).map_or(String::new(), |(clip, name)| {
            format!("{}/{} {name}: ", clip + 1, self.names.len())
        })
    }
}

/// How long a clip's phases will take, as far as it is forecast.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outlook(Vec<(Phase, f64)>);

impl Outlook {
    pub(crate) fn of(forecast: &Forecast) -> Self {
        let phases = forecast.phases.iter();
        Self(
            phases
                .filter_map(|of| Some((of.phase, of.seconds?)))
                .collect(),
        )
    }

    /// What each phase takes.
    pub(crate) fn phases(&self) -> &[(Phase, f64)] {
        &self.0
    }

    /// Seconds until the clip is complete when `phase` begins, of which `done` of `units` are.
    fn from(&self, phase: Phase, done: usize, units: usize) -> Option<f64> {
        let own = self.0.iter().filter(|(of, _)| *of == phase);
        let own: f64 = own.map(|(_, seconds)| seconds).sum();
        let share = 1.0 - done as f64 / units.max(1) as f64;
        Some(own * share + self.after(phase)?)
    }

    /// Seconds that all phases after `phase` take.
    fn after(&self, phase: Phase) -> Option<f64> {
        let at = self.0.iter().rposition(|(of, _)| *of == phase)?;
        Some(self.0[at + 1..].iter().map(|(_, seconds)| seconds).sum())
    }

    /// Seconds until the clip is complete after a step.
    fn left(&self, step: &StepReport) -> Option<f64> {
        Some(step.left? + self.after(Phase::Denoising).unwrap_or_default())
    }
}

/// The line that ends a phase.
fn phase_line(report: &PhaseReport) -> String {
    format!(
        "{}: {}, peak memory {}",
        report.phase,
        human_time(report.seconds),
        human_bytes(report.memory.peak)
    )
}

/// `, reused` for a step that a cache stood in for.
fn reused(passes: Passes) -> &'static str {
    match passes {
        Passes { computed: 0, .. } => ", reused",
        Passes { reused: 0, .. } => "",
        _ => ", partly reused",
    }
}

/// Warnings alone.
#[derive(Debug)]
struct Warnings {
    clips: Clips,
}

impl Progress for Warnings {
    fn on_event(&mut self, event: &Event<'_>) {
        if let EventKind::Warning(text) = event.kind {
            stderr::warning(&format!("{}{text}", self.clips.label(event.clip)));
        }
    }
}

/// When denoising should be done; shared with the bar, which counts down.
type Due = Arc<Mutex<Option<Instant>>>;

/// A bar per phase, then a line in its place.
#[derive(Debug)]
struct Bars {
    console: MultiProgress,
    clips: Clips,
    bar: Option<Bar>,
    due: Due,
    outlook: Outlook,
}

impl Bars {
    fn start(&mut self, phase: Phase, units: usize, done: usize) {
        // What stands beside it takes some 50 columns, and the message as many as are left.
        let (columns, _) = stderr_size();
        let bar = columns.saturating_sub(70).clamp(8, 30);
        let template = format!(
            "{{prefix:>9}} [{{bar:{bar}}}] {{pos}}/{{len}}  {{elapsed}}{{left}}  {{wide_msg}}"
        );
        self.set_due(self.outlook.from(phase, done, units));
        let due = Arc::clone(&self.due);
        let left = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let due = due.lock().ok().and_then(|due| *due);
            if let Some(due) = due {
                let left = due.saturating_duration_since(Instant::now());
                // A line that cannot be drawn is not drawn.
                let _ = write!(out, ", {} left", human_time(left.as_secs_f64()));
            }
        };
        // Were the template wrong, the default style would do.
        let style = ProgressStyle::with_template(&template).ok();
        let style = style.map(|style| style.with_key("left", left));
        let place = |bar| self.console.add(bar);
        let bar = Bar::new(units as u64, &phase.to_string(), style, place);
        bar.set_position(done as u64);
        bar.tick();
        self.bar = Some(bar);
    }

    fn set_due(&self, left: Option<f64>) {
        if let Ok(mut due) = self.due.lock() {
            let left = left.and_then(|left| Duration::try_from_secs_f64(left).ok());
            *due = left.and_then(|left| Instant::now().checked_add(left));
        }
    }

    fn message(&self, label: &str, text: &str) {
        if let Some(bar) = &self.bar {
            let text = format!("{label}{text}");
            bar.set_message(text.trim_end_matches(": "));
        }
    }
}

impl Progress for Bars {
    fn on_event(&mut self, event: &Event<'_>) {
        let label = self.clips.label(event.clip);
        match event.kind {
            EventKind::PhaseStarted { phase, units, done } => {
                self.start(phase, units, done);
                self.message(&label, "");
            }
            EventKind::Loading(network) => self.message(&label, &format!("loading the {network}")),
            EventKind::Loaded { network, seconds } => {
                self.message(&label, "");
                let text = format!("{label}{network}: loaded in {}", human_time(seconds));
                self.console.suspend(|| detail(&text));
            }
            EventKind::Unit { done, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done as u64);
                }
            }
            EventKind::Step(step) => {
                self.set_due(self.outlook.left(&step));
                // Where there is little room, the rest counts for more.
                let rate = match stderr_size().0 < 76 {
                    true => String::new(),
                    false => format!(", {} a step", human_time(step.seconds)),
                };
                let expert = match step.expert {
                    Expert::Single => "transformer".to_owned(),
                    expert => expert.to_string(),
                };
                let text = format!("{expert}{rate}{}", reused(step.passes));
                self.message(&label, &text);
                if let Some(bar) = &self.bar {
                    bar.set_position(step.step as u64);
                }
            }
            EventKind::PhaseFinished(report) => {
                if let Some(bar) = self.bar.take() {
                    bar.clear();
                }
                // Of many clips a line each is enough, when it is there.
                if self.clips.named(event.clip).is_none() {
                    tell(&phase_line(&report));
                }
            }
            EventKind::Saved { .. } | EventKind::Made(_) => {}
            EventKind::Failed(_) => {
                if let Some(bar) = self.bar.take() {
                    bar.clear();
                }
            }
            EventKind::Warning(text) => {
                let text = format!("{label}{text}");
                self.console.suspend(|| stderr::warning(&text));
            }
        }
    }
}

/// A line when a phase ends, and now and then while it denoises; with details also when a network is
/// loaded, and for every step.
#[derive(Debug)]
struct PlainLines {
    clips: Clips,
    phase: Option<Phase>,
    /// When the last line was written.
    told: Instant,
    outlook: Outlook,
}

impl PlainLines {
    fn tell(&mut self, text: &str) {
        self.told = Instant::now();
        tell(text);
    }
}

impl Progress for PlainLines {
    fn on_event(&mut self, event: &Event<'_>) {
        let label = self.clips.label(event.clip);
        match event.kind {
            EventKind::PhaseStarted { phase, .. } => self.phase = Some(phase),
            EventKind::Loading(network) => {
                if let Some(phase) = self.phase {
                    detail(&format!("{label}{phase}: loading the {network}"));
                }
            }
            EventKind::Loaded { .. }
            | EventKind::Unit { .. }
            | EventKind::Saved { .. }
            | EventKind::Made(_)
            | EventKind::Failed(_) => {}
            EventKind::Step(step) => {
                let text = format!("{label}{}", step_line(&step, self.outlook.left(&step)));
                match self.told.elapsed() >= LINES {
                    true => self.tell(&text),
                    false => detail(&text),
                }
            }
            EventKind::PhaseFinished(report) => {
                self.tell(&format!("{label}{}", phase_line(&report)));
            }
            EventKind::Warning(text) => stderr::warning(&format!("{label}{text}")),
        }
    }
}

fn step_line(step: &StepReport, left: Option<f64>) -> String {
    let left = match left {
        Some(left) if step.step < step.steps => format!(", {} left", human_time(left)),
        _ => String::new(),
    };
    format!(
        "{}: step {}/{}, {}t = {}{}, {}{left}, {}",
        Phase::Denoising,
        step.step,
        step.steps,
        match step.expert {
            Expert::Single => String::new(),
            expert => format!("{}, ", expert.in_words()),
        },
        (step.timestep * 10.0).round() / 10.0,
        reused(step.passes),
        human_time(step.seconds),
        human_bytes(step.memory.peak)
    )
}

/// A timestep as JSON has it: an integer where it is one.
fn timestep(value: f64) -> serde_json::Value {
    match value.fract() == 0.0 {
        true => json!(value as i64),
        false => json!(value),
    }
}

/// An event a line; `docs/progress.md` has the schema.
#[derive(Debug)]
struct Json {
    clips: Clips,
    outlook: Outlook,
}

impl Progress for Json {
    fn on_event(&mut self, happened: &Event<'_>) {
        let named = self.clips.named(happened.clip);
        let event = |name: &str, mut fields: Value| {
            if let (Some((clip, name)), Some(fields)) = (named, fields.as_object_mut()) {
                fields.insert("clip".into(), (clip + 1).into());
                fields.insert("name".into(), name.into());
            }
            event(name, fields);
        };
        match happened.kind {
            EventKind::PhaseStarted { phase, units, done } => event(
                "phase_start",
                json!({
                    "phase": phase.to_string(),
                    "units": units,
                    "done": done,
                    "left": self.outlook.from(phase, done, units),
                }),
            ),
            EventKind::Loading(network) => {
                event("load_start", json!({ "network": network.to_string() }));
            }
            EventKind::Loaded { network, seconds } => event(
                "load_end",
                json!({ "network": network.to_string(), "seconds": seconds }),
            ),
            EventKind::Unit { phase, done, units } => event(
                "unit",
                json!({ "phase": phase.to_string(), "done": done, "units": units }),
            ),
            EventKind::Step(step) => event(
                "step",
                json!({
                    "step": step.step,
                    "steps": step.steps,
                    "expert": step.expert.to_string(),
                    "t": timestep(step.timestep),
                    "sigma": step.sigma,
                    "passes": passes(step.passes),
                    "seconds": step.seconds,
                    "eta": step.left,
                    "left": self.outlook.left(&step),
                    "memory": memory(step.memory),
                }),
            ),
            EventKind::PhaseFinished(report) => event("phase_end", phase(&report)),
            EventKind::Saved { step, path, bytes } => event(
                "saved",
                json!({ "step": step, "path": path.to_string_lossy(), "bytes": bytes }),
            ),
            EventKind::Warning(text) => event("warning", json!({ "message": text })),
            // The batch reports them itself.
            EventKind::Made(_) | EventKind::Failed(_) => {}
        }
    }
}

fn memory(memory: Memory) -> Value {
    json!({
        "active": memory.active,
        "peak": memory.peak,
        "process_peak": memory.process_peak,
    })
}

fn passes(passes: Passes) -> Value {
    json!({
        "computed": passes.computed,
        "reused": passes.reused,
        "unguided": passes.unguided,
    })
}

fn phase(report: &PhaseReport) -> Value {
    json!({
        "phase": report.phase.to_string(),
        "seconds": report.seconds,
        "memory": memory(report.memory),
    })
}

fn settings(settings: &Settings, device: Device) -> Value {
    let mut fields = serde_json::to_value(settings).unwrap_or_default();
    if let Some(fields) = fields.as_object_mut() {
        let precision = device.dtype.to_string();
        fields.insert("precision".into(), precision.into());
        fields.insert("device".into(), device.kind.to_string().into());
    }
    fields
}

/// Tells what is about to be made, with `model`.
pub(crate) fn start(job: &Job, device: Device, model: &str) {
    let clip = job.settings();
    if style() == Style::Json {
        job.notes().iter().for_each(|text| note(text));
        event(
            "start",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "output": job.output().to_string_lossy(),
                "model": model,
                "settings": settings(clip, device),
            }),
        );
        return;
    }
    for (picture, name) in job.pictures().zip(["picture", "last"]) {
        let (width, height) = picture.size;
        let fitted = picture
            .fitted
            .map(|fitted| format!(", {fitted} ({})", job.other_fits()));
        info!(
            "{name:<10}{}, {width} x {height} pixels{}",
            Path::new(picture.path.file_name().unwrap_or_default()).shown(),
            fitted.unwrap_or_default()
        );
    }
    let size = match job.frame_size() {
        (width, height) if (width, height) == (clip.width, clip.height) => String::new(),
        (width, height) => format!(", decoded to {width} x {height}"),
    };
    info!(
        "clip      {} x {} pixels{size}, {}, {}, seed {}",
        clip.width,
        clip.height,
        length(clip),
        counted(clip.steps.into(), "step", "s"),
        clip.seed
    );
    let machine = match device.kind {
        DeviceKind::Gpu => format!("gpu ({})", runtime::device_name()),
        DeviceKind::Cpu => device.kind.to_string(),
    };
    info!("model     {}; {} on {machine}", model.shown(), device.dtype);
    detail(&format!(
        "sampling  {}, shift {}, guidance {},{} (low, high), steps guided {} to {}, cache {}, resize {}",
        clip.solver,
        clip.shift,
        clip.guide_scale.low,
        clip.guide_scale.high,
        clip.guide_interval.start,
        clip.guide_interval.end,
        clip.cache,
        clip.resize
    ));
    detail(&format!("output    {}", job.output().shown()));
}

/// `81 frames (5.1 s at 16 fps)`.
fn length(clip: &Settings) -> String {
    format!(
        "{} ({:.1} s at {} fps)",
        counted(clip.frames.into(), "frame", "s"),
        f64::from(clip.frames) / clip.fps,
        clip.fps
    )
}

fn counted(count: u64, what: &str, plural: &str) -> String {
    let end = if count == 1 { "" } else { plural };
    format!("{count} {what}{end}")
}

/// Tells that the clip was made before.
pub(crate) fn there(output: &Path) {
    if style() == Style::Json {
        let output = output.to_string_lossy();
        return event("there", json!({ "output": output }));
    }
    info!("{}: the same command has made it before", output.shown());
    stderr::hint("--overwrite makes it again");
}

/// Whether a run of so many seconds is a long one.
pub(crate) fn is_long(seconds: f64) -> bool {
    seconds > HOUR
}

/// What is about to be computed; `few` are the seconds of models that need four steps.
fn forecast_line(seconds: Option<f64>, peak_bytes: u64, passes: usize, few: Option<f64>) -> String {
    // Short runs take longer than their operations: what loads and starts counts for more.
    let time = seconds.filter(|&time| time >= MINUTE);
    let time = time.map_or(String::new(), |time| {
        format!("about {}, ", human_time(time))
    });
    let few = few.map_or(String::new(), |few| {
        format!("; 4-step models take {}", human_time(few))
    });
    format!(
        "forecast  {time}{} of memory, {}{few}",
        human_bytes(peak_bytes),
        counted(passes as u64, "pass", "es")
    )
}

/// Tells what is about to be computed, and asks before it takes more than an hour; `few` are the seconds
/// of models that need four steps.
///
/// # Errors
/// When the answer is no.
pub(crate) fn forecast(
    seconds: Option<f64>,
    peak_bytes: u64,
    passes: usize,
    few: Option<f64>,
    yes: bool,
) -> Result<()> {
    if style() == Style::Json {
        event(
            "forecast",
            json!({ "seconds": seconds, "peak_bytes": peak_bytes, "passes": passes }),
        );
        return Ok(());
    }
    note(&forecast_line(seconds, peak_bytes, passes, few));
    match seconds.filter(|&seconds| is_long(seconds) && !yes && is_attended()) {
        Some(seconds) => {
            let text = format!("this takes about {}", human_time(seconds));
            confirm(&text, "--yes agrees beforehand")
        }
        None => Ok(()),
    }
}

/// The fields of an event about a clip that was made.
fn made(summary: &Summary, device: Device, output: &Path) -> Value {
    json!({
        "output": output.to_string_lossy(),
        "settings": settings(&summary.settings, device),
        "frame_size": summary.frame_size,
        "phases": summary.phases.iter().map(phase).collect::<Vec<_>>(),
        "passes": passes(summary.passes),
        "seconds": summary.seconds,
        "memory": memory(summary.memory),
    })
}

/// Tells what was made.
pub(crate) fn finish(summary: &Summary, device: Device, output: &Path) {
    if style() == Style::Json {
        let mut fields = made(summary, device, output);
        if summary.sent > 0 {
            fields["sent_bytes"] = summary.sent.into();
        }
        event("result", fields);
        return;
    }
    let phases = summary.phases.iter();
    let phases: Vec<String> = phases
        .map(|report| format!("{} {}", report.phase, human_time(report.seconds)))
        .collect();
    let peak = summary.phases.iter().map(|report| report.memory.peak).max();
    // A terminal shows it in the line below.
    let name = match stdout_width() {
        Some(_) => String::new(),
        None => format!("{}, ", output.shown()),
    };
    success(&format!(
        "done in {}: {name}{}; peak memory {}",
        human_time(summary.seconds),
        human_bytes(crate::batch::bytes(output)),
        human_bytes(peak.unwrap_or_default()),
    ));
    let spared = match summary.passes.reused {
        0 => String::new(),
        reused => format!(" and {reused} reused"),
    };
    let sent = match summary.sent {
        0 => String::new(),
        bytes => format!("; {} sent to other machines", human_bytes(bytes)),
    };
    detail(&format!(
        "{}; {} passes{spared}{sent}; peak memory of the process {}",
        phases.join(", "),
        summary.passes.computed,
        human_bytes(summary.memory.process_peak)
    ));
}

/// Reports on clips that are made together.
pub(crate) struct Many {
    /// Where bars are.
    pub(crate) console: MultiProgress,
    names: Vec<String>,
    inner: Box<dyn Progress>,
}

impl Many {
    /// For clips that are called by these names.
    pub(crate) fn new(names: Vec<String>) -> Self {
        let console = MultiProgress::new();
        Self {
            inner: reporter(console.clone(), Vec::new(), Outlook::default()),
            console,
            names,
        }
    }

    /// Calls a clip by another name.
    pub(crate) fn rename(&mut self, number: usize, name: String) {
        self.names[number] = name;
    }

    /// Reports what is about to be made: `there` of the clips exist, `failed` cannot be made.
    /// `fields` are the event's own.
    pub(crate) fn begin(&mut self, there: usize, failed: usize, at_once: usize, mut fields: Value) {
        self.inner = reporter(self.console.clone(), self.names.clone(), Outlook::default());
        let clips = self.names.len();
        if style() == Style::Json {
            fields["version"] = env!("CARGO_PKG_VERSION").into();
            fields["clips"] = clips.into();
            fields["there"] = there.into();
            fields["failed"] = failed.into();
            fields["jobs_at_once"] = at_once.into();
            return event("batch_start", fields);
        }
        let mut text = format!("{clips} clips");
        if there > 0 {
            text += &format!(", {there} of them there already");
        }
        if failed > 0 {
            text += &format!(", {failed} that cannot be made");
        }
        if there + failed < clips {
            text += &format!("; up to {at_once} in flight at once");
        }
        stderr::note(&text);
    }

    /// `3/10 cat_7.mp4: `.
    pub(crate) fn label(&self, number: usize) -> String {
        let (clips, name) = (self.names.len(), &self.names[number]);
        format!("{}/{clips} {name}: ", number + 1)
    }

    /// Reports a clip that was made.
    pub(crate) fn made(&self, number: usize, summary: &Summary, device: Device, output: &Path) {
        if style() == Style::Json {
            let mut fields = made(summary, device, output);
            fields["clip"] = (number + 1).into();
            fields["name"] = self.names[number].as_str().into();
            fields["status"] = "made".into();
            return event("clip_end", fields);
        }
        let phases = summary.phases.iter();
        let phases: Vec<String> = phases
            .map(|phase| format!("{} {}", phase.phase, human_time(phase.seconds)))
            .collect();
        let text = format!("{}made: {}", self.label(number), phases.join(", "));
        self.console.suspend(|| stderr::note(&text));
    }

    /// Reports a clip that cannot be made: an event, or `text`.
    pub(crate) fn failed(&self, number: usize, place: &str, error: &str, text: &str) {
        match style() {
            Style::Json => event(
                "clip_end",
                json!({
                    "clip": number + 1,
                    "name": self.names[number],
                    "status": "failed",
                    "place": place,
                    "error": error,
                }),
            ),
            // A line for each.
            _ => self
                .console
                .suspend(|| tell(&text.replace("\nhint: ", "; hint: "))),
        }
    }
}

impl Progress for Many {
    fn on_event(&mut self, event: &Event<'_>) {
        self.inner.on_event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_says_what_fewer_steps_would_take() {
        let line = |seconds, few| forecast_line(seconds, 9_000_000_000, 80, few);
        assert_eq!(
            line(Some(10_200.0), Some(540.0)),
            "forecast  about 2 h 50 min, 9.0 GB of memory, 80 passes; 4-step models take 9 min 00 s"
        );
        assert_eq!(
            line(Some(59.0), None),
            "forecast  9.0 GB of memory, 80 passes"
        );
    }
}
