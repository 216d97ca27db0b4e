//! What a run tells of itself on stderr.

use serde_json::Value;

use crate::cli::{Bench, Ran};

impl Ran {
    /// Every line of stderr as an event, of the one schema there is.
    fn events(&self) -> Vec<Value> {
        let parse = |line: &str| {
            let event: Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
            assert_eq!(event["schema"], 1, "{line}");
            assert!(event["elapsed"].as_f64().unwrap() >= 0.0, "{line}");
            event
        };
        self.stderr.lines().map(parse).collect()
    }
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["event"] == name).collect()
}

const JSON: [&str; 2] = ["--progress", "json"];

#[test]
fn json_tells_everything_in_order() {
    let bench = Bench::new("a");
    let ran = bench.small("clip.mp4", &JSON);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, b"clip.mp4\n");
    let events = ran.events();
    // How the picture is fitted comes before.
    let (first, last) = (&events[1], events.last().unwrap());
    assert_eq!(first["event"], "start");
    assert_eq!(last["event"], "result");
    let settings = &first["settings"];
    assert_eq!(settings, &last["settings"]);
    assert_eq!(
        (&settings["seed"], &settings["frames"], &settings["solver"]),
        (&7.into(), &5.into(), &"unipc".into())
    );
    for event in [first, last] {
        assert_eq!(event["output"], "clip.mp4");
    }

    let phases = ["text", "image", "denoising", "decoding"];
    let (starts, ends) = (named(&events, "phase_start"), named(&events, "phase_end"));
    for (i, phase) in phases.into_iter().enumerate() {
        assert_eq!(starts[i]["phase"], phase);
        assert_eq!(starts[i]["done"], 0);
        assert_eq!(ends[i]["phase"], phase);
        assert!(ends[i]["seconds"].as_f64().unwrap() > 0.0);
        let memory = &ends[i]["memory"];
        let of = |key: &str| memory[key].as_u64().unwrap();
        assert!(of("peak") > 0 && of("peak") >= of("active"), "{memory}");
        assert!(of("process_peak") > of("peak"), "{memory}");
        // Every unit of the phase, but that steps have more to tell.
        let units = starts[i]["units"].as_u64().unwrap();
        let told: Vec<u64> = events
            .iter()
            .filter(|e| e["event"] == "unit" && e["phase"] == phase)
            .map(|e| e["done"].as_u64().unwrap())
            .collect();
        let expected = if phase == "denoising" { 0 } else { units };
        assert_eq!(told, (1..=expected).collect::<Vec<_>>(), "{phase}");
    }
    assert_eq!((starts.len(), ends.len()), (4, 4));
    assert_eq!(last["phases"].as_array().unwrap().len(), 4);

    let networks: Vec<&Value> = named(&events, "load_end")
        .iter()
        .map(|event| &event["network"])
        .collect();
    let expected = [
        "text encoder",
        "VAE's encoder",
        "high-noise expert",
        "low-noise expert",
        "VAE's decoder",
    ];
    assert_eq!(networks, expected);
    assert_eq!(named(&events, "load_start").len(), expected.len());

    let steps = named(&events, "step");
    assert_eq!(steps.len(), 2);
    for (i, (expert, t)) in [("high-noise", 999), ("low-noise", 833)].iter().enumerate() {
        let step = steps[i];
        assert_eq!(step["step"], i + 1);
        assert_eq!(step["steps"], 2);
        assert_eq!(step["expert"], *expert);
        assert_eq!(step["t"], *t);
        let sigma = step["sigma"].as_f64().unwrap() * 1000.0;
        assert!((sigma - f64::from(*t)).abs() <= 1.0, "{step}");
        assert!(step["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(step["passes"]["computed"], 2);
    }
    assert!(steps[0]["eta"].as_f64().unwrap() > 0.0);
    assert_eq!(steps[1]["eta"], 0.0);
    assert_eq!(last["passes"]["computed"], 4);
}

#[test]
fn json_is_all_there_is_on_stderr_even_of_errors_and_warnings() {
    let bench = Bench::new("a");
    let ran = bench.small("clip.mp4", &[&JSON[..], &["--size", "8192x8192"]].concat());
    assert_eq!(ran.code, Some(1));
    let events = ran.events();
    assert_eq!(events.len(), 1, "{}", ran.stderr);
    assert_eq!(events[0]["event"], "error");
    assert_eq!(events[0]["exit_code"], 1);
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains("8192x8192"), "{message}");

    let unheard = ["--negative-prompt", "a dog", "--guide-scale", "1"];
    let ran = bench.small("clip.mp4", &[&JSON[..], &unheard].concat());
    assert_eq!(ran.code, Some(0));
    let events = ran.events();
    let warnings = named(&events, "warning");
    assert_eq!(warnings.len(), 1, "{}", ran.stderr);
    let message = warnings[0]["message"].as_str().unwrap();
    assert!(message.contains("--negative-prompt has no effect"));
    // Without guidance a step is one pass.
    assert_eq!(named(&events, "step")[0]["passes"]["computed"], 1);
}

#[test]
fn quiet_and_none_leave_out_what_they_say() {
    let bench = Bench::new("a");
    let ran = bench.small("clip.mp4", &["--quiet"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout, b"clip.mp4\n");
    let flags = ["--quiet", "--negative-prompt", "x", "--guide-scale", "1"];
    let ran = bench.small("clip.mp4", &flags);
    assert!(ran.stderr.starts_with("warning: --negative-prompt"));
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    bench
        .small("clip.mp4", &["--quiet", "--frames", "6"])
        .assert_refused(2, &["error: invalid value '6' for '--frames"]);

    let ran = bench.small("clip.mp4", &["--progress", "none"]);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let expected = [
        "picture   start.png, 40 x 36 pixels, cropped",
        "clip      32 x 32 pixels, 5 frames",
        "model     ",
        "forecast  ",
        "done in ",
    ];
    assert_eq!(lines.len(), expected.len(), "{}", ran.stderr);
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{line}");
    }

    bench
        .small("clip.mp4", &["--quiet", "--progress", "plain"])
        .assert_refused(2, &["--quiet", "--progress", "cannot be used with"]);
}

#[test]
fn plain_lines_tell_time_and_memory() {
    let bench = Bench::new("a");
    let plain = ["--progress", "plain", "--steps", "3"];
    // In short a phase has a line, and nothing is said twice.
    let short = bench.small("clip.mp4", &plain);
    let lines: Vec<&str> = short.stderr.lines().collect();
    let starts = [
        "picture   ",
        "clip      ",
        "model     ",
        "forecast  ",
        "text: ",
        "image: ",
        "denoising: ",
        "decoding: ",
        "done in ",
    ];
    assert_eq!(lines.len(), starts.len(), "{}", short.stderr);
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start) && line.len() <= 80, "{line}");
    }
    let ran = bench.small("clip.mp4", &[&plain[..], &["-v"]].concat());
    let line = |start: &str| {
        let found = ran.stderr.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{start:?} in {}", ran.stderr))
    };
    for phase in ["text", "image", "denoising", "decoding"] {
        let loading = line(&format!("{phase}: loading the "));
        let done = ran
            .stderr
            .lines()
            .find(|line| line.starts_with(&format!("{phase}: ")) && line.contains("peak memory "));
        assert!(done.is_some_and(|done| done != loading), "{}", ran.stderr);
    }
    assert!(line("denoising: step 1/3").contains(" left, "));
    assert!(!line("denoising: step 3/3").contains(" left, "));
    for what in ["clip.mp4, ", "peak memory "] {
        assert!(line("done in ").contains(what), "{what:?}");
    }
    for what in [
        "image ",
        "denoising ",
        "decoding ",
        " passes",
        "of the process ",
    ] {
        assert!(line("text 0").contains(what), "{what:?}");
    }
}
