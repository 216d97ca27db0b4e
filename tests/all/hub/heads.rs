//! What a model on the hub is, told from the heads of its files.

use std::fs;
use std::path::Path;

use serde_json::Value;
use wan_i2v::hub::pull::Heads;
use wan_i2v::weights::inspect::Report;
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::naming::Kind;
use wan_i2v::weights::{Files, PartName};

use crate::hub::models::{HIGH, Model, renamed, shard};
use crate::hub::server::Fault;
use crate::hub::{Bench, repo};
use crate::support::gguf;

/// The report as JSON, with `place` for where the model is.
fn json(report: &Report, place: &str) -> Value {
    let text = serde_json::to_string(report).unwrap();
    serde_json::from_str(&text.replace(place, "MODEL")).unwrap()
}

fn on_disk(model: &Model, folder: &Path) -> Report {
    model.write(folder);
    Report::of(&Layout::of_folder(&Files::from(folder)).unwrap())
}

/// That the heads tell as much as the files, and are a small share of them.
fn assert_told(model: &Model, share: u64) -> Report {
    let bench = Bench::serving(model);
    let heads = Heads::fetch(&bench.hub(), &repo(), &[]).unwrap();
    let report = heads.report(None).unwrap();
    let disk = tempfile::tempdir().unwrap();
    let expected = on_disk(model, disk.path());
    assert!(expected.parts.iter().all(|part| part.tensors > 10));
    let place = disk.path().to_str().unwrap();
    assert_eq!(json(&report, "owner/model"), json(&expected, place));

    // A redirect leads to the content.
    let (log, served) = (bench.server.log(), bench.server.served());
    let requests = log.iter().filter(|r| !r.content_server).count();
    let all: u64 = model.0.values().map(|file| file.len() as u64).sum();
    println!(
        "measured: {served} of {all} bytes in {requests} requests for {} files",
        model.0.len()
    );
    assert!(requests <= 2 * model.0.len());
    assert!(
        heads.fetched < served && served * share < all,
        "{served} of {all}"
    );
    assert!(!bench.config.cache.exists());
    report
}

#[test]
fn safetensors() {
    assert!(assert_told(&Model::miniature(), 20).runs);
    assert!(assert_told(&Model::sharded(), 15).runs);
}

#[test]
fn pickles() {
    let report = assert_told(&Model::original(".pth"), 7);
    assert!(report.runs, "{:?}", report.problems);
}

#[test]
fn what_is_wrong_is_told_as_of_files() {
    let mut model = Model::sharded();
    let second = format!("transformer_2/{}", shard(2));
    model.edit(&second, |tensors| {
        tensors.first_entry().unwrap().get_mut().shape.push(1);
    });
    model.0.retain(|path, _| !path.starts_with("vae/"));
    let report = assert_told(&model, 7);
    assert!(
        !report.runs && report.problems.len() == 2,
        "{:?}",
        report.problems
    );
}

#[test]
fn gguf_headers_of_any_length() {
    for words in [0, 60_000] {
        let tensors: Vec<gguf::Tensor> = renamed(Kind::Expert, &Model::miniature().0[HIGH])
            .into_iter()
            .map(|(name, tensor)| gguf::Tensor {
                name,
                shape: tensor.shape,
                // float16
                kind: 1,
                bytes: tensor.bytes,
            })
            .collect();
        let words = (0..words).map(|word| word.to_string()).collect();
        let metadata = [("tokenizer.ggml.tokens", gguf::Value::Strings(words))];
        let mut model = Model(Default::default());
        let path = "HighNoise/wan2.2-Q8_0.gguf";
        model.0.insert(path.into(), gguf::file(&metadata, &tensors));
        model.0.insert("README.md".into(), b"words".to_vec());
        let bench = Bench::serving(&model);
        bench.server.large(path, &model.0[path]);

        let disk = tempfile::tempdir().unwrap();
        let expected = on_disk(&model, disk.path());
        let heads = Heads::fetch(&bench.hub(), &repo(), &[path.into()]).unwrap();
        let report = heads.report(None).unwrap();
        let place = disk.path().to_str().unwrap();
        assert_eq!(json(&report, "owner/model"), json(&expected, place));
        let ranges: Vec<String> = bench.asked().into_iter().map(|asked| asked.1).collect();
        let expected: &[&str] = match heads.fetched {
            65_536 => &["bytes=0-65535"],
            _ => &[
                "bytes=0-65535",
                "bytes=65536-262143",
                "bytes=262144-1048575",
            ],
        };
        assert_eq!(ranges, expected);
        // One file may be anything; the flag says what.
        let report = heads.report(Some(PartName::LowNoise)).unwrap();
        assert_eq!(report.parts[0].part, PartName::LowNoise);

        let error = Heads::fetch(&bench.hub(), &repo(), &[]).unwrap_err();
        assert!(format!("{error:#}").contains(path), "{error:#}");
    }
}

#[test]
fn headers_that_lie() {
    let mut model = Model::miniature().only(&["transformer"]);
    let end = model.0[HIGH].len();
    for length in [0_u64, 100_000_001, u64::MAX, end as u64] {
        model.0.get_mut(HIGH).unwrap()[..8].copy_from_slice(&length.to_le_bytes());
        let bench = Bench::serving(&model);
        let heads = Heads::fetch(&bench.hub(), &repo(), &[]).unwrap();
        let report = heads.report(None).unwrap();
        assert!(!report.runs);
        let error = report.parts[0].error.as_deref().unwrap();
        assert!(error.starts_with("owner/model/transformer/"), "{error}");
    }
    // An archive without an end.
    let mut model = Model::original(".pth");
    model
        .0
        .retain(|path, _| path == "Wan2.1_VAE.pth" || path.starts_with("high"));
    let path = "Wan2.1_VAE.pth";
    model.0.get_mut(path).unwrap().truncate(2_000_000);
    let bench = Bench::serving(&model);
    let error = Heads::fetch(&bench.hub(), &repo(), &[]).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains(path) && error.contains("cut off or damaged"),
        "{error}"
    );
}

#[test]
fn servers_and_ranges() {
    let model = Model::original(".pth");
    let vae = "Wan2.1_VAE.pth";
    let fetch = |faults: &[Fault]| {
        let bench = Bench::serving(&model);
        bench.server.faults(vae, faults);
        let heads = Heads::fetch(&bench.hub(), &repo(), &[]);
        heads.map_err(|error| format!("{error:#}"))
    };
    // Tried again; the first answer may be the whole file.
    fetch(&[Fault::Cut(1000), Fault::Status(500, "")]).unwrap();
    fetch(&[Fault::IgnoreRange]).unwrap();
    // An end cannot be had of a server that knows no ranges.
    let right = || Fault::IgnoreRange;
    let error = fetch(&[right(), right()]).unwrap_err();
    assert!(
        error.contains(vae) && error.contains("does not send parts of files"),
        "{error}"
    );
    for range in [
        "bytes 0-65534/*",
        "bytes 1-65536/*",
        "bytes 1-65535/*",
        "bytes 0-65535/7",
        "nonsense",
    ] {
        let error = fetch(&[Fault::Told(range)]).unwrap_err();
        assert!(error.contains("the server answers with"), "{error}");
    }
}

#[test]
fn the_command() {
    let bench = Bench::serving(&Model::sharded());
    let ran = bench.run(&["inspect", "owner/model"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("tokenizer: owner/model/tokenizer/tokenizer.json")
    );
    assert!(
        ran.stdout.contains("wan-i2v can run this model"),
        "{}",
        ran.stdout
    );
    let said = "owner/model: read the heads of 17 files of 11.6 MB (";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    assert!(!bench.config.cache.exists() && bench.server.served() < 800_000);

    let ran = bench.run(&["inspect", "owner/model", "transformer_2", "--json"]);
    assert_eq!(ran.code, Some(1), "not a whole model");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let part = &report["parts"][0];
    assert_eq!(part["part"], "low-noise");
    assert_eq!(part["path"], "owner/model/transformer_2");

    bench.run(&["inspect", "owner/none"]).assert_fails(&[
        "PATH owner/none: no such file or folder, and the hub: ",
        "no repository owner/none",
    ]);
    bench
        .offline(&["inspect", "owner/model"])
        .assert_fails(&["no such file or folder", "HF_HUB_OFFLINE=1"]);
    // A single file of a pulled model is not fetched again.
    bench.run(&["pull", "owner/model"]).path();
    bench.server.log();
    let ran = bench.offline(&["inspect", "owner/model", "vae"]);
    assert!(ran.stdout.contains("VAE"), "{} {}", ran.stdout, ran.stderr);
    assert!(bench.server.log().is_empty());
    fs::remove_dir_all(&bench.config.cache).unwrap();
}
