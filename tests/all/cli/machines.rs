//! Clips that several processes make together, on this machine's own address.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use npyz::NpyFile;
use serde_json::{Value, json};
use wan_i2v::model::dit::DitConfig;
use wan_i2v::model::dit::share::Traffic;
use wan_i2v::persist::SavedRun;

use crate::cli::running::{FLAGS, Running, bytes, succeed};
use crate::cli::{Bench, Ran, run};
use crate::support::isolated::program;

/// A rank other than 0, killed when dropped.
struct Rank(Child);

impl Rank {
    fn end(mut self) -> (Option<i32>, String) {
        let output = self.0.stderr.take().unwrap();
        let said = std::io::read_to_string(output).unwrap();
        (self.0.wait().unwrap().code(), said)
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let kill = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(kill.success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// So many free ports in a row.
fn free_ports(count: u16) -> u16 {
    let start = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    std::iter::repeat_with(start)
        .find(|start| *start < 65000 && (*start..start + count).all(is_free))
        .unwrap()
}

impl Bench {
    /// The file of two ranks on this machine.
    fn hosts(&self) -> PathBuf {
        let (path, port) = (self.path("hosts.json"), free_ports(3));
        let text = format!(r#"[["127.0.0.1:{port}"], ["127.0.0.1:{}"]]"#, port + 1);
        fs::write(&path, text).unwrap();
        path
    }

    /// A command as rank 1.
    fn second(&self, hosts: &Path, command: &mut Command) -> Rank {
        let command = command.env("MLX_RANK", "1").env("MLX_HOSTFILE", hosts);
        let command = command.env("WAN_TEST_PATIENCE", "2");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Rank(child.spawn().unwrap())
    }

    /// A command as rank 0, with the flag.
    fn first(&self, hosts: &Path, mut command: Command) -> Command {
        command.arg("--machines").arg(hosts).env("MLX_RANK", "0");
        command.env("WAN_TEST_PATIENCE", "2");
        command
    }
}

/// The same command on so many ranks that `launch` starts.
fn launch(ranks: usize, command: &Command) -> Command {
    let mut launch = program();
    launch.args([
        "launch",
        "--hosts",
        &vec!["localhost"; ranks].join(","),
        "--",
    ]);
    launch.args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        launch.current_dir(folder);
    }
    launch
}

/// The event that a run ends with.
fn result(ran: &Ran) -> Value {
    let is_result = |line: &&str| line.starts_with('{') && line.contains(r#""event":"result""#);
    serde_json::from_str(ran.stderr.lines().rfind(is_result).unwrap()).unwrap()
}

/// The result of a run that `launch` has started with `-v`, and what each rank has sent.
fn result_and_sent(ran: &Ran, ranks: usize) -> (Value, Vec<u64>) {
    let result = result(ran);
    let mut sent = vec![result["sent_bytes"].as_u64().unwrap()];
    for rank in 1..ranks {
        let said = format!("rank {rank} (localhost): sent ");
        let mut lines = ran.stderr.lines();
        let bytes = lines.find_map(|line| line.split_once(&said)?.1.split(' ').next());
        let bytes = bytes.unwrap_or_else(|| panic!("{said}: {}", ran.stderr));
        sent.push(bytes.parse().unwrap());
    }
    (result, sent)
}

impl Bench {
    /// What each of so many ranks sends for `steps` of a clip of 9 frames of 48 x 48, of which `guided` are
    /// guided: those of `plan`.
    fn traffic(&self, ranks: u64, product_bytes: u64, [steps, guided]: [u64; 2]) -> Vec<u64> {
        let config = fs::read(self.checkpoint.path("transformer/config.json")).unwrap();
        let config: DitConfig = serde_json::from_slice(&config).unwrap();
        let grid = [3, 6, 6];
        let traffic = Traffic::new(&config, grid, product_bytes, ranks, guided > 0, true);
        let sent =
            |rank| guided * traffic.sent(rank, true) + (steps - guided) * traffic.sent(rank, false);
        (0..ranks).map(sent).collect()
    }
}

fn array(path: &Path) -> Vec<f32> {
    NpyFile::new(File::open(path).unwrap())
        .unwrap()
        .into_vec()
        .unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}

/// With every way in which the ranks depend on one another: caches' decisions, an interval without
/// guidance, an expert's change.
#[test]
fn two_make_the_clip_of_one() {
    let bench = Bench::new("a");
    fs::write(
        bench.checkpoint.path("wan_i2v.json"),
        r#"{"teacache": [1.0, 0.0]}"#,
    )
    .unwrap();
    for (name, flags) in [
        ("plain", &[][..]),
        (
            "interval",
            &["--guide-interval", "0.3,0.9", "--solver", "dpm++"],
        ),
        (
            "easy",
            &["--cache", "easycache,threshold=9", "--steps", "9"],
        ),
        ("tea", &["--cache", "teacache,threshold=9", "--steps", "9"]),
    ] {
        let run = |which: &str| {
            let (clip, dump) = (format!("{name}-{which}.mp4"), format!("{name}-{which}"));
            let flags = [flags, &["--dump", &dump, "--progress", "json", "-v"]].concat();
            (bench.clip(&clip, &flags), bench.path(&dump))
        };
        let ((alone, one), (together, two)) = (run("one"), run("two"));
        let alone = result(&succeed(&mut { alone }));
        let ran = succeed(&mut launch(2, &together));
        assert_eq!(ran.stdout, format!("{name}-two.mp4\n").as_bytes());
        let (shared, sent) = result_and_sent(&ran, 2);
        assert_eq!(alone["passes"], shared["passes"], "{name}");

        let latents =
            |dump: &Path, step: u64| array(&dump.join(format!("step_{step:03}_latents.npy")));
        let steps = alone["settings"]["steps"].as_u64().unwrap();
        let mut guided = 0;
        for step in 0..steps {
            let most = largest_difference(&latents(&one, step), &latents(&two, step));
            assert!(most <= 1e-5, "{name}, step {step}: {most}");
            guided += u64::from(two.join(format!("step_{step:03}_uncond.npy")).exists());
        }
        assert_eq!(guided < steps, name == "interval");
        // The latents at every guided step, and nothing else; a prediction comes back.
        let expected = guided * 4 * latents(&one, 0).len() as u64;
        assert_eq!(sent, [expected; 2], "{name}");
        assert_eq!(alone["sent_bytes"], Value::Null);
        assert!(!bench.state(&format!("{name}-two.mp4")).exists());
    }
}

/// Without guidance, with more machines than guidance has halves, with a token count that they do not
/// divide, with caches and bfloat16.
#[test]
fn rows_are_shared_by_any_number() {
    let bench = Bench::new("a");
    fs::write(
        bench.checkpoint.path("wan_i2v.json"),
        r#"{"teacache": [1.0, 0.0]}"#,
    )
    .unwrap();
    const SIZE: [&str; 2] = ["--size", "48x48"];
    for (name, machines, flags) in [
        ("unguided", 2, &["--guide-scale", "1"][..]),
        ("guided by three", 3, &[]),
        ("guided by two and two", 4, &[]),
        (
            "three",
            3,
            &["--cache", "teacache,threshold=9", "--steps", "9"],
        ),
        // Two by two.
        ("interval", 4, &["--guide-interval", "0.3,0.9"]),
        (
            "tea",
            4,
            &["--cache", "teacache,threshold=9", "--steps", "9"],
        ),
        (
            "easy",
            4,
            &["--cache", "easycache,threshold=9", "--steps", "9"],
        ),
    ] {
        let command = |which: &str| {
            let (clip, dump) = (format!("{name}-{which}.mp4"), format!("{name}-{which}"));
            let flags = [&SIZE, flags, &["--dump", &dump, "--progress", "json", "-v"]].concat();
            (bench.clip(&clip, &flags), bench.path(&dump))
        };
        let ((mut alone, one), (together, two)) = (command("one"), command("two"));
        succeed(&mut alone);
        let ran = succeed(&mut launch(machines, &together));
        let (result, sent) = result_and_sent(&ran, machines);
        let steps = result["settings"]["steps"].as_u64().unwrap();
        let mut largest = 0.0_f32;
        for step in 0..steps {
            let file = format!("step_{step:03}_latents.npy");
            let most = largest_difference(&array(&one.join(&file)), &array(&two.join(&file)));
            assert!(most <= 1e-5, "{name}, step {step}: {most}");
            largest = largest.max(most);
        }
        println!(
            "measured: {name}: {largest:.1e}, {sent:?} bytes sent, {}",
            result["passes"]
        );
        // Caches spare what they spare.
        if !flags.contains(&"--cache") {
            let guided = |step: &u64| two.join(format!("step_{step:03}_uncond.npy")).exists();
            let guided = (0..steps).filter(guided).count() as u64;
            let expected = bench.traffic(machines as u64, 4, [steps, guided]);
            assert_eq!(sent, expected, "{name}");
            assert_eq!(guided == 0, name == "unguided");
            assert_eq!(guided < steps, ["unguided", "interval"].contains(&name));
        }
    }
}

/// Of frames that are large enough, in bands and in tiles.
#[test]
fn frames_are_decoded_by_all() {
    let bench = Bench::new("a");
    for (name, machines, flags) in [
        ("bands", 2, &["--size", "320x32"][..]),
        ("more bands", 3, &["--size", "32x352"]),
        ("tiles", 2, &["--size", "320x96", "--memory-budget", "0.14"]),
    ] {
        let command = |which: &str| {
            let (clip, dump) = (format!("{name}-{which}.mp4"), format!("{name}-{which}"));
            let more = ["--steps", "1", "--dump", &dump, "--progress", "json"];
            let flags = [flags, &more].concat();
            (bench.clip(&clip, &flags), bench.path(&dump))
        };
        let ((mut alone, one), (together, all)) = (command("one"), command("all"));
        succeed(&mut alone);
        let ran = succeed(&mut launch(machines, &together));
        let frames = |dump: &Path| array(&dump.join("frames.npy"));
        let most = largest_difference(&frames(&one), &frames(&all));
        println!("measured: {name}: {most:.1e}");
        assert!(most <= 1e-4, "{name}: {most}");
        if machines == 2 {
            let result: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
            let latents = array(&all.join("step_000_latents.npy")).len();
            // To be guided, and to be decoded.
            assert_eq!(result["sent_bytes"], 2 * 4 * latents, "{name}");
        }
    }
}

/// Keys and values as wide as products, predictions in float32.
#[test]
fn bytes_in_bfloat16_are_those_of_the_forecast() {
    let bench = Bench::new("a");
    let flags = ["--size", "48x48", "--dtype", "bf16", "-v"];
    let command = bench.clip("clip.mp4", &[&flags[..], &["--progress", "json"]].concat());
    let ran = succeed(&mut launch(3, &command));
    let (result, sent) = result_and_sent(&ran, 3);
    let steps = result["settings"]["steps"].as_u64().unwrap();
    assert_eq!(sent, bench.traffic(3, 2, [steps, steps]));
}

#[test]
fn whoever_dies_or_stalls_is_named_and_one_machine_goes_on() {
    let bench = Bench::new("a");
    let flags = ["--steps", "60"];
    succeed(&mut bench.clip("whole.mp4", &flags));
    let hosts = bench.hosts();
    for (signal, said) in [
        (
            "-KILL",
            "rank 1 (127.0.0.1) is lost: its connection has ended",
        ),
        (
            "-STOP",
            "rank 1 (127.0.0.1) is lost: no sign of life for 2 s",
        ),
    ] {
        let second = bench.second(&hosts, &mut bench.clip("nowhere.mp4", &flags));
        let mut first = Running::start(&mut bench.first(&hosts, bench.clip("clip.mp4", &flags)));
        while first.wait_for("step")["step"] != 3 {}
        second.signal(signal);
        let since = Instant::now();
        let (code, events) = first.end();
        assert!(since.elapsed() < Duration::from_secs(8));
        let last = events.last().unwrap();
        let message = last["message"].as_str().unwrap();
        assert_eq!(
            (code, &last["exit_code"]),
            (Some(3), &3.into()),
            "{message}"
        );
        assert!(
            message.contains(said) && message.contains("step "),
            "{message}"
        );
        let saved = SavedRun::read(&bench.state("clip.mp4"))
            .unwrap()
            .steps_taken();
        assert!(saved >= 3, "{saved}");
        if signal == "-STOP" {
            second.signal("-CONT");
            let (code, said) = second.end();
            // What rank 0 has said last is still there.
            assert!(
                code == Some(0) || said.contains("rank 0 (127.0.0.1) has ended"),
                "{said}"
            );
        }
        let (code, events) = Running::start(&mut bench.clip("clip.mp4", &flags)).end();
        assert_eq!(code, Some(0), "{events:#?}");
        let resume = events
            .iter()
            .find(|event| event["event"] == "resume")
            .unwrap();
        assert_eq!(resume["step"], saved);
        assert!(bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")));
        fs::remove_file(bench.path("clip.mp4")).unwrap();
    }
    // The other way round.
    for (signal, said) in [
        (
            "-KILL",
            "rank 0 (127.0.0.1) is lost: its connection has ended",
        ),
        (
            "-STOP",
            "rank 0 (127.0.0.1) is lost: no sign of life for 2 s",
        ),
    ] {
        let second = bench.second(&hosts, &mut bench.clip("nowhere.mp4", &flags));
        let mut first = Running::start(&mut bench.first(&hosts, bench.clip("clip.mp4", &flags)));
        first.wait_for("step");
        first.signal(signal);
        let (code, said_by) = second.end();
        assert!(code == Some(3) && said_by.contains(said), "{said_by}");
    }
    assert!(!bench.path("nowhere.mp4").exists());
}

/// As long as it shows signs of life in time.
#[test]
fn whoever_is_slow_is_waited_for() {
    let bench = Bench::new("a");
    let hosts = bench.hosts();
    for scale in ["2", "1"] {
        let flags = ["--steps", "20", "--guide-scale", scale];
        let second = bench.second(&hosts, &mut bench.clip("nowhere.mp4", &flags));
        let mut first = Running::start(&mut bench.first(&hosts, bench.clip("clip.mp4", &flags)));
        let start = Instant::now();
        for _ in 0..3 {
            first.wait_for("step");
            second.signal("-STOP");
            thread::sleep(Duration::from_secs(1));
            second.signal("-CONT");
        }
        let (code, events) = first.end();
        assert_eq!(code, Some(0), "{events:#?}");
        assert!(start.elapsed() > Duration::from_secs(3));
        assert_eq!(second.end(), (Some(0), String::new()));
        fs::remove_file(bench.path("clip.mp4")).unwrap();
    }
}

#[test]
fn who_makes_another_clip_is_refused_with_the_difference() {
    let (bench, other) = (Bench::new("a"), Bench::new("b"));
    let hosts = bench.hosts();
    let refused = |second: &mut Command, flags: &[&str]| {
        let second = bench.second(&hosts, second);
        let ran = run(&mut bench.first(&hosts, bench.clip("clip.mp4", flags)));
        let (code, said) = second.end();
        assert!(code.is_some_and(|code| code != 101), "{code:?}: {said}");
        assert_eq!(bench.written(), ["hosts.json".to_owned()].into());
        ran
    };
    let ran = refused(&mut bench.clip("clip.mp4", &["--shift", "3"]), &[]);
    assert_eq!(ran.code, Some(1));
    let said = "rank 1 (127.0.0.1) makes another clip:\n  --shift: 3 there, 5 here\nhint: ";
    assert!(
        ran.stderr.replace("error: ", "").contains(said),
        "{}",
        ran.stderr
    );
    // Of the same names and shapes.
    let model = other.checkpoint.root().to_str().unwrap();
    let mut another = program();
    another
        .current_dir(bench.work.path())
        .args(["--model", model, "--image"]);
    another
        .arg(bench.picture())
        .args(FLAGS)
        .args(["--output", "clip.mp4"]);
    let ran = refused(&mut another, &[]);
    assert!(ran.stderr.contains("the VAE: "), "{}", ran.stderr);
    // What is wrong with rank 1 alone, rank 0 says too.
    let ran = refused(
        &mut bench.clip("clip.mp4", &["--lora", "none.safetensors"]),
        &[],
    );
    assert_eq!(ran.code, Some(3));
    assert!(
        ran.stderr.contains("rank 1 (127.0.0.1) has failed: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn places_are_refused_before_anything_is_computed() {
    let bench = Bench::new("a");
    let hosts = bench.hosts();
    let refused = |rank: Option<&str>, file: &Path, parts: &[&str]| {
        let mut command = bench.clip("clip.mp4", &[]);
        command.arg("--machines").arg(file);
        if let Some(rank) = rank {
            command.env("MLX_RANK", rank);
        }
        run(&mut command).assert_refused(1, parts);
    };
    refused(
        None,
        &hosts,
        &["--machines: MLX_RANK is not set", "hint: wan-i2v launch"],
    );
    refused(
        Some("2"),
        &hosts,
        &["MLX_RANK: \"2\" is no place in ", "expected 0 to 1"],
    );
    // What MLX's ring would find out after half a minute.
    let other = bench.path("other.json");
    fs::write(&other, r#"[["192.0.2.1:50000"], ["127.0.0.1:50001"]]"#).unwrap();
    refused(
        Some("0"),
        &other,
        &[
            "192.0.2.1 is not an address of this machine",
            "hint: see to the addresses",
        ],
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    fs::write(&other, format!(r#"[["127.0.0.1:1025"], ["{address}"]]"#)).unwrap();
    refused(
        Some("1"),
        &other,
        &[
            &format!("cannot listen at {address}: "),
            "hint: name other ports",
        ],
    );
    let missing = bench.path("missing.json");
    refused(
        Some("0"),
        &missing,
        &["--machines: cannot read ", "missing.json"],
    );
}

/// A machine is known by the address that the file has, whichever it would connect from by itself.
#[cfg(target_os = "linux")]
#[test]
fn a_machine_is_known_by_its_listed_address() {
    use std::io::Write;
    use std::net::TcpStream;

    let bench = Bench::new("a");
    let (hosts, port) = (bench.path("hosts.json"), free_ports(3));
    let text = format!(r#"[["127.0.0.1:{port}"], ["127.0.0.2:{}"]]"#, port + 1);
    fs::write(&hosts, text).unwrap();
    // Others are sent away, whatever they say.
    let stranger = thread::spawn(move || {
        let connected = || TcpStream::connect(("127.0.0.1", port + 2)).ok();
        let mut stream = loop {
            match connected() {
                Some(stream) => break stream,
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        // A message of 4096 bytes, one after the other.
        let _ = stream.write_all(&[1, 0, 16, 0, 0]);
        let start = Instant::now();
        while stream.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
        start.elapsed()
    });
    let first = Running::start(&mut bench.first(&hosts, bench.clip("clip.mp4", &[])));
    assert!(stranger.join().unwrap() < Duration::from_secs(1));
    let second = bench.second(&hosts, &mut bench.clip("nowhere.mp4", &[]));
    assert_eq!(first.end().0, Some(0));
    assert_eq!(second.end(), (Some(0), String::new()));
    // And one that does not come is named.
    let mut alone = Running::start(&mut bench.first(&hosts, bench.clip("other.mp4", &[])));
    let said = loop {
        let note = alone.wait_for("note")["message"]
            .as_str()
            .unwrap()
            .to_owned();
        if note.starts_with("waiting") {
            break note;
        }
    };
    let expected = format!("waiting at 127.0.0.1:{} for rank 1 (127.0.0.2)", port + 2);
    assert_eq!(said, expected);
}

#[test]
fn launch_ends_all_when_one_ends_or_is_told_to() {
    let bench = Bench::new("a");
    let mut failing = launch(2, &bench.clip("clip.mp4", &["--lora", "none.safetensors"]));
    let ran = run(failing.stdin(Stdio::null()));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    bench.assert_only(&[]);

    // A signal is rank 0's.
    let flags = ["--steps", "130"];
    let mut running = Running::start(&mut launch(2, &bench.clip("clip.mp4", &flags)));
    running.wait_for("step");
    running.signal("-INT");
    let (code, events) = running.end();
    assert_eq!(code, Some(130), "{events:#?}");
    let saved = SavedRun::read(&bench.state("clip.mp4"))
        .unwrap()
        .steps_taken();
    // And what is saved goes on with two.
    let (code, events) = Running::start(&mut launch(2, &bench.clip("clip.mp4", &flags))).end();
    assert_eq!(code, Some(0), "{events:#?}");
    let resume = events
        .iter()
        .find(|event| event["event"] == "resume")
        .unwrap();
    assert_eq!(resume["step"], saved);
    bench.assert_only(&["clip.mp4"]);

    for (words, said) in [
        (
            &["--hosts", "localhost"][..],
            "--hosts: 1 machine; expected at least 2",
        ),
        (
            &["--hosts", "localhost,192.0.2.1"],
            "localhost cannot be reached from the other machines",
        ),
        (
            &["--hosts", "a=1,b=2"],
            "\"1\" is not a machine's IPv4 address",
        ),
        (
            &["--hosts", "a=0.0.0.0,b=0.0.0.0"],
            "\"0.0.0.0\" is not a machine's IPv4 address",
        ),
        (&["--hosts", "a;b,c"], "\"a;b\" is no machine"),
    ] {
        let ran = run(program()
            .arg("launch")
            .args(words)
            .args(["--", "--prompt", "x"]));
        assert!(
            ran.code != Some(0) && ran.stderr.contains(said),
            "{}",
            ran.stderr
        );
    }
    let of_plan = ["plan", "--machine", "64"];
    for (words, code, said) in [
        (&of_plan[..], 1, "plan is nothing that machines share"),
        // Once, before a rank is started.
        (&["--prompt", "x", "--stepz", "3"], 2, "--stepz"),
        (
            &["-p", "x", "-i", "x.png", "--machines", "x"],
            1,
            "--machines: launch makes that file",
        ),
        (&["-p", "-", "-i", "x.png"], 1, "- reads standard input"),
        (&["-p-", "-i", "x.png"], 1, "- reads standard input"),
    ] {
        run(&mut launch(2, program().args(words))).assert_refused(code, &[said]);
    }
}

/// A signal to `launch` is one to rank 0, and leaves nothing of it.
#[test]
fn launch_passes_signals_on() {
    let bench = Bench::new("a");
    let temporary = bench.path("tmp");
    fs::create_dir(&temporary).unwrap();
    for (signals, code) in [
        (&["-TERM"][..], 143),
        // As of a terminal that is closed.
        (&["-HUP"], 143),
        (&["-INT", "-INT"], 130),
    ] {
        let mut command = launch(2, &bench.clip("clip.mp4", &["--steps", "130"]));
        let mut running = Running::start(command.env("TMPDIR", &temporary));
        running.wait_for("step");
        signals.iter().for_each(|signal| running.signal(signal));
        let (ended, events) = running.end();
        assert_eq!(ended, Some(code), "{signals:?}: {events:#?}");
        let taken = SavedRun::read(&bench.state("clip.mp4"))
            .unwrap()
            .steps_taken();
        assert!(taken < 130, "{signals:?}");
        fs::remove_file(bench.state("clip.mp4")).unwrap();
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "{signals:?}");
    }
}

/// As a program that `nohup` has started.
#[test]
fn launch_ignores_what_it_was_started_to_ignore() {
    let bench = Bench::new("a");
    let launch = launch(2, &bench.clip("clip.mp4", &[]));
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap "" HUP; exec "$@""#, "sh"]);
    shell.arg(launch.get_program()).args(launch.get_args());
    for (name, value) in launch.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    let mut running = Running::start(shell.current_dir(bench.work.path()));
    running.wait_for("step");
    running.signal("-HUP");
    let (code, events) = running.end();
    assert_eq!(code, Some(0), "{events:#?}");
}

/// Whoever does not read what it says can still end it.
#[test]
fn launch_ends_at_a_second_signal_though_nobody_listens() {
    let bench = Bench::new("a");
    let temporary = bench.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let flags = ["--steps", "1000", "--no-checkpoint"];
    let mut command = launch(2, &bench.clip("clip.mp4", &flags));
    let mut running = Running::start(command.env("TMPDIR", &temporary));
    running.wait_for("step");
    // More than the pipes hold.
    thread::sleep(Duration::from_secs(8));
    let start = Instant::now();
    running.signal("-INT");
    thread::sleep(Duration::from_millis(100));
    running.signal("-INT");
    assert_eq!(running.child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

/// Every line is one, also those of what went wrong elsewhere.
#[test]
fn launch_tells_of_everything_in_events() {
    let bench = Bench::new("a");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = busy.local_addr().unwrap().port();
    let mut command = program();
    command.current_dir(bench.work.path());
    // Rank 1's port is taken.
    let port = (second - 1).to_string();
    command.args([
        "launch",
        "--hosts",
        "localhost,localhost",
        "--port",
        &port,
        "--",
    ]);
    command.args(bench.clip("clip.mp4", &[]).get_args());
    let (code, events) = Running::start(&mut command).end();
    assert_eq!(code, Some(1), "{events:#?}");
    let said = |event: &Value| event["message"].as_str().unwrap().to_owned();
    let notes = events.iter().filter(|event| event["event"] == "note");
    let of_rank = format!("rank 1 (localhost): error: cannot listen at 127.0.0.1:{second}: ");
    assert!(
        notes.map(said).any(|text| text.starts_with(&of_rank)),
        "{events:#?}"
    );
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit_code"]),
        (&json!("error"), &json!(1))
    );
    let expected =
        "rank 1 (localhost) has ended with exit status: 1; rank 0 (localhost) was stopped";
    assert_eq!(said(last), expected);
    // And of what is wrong before there is any rank.
    let mut alone = launch(1, &bench.clip("clip.mp4", &[]));
    let (code, events) = Running::start(&mut alone).end();
    assert_eq!((code, events.len()), (Some(1), 1), "{events:#?}");
    assert!(said(&events[0]).starts_with("--hosts: 1 machine; "));
}

const JOBS: &str = r#"{"name": "a", "prompt": "a cat", "seed": [1, 2, 3], "strip": "{name}_{seed}.png"}
{"name": "b", "prompt": "a dog", "seed": [4, 5], "no-metadata": true}
{"name": "c", "prompt": "a dog", "seed": 6, "output": "c/{seed}/"}"#;

impl Bench {
    /// The clips of a folder, by name.
    fn files(&self, folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for name in ["", "c/6"] {
            let path = self.path(folder).join(name);
            let files = fs::read_dir(path).into_iter().flatten().flatten();
            let files = files.filter(|entry| entry.path().is_file());
            let files = files.filter(|entry| {
                !["wan-batch.json", "index.html"].contains(&entry.file_name().to_str().unwrap())
            });
            all.extend(files.map(|entry| {
                (
                    Path::new(name).join(entry.file_name()),
                    fs::read(entry.path()).unwrap(),
                )
            }));
        }
        all.sort();
        all
    }
}

/// Numbers of the clips that are made, and of those whose steps are told.
fn made(events: &[Value]) -> [std::collections::BTreeSet<u64>; 2] {
    let of = |name: &str| {
        let named = events.iter().filter(|event| event["event"] == name);
        named.filter_map(|event| event["clip"].as_u64()).collect()
    };
    [of("clip_end"), of("step")]
}

#[test]
fn clips_go_to_free_machines_and_are_the_same_bytes() {
    let bench = Bench::new("a");
    let flags = ["--jobs-at-once", "2"];
    succeed(&mut bench.batch("jobs.jsonl", JOBS, &flags));
    fs::rename(bench.path("out"), bench.path("alone")).unwrap();
    let launch = || launch(3, &bench.batch("jobs.jsonl", JOBS, &flags));
    let (code, events) = Running::start(&mut launch()).end();
    assert_eq!(code, Some(0), "{events:#?}");
    let [ended, own] = made(&events);
    assert_eq!(ended, (1..=6).collect());
    assert!(own.len() < 6, "{own:?}");
    let expected = bench.files("alone");
    assert_eq!(expected.len(), 3 + 5 + 5, "strips, clips and frames");
    assert!(bench.files("out") == expected);
    let report = |folder: &str| -> Value {
        let text = fs::read(bench.path(folder).join("wan-batch.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let digests = |report: &Value| -> Vec<Value> {
        let clips = report["clips"].as_array().unwrap().iter();
        clips
            .map(|clip| serde_json::json!([clip["digest"], clip["bytes"], clip["status"]]))
            .collect()
    };
    assert_eq!(digests(&report("alone")), digests(&report("out")));
    // All are there.
    let (code, events) = Running::start(&mut launch()).end();
    assert_eq!((code, made(&events)), (Some(0), Default::default()));

    // One that dies returns its clips.
    let hosts = bench.hosts();
    fs::remove_dir_all(bench.path("out")).unwrap();
    let long = JOBS.replace(r#""seed": 6"#, r#""seed": 6, "steps": 3"#);
    let command = || bench.batch("long.jsonl", &long, &flags);
    let second = bench.second(&hosts, &mut command());
    let mut first = Running::start(&mut bench.first(&hosts, command()));
    first.wait_for("step");
    second.signal("-KILL");
    let (code, events) = first.end();
    assert_eq!(code, Some(0), "{events:#?}");
    let lost = "rank 1 (127.0.0.1) is lost: its connection has ended; clips that other machines take over: ";
    let warned = |event: &Value| {
        event["message"]
            .as_str()
            .is_some_and(|text| text.starts_with(lost))
    };
    assert!(events.iter().any(warned), "{events:#?}");
    assert_eq!(bench.files("out").len(), expected.len());
}

/// Also where the lost rank was started by `launch`, which ends a clip's.
#[cfg(target_os = "linux")]
#[test]
fn a_launched_batch_goes_on_without_a_lost_rank() {
    use std::io::{BufRead, BufReader};

    let bench = Bench::new("a");
    let long = JOBS.replace(r#""seed": 6"#, r#""seed": 6, "steps": 3"#);
    let mut launched = launch(
        2,
        &bench.batch("long.jsonl", &long, &["--progress", "json"]),
    );
    let mut launched = launched
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(launched.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(r#""event":"step""#)));
    // The ranks have the same flags, and are told apart by a variable.
    let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let folder = entry.unwrap().path();
        let environment = fs::read(folder.join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let is_second = variables.any(|variable| variable == b"MLX_RANK=1");
        let folder_of = fs::read_link(folder.join("cwd")).ok()?;
        let is_ours = folder_of == bench.work.path().canonicalize().unwrap();
        (is_second && is_ours).then(|| folder.file_name().unwrap().to_owned())
    });
    let children: Vec<_> = children.collect();
    assert_eq!(children.len(), 1, "{children:?}");
    let kill = Command::new("kill").arg("-KILL").args(&children).status();
    assert!(kill.unwrap().success());
    let events = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
    let events: Vec<Value> = events.collect();
    assert!(launched.wait().unwrap().success(), "{events:#?}");
    assert!(made(&events)[0].contains(&6), "{events:#?}");
    assert_eq!(bench.files("out").len(), 3 + 5 + 5);
}

#[test]
fn doctor_measures_between_machines() {
    let bench = Bench::new("a");
    let cache = bench.path("cache");
    let kept = cache.join("wan-i2v/exchange.json");
    let doctor = || {
        let mut doctor = launch(2, program().args(["doctor", "--json"]));
        let ran = succeed(doctor.env("XDG_CACHE_HOME", &cache));
        serde_json::from_slice::<Value>(&ran.stdout).unwrap()
    };
    let measured = doctor();
    assert_eq!(measured["machines"][1], "rank 1 (127.0.0.1)");
    assert!(
        measured["bytes_per_second"].as_f64().unwrap() > 1e6,
        "{measured}"
    );
    assert_eq!(measured["clips"].as_array().unwrap().len(), 2);
    let rates: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    assert_eq!(rates[0]["machines"], json!(["127.0.0.1", "127.0.0.1"]));
    for key in ["bytes_per_second", "least_seconds"] {
        assert_eq!(rates[0][key], measured[key], "{key}");
    }
    // Which says nothing of a wire.
    let plan = bench.plan_of(2, &cache);
    assert_eq!(plan["rate"], Value::Null);
    // A file that cannot be replaced is none that doctor needs.
    fs::remove_dir_all(&cache).unwrap();
    fs::write(&cache, "no folder").unwrap();
    assert!(doctor()["least_seconds"].as_f64().unwrap() > 0.0);
}

impl Bench {
    fn plan(&self, more: &[&str]) -> Command {
        self.plan_of_size("48x48", more)
    }

    fn plan_of_size(&self, size: &str, more: &[&str]) -> Command {
        let mut command = program();
        command.arg("plan").arg("--model");
        command.arg(self.checkpoint.root());
        command.args(["--size", size, "--frames", "9", "--device", "cpu"]);
        command.args(more);
        command
    }

    /// What `plan` says of so many machines, with what is kept in a folder.
    fn plan_of(&self, machines: usize, cache: &Path) -> Value {
        let mut plan = self.plan(&["--machines", &machines.to_string(), "--json"]);
        let ran = succeed(plan.env("XDG_CACHE_HOME", cache));
        let all: Value = serde_json::from_slice(&ran.stdout).unwrap();
        all["machines"].clone()
    }
}

#[test]
fn plan_says_what_machines_send_and_hold() {
    let bench = Bench::new("a");
    let plan = |more: &[&str]| succeed(&mut bench.plan(more));
    let ran = plan(&["--machines", "2", "--json"]);
    let two: Value = serde_json::from_slice(&ran.stdout).unwrap();
    // 3 frames of 6 x 6 latents in float32.
    assert_eq!(two["machines"]["sent_bytes"], 4 * 16 * 3 * 6 * 6);
    assert_eq!(two["machines"]["guidance"], true);
    assert_eq!(two["machines"]["guided"], true);
    assert_eq!(two["machines"]["decoding"], Value::Null);
    let held = two["machines"]["peak_bytes"].as_u64();
    assert!(held > Some(0) && held <= two["forecast"]["peak_bytes"].as_u64());
    let ran = plan(&["--machines", "3", "--json"]);
    let three: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(three["machines"]["guidance"], false);
    assert_eq!(
        three["machines"]["sent_bytes"],
        bench.traffic(3, 4, [1, 1])[0]
    );
    let ran = plan(&["--machines", "3", "--json", "--guide-scale", "1"]);
    let three: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(three["machines"]["guided"], false);
    assert_eq!(
        three["machines"]["sent_bytes"],
        bench.traffic(3, 4, [1, 0])[0]
    );
    // Of frames that are large enough: latents there, and half of the pixels back.
    let ran = succeed(&mut bench.plan_of_size("320x32", &["--machines", "2", "--json"]));
    let large: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let decoding = &large["machines"]["decoding"];
    let exchanged = 4 * 16 * 3 * 4 * 40 + 12 * 9 * 320 * 32 / 2;
    assert_eq!(
        (&decoding["machines"], &decoding["exchanged_bytes"]),
        (&json!(2), &json!(exchanged))
    );
    let share = decoding["largest_share"].as_f64().unwrap();
    assert!(share > 0.5 && share <= 0.8, "{share}");
}

#[test]
fn plan_takes_the_rate_that_was_measured() {
    let bench = Bench::new("a");
    let cache = bench.path("cache");
    let of = |machines: &[&str], rate: f64, least: f64| {
        json!({ "machines": machines, "bytes_per_second": rate, "least_seconds": least,
            "measured_at": 1 })
    };
    let both = ["10.0.0.1", "10.0.0.2"];
    let keep = |rates: &[Value]| {
        fs::create_dir_all(cache.join("wan-i2v")).unwrap();
        fs::write(
            cache.join("wan-i2v/exchange.json"),
            json!(rates).to_string(),
        )
        .unwrap();
    };
    let plan = bench.plan_of(2, &cache);
    assert_eq!(
        (&plan["rate"], &plan["exchange_seconds"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(plan["wires"].as_array().unwrap().len(), 2);
    // The latents there, and a prediction back.
    let bytes = 2.0 * plan["sent_bytes"].as_f64().unwrap();
    assert_eq!(plan["wires"][0]["exchange_seconds"], json!(bytes / 10e9));

    keep(&[
        of(&both, 1e6, 1.0),
        of(&["10.0.0.1", "10.0.0.3", "10.0.0.2"], 2e6, 0.5),
        of(&["10.0.0.2", "10.0.0.3"], 4e6, 0.5),
        of(&both, 0.0, 0.5),
        of(&["127.0.0.1", "127.0.0.1"], 1e9, 1e-3),
    ]);
    let plan = bench.plan_of(2, &cache);
    assert_eq!(plan["rate"]["machines"], json!(["10.0.0.2", "10.0.0.3"]));
    let exchange = plan["exchange_seconds"].as_f64().unwrap();
    assert!(
        (exchange / (bytes / 4e6 + 1.0) - 1.0).abs() < 1e-9,
        "{plan}"
    );
    let [measured, wire] = [&plan["seconds"], &plan["wires"][0]["seconds"]].map(Value::as_f64);
    assert!(measured > wire && wire > Some(0.0), "{plan}");
    assert_eq!(bench.plan_of(3, &cache)["rate"]["bytes_per_second"], 2e6);
    assert_eq!(bench.plan_of(4, &cache)["rate"], Value::Null);
    // Of a machine that is not here nothing is known.
    let of_mac = ["plan", "--machine", "64", "--machines", "2"];
    let ran = succeed(program().args(of_mac).env("XDG_CACHE_HOME", &cache));
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(
        said.contains("over 10 GbE") && !said.contains("the clip takes"),
        "{said}"
    );
    // A damaged file is none.
    fs::write(cache.join("wan-i2v/exchange.json"), "[{]").unwrap();
    assert_eq!(bench.plan_of(2, &cache)["rate"], Value::Null);
}

#[test]
fn a_sweep_s_clips_go_to_free_machines_too() {
    let bench = Bench::new("a");
    let vary = [
        "--size",
        "32x32",
        "--vary",
        "steps=1,2,3",
        "--vary",
        "seed=1,2",
    ];
    let clips = || {
        let mut files = bytes(&bench.path("made"));
        files.retain(|(name, _)| name.extension().is_some_and(|kind| kind == "mp4"));
        files
    };
    succeed(&mut bench.sweep(&vary));
    let alone = clips();
    assert_eq!(alone.len(), 6 + 1, "clips, and all side by side");
    fs::rename(bench.path("made"), bench.path("alone")).unwrap();
    let ran = succeed(&mut launch(2, &bench.sweep(&vary)));
    assert!(clips() == alone, "{}", ran.stderr);
    // Rank 0 tells of the phases of its own alone.
    let own = ran.stderr.matches(": decoding: ").count();
    assert!((1..6).contains(&own), "{}", ran.stderr);
}
