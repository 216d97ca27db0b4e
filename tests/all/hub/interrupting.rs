//! Streaming conversions that are interrupted, and go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wan_i2v::weights::convert::{Event, source_folder};

use crate::hub::Bench;
use crate::hub::converting::{options, reference};
use crate::hub::models::{LOW, Model, assert_same, shard};
use crate::hub::server::{COMMIT, Fault};

/// The experts alone, in shards.
fn experts() -> Model {
    Model::sharded().only(&["transformer", "transformer_2"])
}

/// Where a file of the source is while it is fetched.
fn part(bench: &Bench, path: &str) -> PathBuf {
    let folder = source_folder(&bench.target()).join(COMMIT);
    folder.join(format!("{path}.part"))
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// The arguments that [`options`] stand for.
fn pull(target: &Path) -> Vec<&str> {
    let target = target.to_str().unwrap();
    let bits = ["--bits", "4", "--text-bits", "8", "--shard-size", "0"];
    [&["pull", "owner/model", "--output", target], &bits[..]].concat()
}

#[test]
fn a_cut_shard_goes_on_where_it_stopped() {
    let (bench, model) = (Bench::serving(&experts()), experts());
    let second = format!("transformer/{}", shard(2));
    bench
        .server
        .stuck(&second, &[Fault::Cut(300_000), Fault::Cut(0)]);
    let error = bench.convert_error();
    assert!(error.contains(&second), "{error}");
    assert!(error.contains("300.00 kB of "), "{error}");
    assert!(
        error.contains("the same command resumes from there"),
        "{error}"
    );
    assert_eq!(len(&part(&bench, &second)), 300_000);
    // As a run leaves it that is killed while it writes a small file.
    let unfinished = bench.target().with_file_name("model.partial");
    fs::write(
        unfinished.join(".wan-i2v-0123456789ab-abcdef"),
        b"half a fi",
    )
    .unwrap();
    bench.asked();

    bench.server.faults(&second, &[]);
    let (mut resumed, mut fetched, mut read, mut total) = (false, 0, 0, 0);
    let mut count = |event: Event| match event {
        Event::Resumed => resumed = true,
        Event::Fetched(bytes) => fetched += bytes,
        Event::Total(bytes) => total = bytes,
        Event::Read(bytes) | Event::Skipped(bytes) | Event::Known(bytes) => read += bytes,
        Event::Verifying(_) => assert!(read <= total && read > total - total / 20),
        _ => {}
    };
    bench.convert(&options(), &mut count).unwrap();
    assert!(resumed);
    let mut expected: Vec<(String, String)> = model.weights()[1..]
        .iter()
        .map(|path| (path.clone(), String::new()))
        .collect();
    expected[0].1 = "bytes=300000-".to_owned();
    assert_eq!(bench.asked(), expected, "the first shard is done with");
    // What was there of the second counts too.
    let first = model.0[&model.weights()[0]].len() as u64;
    assert_eq!(fetched, total - first);
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&bench.target(), &expected);
}

#[test]
fn killed_while_fetching() {
    let (bench, model) = (Bench::serving(&experts()), experts());
    let target = bench.target();
    let third = format!("transformer/{}", shard(3));
    bench.server.faults(&third, &[Fault::Stall(400_000)]);
    let mut run = bench.start(&pull(&target));
    let part = part(&bench, &third);
    run.wait_until("the third shard", || len(&part) == 400_000);
    assert!(run.kill());
    assert!(!target.exists());
    bench.asked();

    let ran = bench.run(&pull(&target));
    assert_eq!(Path::new(ran.path()), target);
    assert!(
        ran.stderr.contains("going on where the last run stopped"),
        "{}",
        ran.stderr
    );
    let asked = bench.asked();
    assert_eq!(asked[0], (third, "bytes=400000-".to_owned()));
    assert_eq!(asked.len(), 4, "two shards are done with");
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&target, &expected);
}

/// At the beginning, half-way and at the end of the conversion of a file, as the time falls.
#[test]
fn killed_while_converting_and_verifying() {
    let model = Model::miniature().only(&["transformer", "transformer_2"]);
    let bench = Bench::serving(&model);
    let expected = reference(&model, &options(), bench.folder.path());
    for line in [
        "pulling: converting the high",
        "pulling: converting the low",
        "pulling: 5",
    ] {
        let target = bench.target().with_file_name(line.replace([' ', ':'], "-"));
        let mut run = bench.start(&pull(&target));
        run.wait_for_line(line);
        run.kill();
        assert!(!target.exists() || line.ends_with('5'));
        if !target.exists() {
            bench.run(&pull(&target)).path();
        }
        assert_same(&target, &expected);
    }
}

#[test]
fn a_signal_says_how_to_go_on() {
    let bench = Bench::serving(&experts());
    let second = format!("transformer/{}", shard(2));
    bench.server.faults(&second, &[Fault::Stall(100_000)]);
    let target = bench.target();
    let mut run = bench.start(&pull(&target));
    let part = part(&bench, &second);
    run.wait_until("the second shard", || len(&part) == 100_000);
    let (code, said) = run.interrupt();
    assert_eq!(code, Some(130), "{said}");
    let end = format!(
        "\nerror: interrupted; what has been fetched is kept\nhint: to go on: wan-i2v {}\n",
        pull(&target).join(" ")
    );
    assert!(said.ends_with(&end), "{said}");
    assert_eq!(len(&part), 100_000);
    bench.server.faults(&second, &[]);
    let again = bench.run(&pull(&target));
    again.path();
}

#[test]
fn killed_again_and_again() {
    let model = experts();
    let bench = Bench::serving(&model);
    // The files take about a second altogether.
    bench.server.slow(Duration::from_millis(2));
    let (target, mut kills) = (bench.target(), 0);
    for tenths in 1_u64.. {
        let run = bench.start(&pull(&target));
        std::thread::sleep(Duration::from_millis(50 * tenths));
        kills += usize::from(run.kill());
        if target.exists() {
            break;
        }
        assert!(tenths < 60);
    }
    println!("measured: {kills} runs were killed");
    assert!(kills > 1);
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&target, &expected);
}

#[test]
fn two_at_once() {
    let (bench, model) = (Bench::serving(&experts()), experts());
    let target = bench.target();
    let second = format!("transformer/{}", shard(2));
    bench.server.faults(&second, &[Fault::Stall(100_000)]);
    let mut run = bench.start(&pull(&target));
    let part = part(&bench, &second);
    run.wait_until("the second shard", || len(&part) == 100_000);
    bench.server.log();
    bench
        .run(&pull(&target))
        .assert_fails(&["another wan-i2v is filling this folder", "model.partial"]);
    assert_eq!(bench.asked(), []);
    // The first one is not disturbed: the stall passes.
    run.wait_until("the end", || target.exists() || len(&part) > 100_000);
    // At its end it takes its lock out of the folder that it has just given its name.
    if target.exists() {
        run.wait_until("its lock to go", || !target.join(".lock").exists());
    }
    run.kill();
    if !target.exists() {
        bench.run(&pull(&target)).path();
    }
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&target, &expected);
}

#[test]
fn killed_between_the_last_name_and_tidying_up() {
    let (bench, model) = (Bench::serving(&experts()), experts());
    let target = bench.target();
    bench.run(&pull(&target)).path();
    let expected = reference(&model, &options(), bench.folder.path());
    let inspect = || {
        let ran = bench.run(&["inspect", target.to_str().unwrap(), "--json"]);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    let tidy = inspect();
    let (state, lock) = (target.join("conversion-state.json"), target.join(".lock"));
    fs::write(&state, "{}").unwrap();
    fs::write(&lock, "").unwrap();
    let left = || (state.exists(), lock.exists());

    // It is as good as any.
    assert_eq!(inspect(), tidy);
    let compare = [
        "compare",
        target.to_str().unwrap(),
        expected.to_str().unwrap(),
    ];
    assert!(bench.run(&compare).stdout.contains("equal: "));

    // While it is held, another run is about to tidy up.
    let held = fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    let again = || assert_eq!(Path::new(bench.run(&pull(&target)).path()), target);
    again();
    assert_eq!(left(), (true, true));
    drop(held);
    again();
    assert_eq!(left(), (false, false));
    assert_same(&target, &expected);

    // Nothing else's lock.
    let other = bench.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join(".lock"), "").unwrap();
    bench.run(&pull(&other)).assert_fails(&["already exists"]);
    assert!(other.join(".lock").exists());
}

#[test]
fn a_finished_one_is_there_and_nothing_else_is_taken_for_it() {
    let model = Model::miniature().only(&["transformer", "transformer_2"]);
    let bench = Bench::serving(&model);
    let target = bench.target();
    bench.run(&pull(&target)).path();
    let expected = reference(&model, &options(), bench.folder.path());
    let partial = target.with_file_name("model.partial");
    bench.server.log();
    let done = || {
        let ran = bench.run(&pull(&target));
        assert_eq!(Path::new(ran.path()), target);
        assert!(
            ran.stderr.contains("model is complete already"),
            "{}",
            ran.stderr
        );
        // The listing tells the commit.
        assert_eq!(bench.server.log().len(), 1);
        assert_same(&target, &expected);
    };
    done();

    let refused = |args: &[&str], parts: &[&str]| {
        let ran = bench.run(args);
        ran.assert_fails(&["--output: ", "model already exists", "remove it or choose"]);
        ran.assert_fails(parts);
        assert_eq!(bench.asked(), []);
        assert!(!partial.exists());
    };
    for (at, other) in [(5, "8"), (7, "4"), (9, "1")] {
        let mut args = pull(&target);
        args[at] = other;
        refused(&args, &["with other options"]);
    }
    let mut part = pull(&target);
    part.push(LOW);
    refused(&part, &["from another source", "owner/model@"]);

    // Everything of it has to be there.
    let files = ["low_noise_model.safetensors", "config.json"];
    let without = ["low-noise expert", "without config.json"];
    for (name, part) in files.iter().zip(without) {
        fs::rename(target.join(name), bench.folder.path().join("kept")).unwrap();
        refused(&pull(&target), &[part]);
        fs::rename(bench.folder.path().join("kept"), target.join(name)).unwrap();
    }
    let path = target.join(files[0]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(&pull(&target), &["but damaged", files[0]]);
    fs::write(&path, whole).unwrap();
    let report = target.join("conversion.json");
    let text = fs::read_to_string(&report).unwrap();
    let older = text.replace("\"program\": \"wan-i2v ", "\"program\": \"wan-i2v 0.0.");
    fs::write(&report, older).unwrap();
    refused(&pull(&target), &["converted by wan-i2v 0.0."]);
    fs::write(&report, "{}").unwrap();
    refused(&pull(&target), &[]);
    fs::write(&report, text).unwrap();
    done();

    // The branch moves on.
    bench.server.commit(&"5".repeat(40));
    refused(&pull(&target), &["from another source", "owner/model@"]);
}

#[test]
fn other_options_or_another_model_do_not_mix() {
    let model = Model::miniature().only(&["transformer", "transformer_2"]);
    let bench = Bench::serving(&model);
    bench.server.stuck(LOW, &[Fault::Status(404, "")]);
    bench.convert_error();
    let mut others = options();
    others.low = None;
    let error = bench.convert(&others, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("another source or with other options") && error.contains("model.partial"),
        "{error}"
    );
    // Nothing of it was lost.
    bench.server.faults(LOW, &[]);
    bench.asked();
    bench.convert(&options(), &mut |_| {}).unwrap();
    assert_eq!(bench.asked(), [(LOW.to_owned(), String::new())]);
    assert!(
        bench.convert(&options(), &mut |_| {}).is_err(),
        "it is there"
    );
}

/// A pull that was refused before it began leaves small files; the next one, of another
/// repository, must not take them for its own.
#[test]
fn what_another_pull_has_left() {
    let bench = Bench::new();
    let mut wrong = Model::sharded();
    wrong.edit_json("model_index.json", |index| {
        index["boundary_ratio"] = 0.5.into();
    });
    wrong.edit_json(
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            map.remove("proj_out.bias").unwrap();
        },
    );
    wrong.serve(&bench.server);
    bench.convert_error();

    let model = Model::original(".safetensors").only(&["high_noise_model", "low_noise_model"]);
    let other = Bench::serving(&model);
    let mut right = Bench::new();
    right.server = other.server;
    right.config.endpoint = right.server.url();
    right.server.commit("b".repeat(40).as_str());
    right.folder = bench.folder;
    right.convert(&options(), &mut |_| {}).unwrap();
    let expected = reference(&model, &options(), right.folder.path());
    assert_same(&right.target(), &expected);
}
