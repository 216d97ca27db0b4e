//! Whom the token reaches, how long a server may keep its clients waiting, and what of the cache is
//! believed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::models::{HIGH, Model, is_weights};
use super::program::finish;
use super::server::{COMMIT, Fault, sha256};
use super::{Bench, content, repo};
use crate::support::isolated::program;
use crate::support::scratch::{read_tensors, write_tensors};
use serde_json::Value;

#[test]
fn a_redirected_listing_does_not_take_the_token_to_another_port() {
    for status in [301, 302, 303, 307, 308] {
        let mut bench = Bench::new();
        bench.config.token = Some("hf_secret".to_owned());
        bench.server.require("hf_secret");
        // The same host, which a client that compares hosts alone would trust.
        let elsewhere = format!(
            "Location: {}/content/w?sig=s\r\n",
            bench.server.content_url()
        );
        bench.server.large("w", &content(10));
        let head = Box::leak(elsewhere.into_boxed_str());
        bench
            .server
            .faults("listing", &[Fault::Status(status, head)]);
        assert!(bench.list().is_err(), "{status}: that is no listing");
        let log = bench.server.log();
        let (there, here): (Vec<_>, Vec<_>) = log.iter().partition(|r| r.content_server);
        assert_eq!((here.len(), there.len()), (1, 1), "{status}");
        assert_eq!(here[0].authorization.as_deref(), Some("Bearer hf_secret"));
        assert_eq!(there[0].authorization, None, "{status}");
    }
}

#[test]
fn a_server_that_drips_is_given_up() {
    let mut bench = Bench::new();
    bench.server.large("w", &content(400_000));
    bench.server.slow(Duration::from_millis(60));
    bench.config.window = Duration::from_millis(150);
    bench.config.least_bytes = 10_000_000;
    let start = Instant::now();
    let error = format!("{:#}", bench.fetch("w").unwrap_err());
    assert!(error.contains("too slow to wait for"), "{error}");
    assert!(error.contains("gave up after 3 tries"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    // What came is kept, and enough speed brings the rest.
    assert!(fs::metadata(&bench.parts()[0]).unwrap().len() > 0);
    bench.config.least_bytes = 1;
    bench.fetch("w").unwrap();
}

#[test]
fn a_listing_has_an_end() {
    let mut bench = Bench::new();
    bench.server.small("config.json", b"{}");
    bench.server.stuck("listing", &[Fault::Stall(5)]);
    bench.config.listing = Duration::from_millis(300);
    let error = format!("{:#}", bench.list().unwrap_err());
    assert!(
        error.contains("did not send the listing within 300ms"),
        "{error}"
    );
    let asked = bench.server.log().len();
    assert_eq!(
        asked, 1,
        "a listing that takes too long is not asked for again"
    );
}

#[test]
fn a_long_pause_is_cut_short_and_announced() {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut bench = Bench::new();
    bench.server.large("w", &content(10));
    let later = Fault::Status(503, "Retry-After: 1000000000\r\n");
    bench.server.faults("w", &[later]);
    bench.config.longest_pause = Duration::from_secs(2);
    bench.config.on_pause = |text| SAID.lock().unwrap().push(text.to_owned());
    let start = Instant::now();
    bench.fetch("w").unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    let said = SAID.lock().unwrap();
    let [said] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert!(said.contains("503"), "{said}");
    assert!(
        said.starts_with("trying again in 2 s (try 2 of 3): "),
        "{said}"
    );
}

#[test]
fn a_blob_that_was_tampered_with_is_not_handed_on() {
    let bench = Bench::new();
    bench.server.large("w", &content(1000));
    bench.fetch("w").unwrap();
    tamper(&bench, &sha256(&content(1000)), |blob| blob.fill(7));
    let (file, folder) = (bench.file("w"), bench.folder.path().join("out"));
    let path = bench
        .hub()
        .fetch_to(&repo(), COMMIT, &file, &folder, &mut |_| {});
    assert!(fs::read(path.unwrap()).unwrap() == content(1000));
}

/// Changes what a blob of the cache holds.
fn tamper(bench: &Bench, hash: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let blob = bench.repo_folder().join("blobs").join(hash);
    let mut held = fs::read(&blob).unwrap();
    change(&mut held);
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, held).unwrap();
}

/// The exit code of `inspect --verify`, and its table's entries by path in the repository.
fn verified(bench: &Bench) -> (Option<i32>, Vec<(String, Value)>) {
    let ran = bench.offline(&["inspect", "owner/model", "--verify", "--json"]);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = json["verified"].as_array().unwrap().iter().map(|row| {
        let path = row["path"].as_str().unwrap().split_once(COMMIT).unwrap().1;
        (path[1..].to_owned(), row.clone())
    });
    (ran.code, rows.collect())
}

#[test]
fn a_tampered_blob_is_found_and_not_converted() {
    let model = Model::miniature();
    let bench = Bench::serving(&model);
    let refused = bench.run(&["inspect", "owner/model", "--verify"]);
    refused.assert_fails(&["--verify", "hint: wan-i2v pull owner/model"]);
    bench.run(&["pull", "owner/model"]).path();
    let (code, rows) = verified(&bench);
    assert_eq!(code, Some(0));
    for (path, row) in &rows {
        let hash = if is_weights(path) {
            "sha256"
        } else {
            "git's sha1"
        };
        assert_eq!(row["hash"]["right"], hash, "{row}");
        let values = row["values"]["right"] == "finite";
        assert_eq!(values, is_weights(path), "{row}");
    }
    assert_eq!(rows.len(), model.0.len(), "every file that was pulled");

    // The last bit of a weight, and a byte of a small file.
    let bytes = &model.0[HIGH];
    tamper(&bench, &sha256(bytes), |held| {
        *held.last_mut().unwrap() ^= 1
    });
    let (code, rows) = verified(&bench);
    assert_eq!(code, Some(1));
    let wrong: Vec<&(String, Value)> = rows
        .iter()
        .filter(|row| row.1["hash"]["wrong"].is_string())
        .collect();
    assert!(
        matches!(wrong.as_slice(), [(path, _)] if path == HIGH),
        "{wrong:?}"
    );
    let table = bench.offline(&["inspect", "owner/model", "--verify"]);
    for part in [
        format!("expected {}", sha256(bytes)),
        "hint: remove ".into(),
    ] {
        assert!(table.stdout.contains(&part), "{}", table.stdout);
    }
    let last = format!("1 of {} files are not what they should be", model.0.len());
    assert!(table.stdout.contains(&last), "{}", table.stdout);
    assert!(table.stderr.contains("verifying "), "{}", table.stderr);
    let refused = bench.offline(&["convert", "owner/model", "converted"]);
    refused.assert_fails(&[HIGH, "not what was published", "hint: remove "]);
    assert!(!bench.folder.path().join("converted").exists());
}

/// The scales of small floats, which are bytes to their file: e8m0's and e4m3's codes that are no number.
#[test]
fn scales_that_are_no_numbers_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let packed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/packed");
    for (form, end, code) in [
        ("mlx_mxfp4", "scales", 0xff),
        ("mlx_mxfp8", "scales", 0xff),
        ("mlx_nvfp4", "scales", 0x7f),
        ("comfy_mxfp8", "weight_scale", 0xff),
        ("comfy_nvfp4", "weight_scale", 0x7f),
    ] {
        let mut tensors = read_tensors(&packed.join(form).with_extension("safetensors"));
        let path = folder.path().join("model.safetensors");
        let verify = || {
            finish(
                program()
                    .arg("inspect")
                    .arg(&path)
                    .args(["--verify", "--part", "transformer"]),
            )
        };
        write_tensors(&path, &tensors);
        let ran = verify();
        assert!(ran.stdout.contains("finite"), "{form}: {}", ran.stdout);
        assert!(!ran.stdout.contains("NaN"), "{form}: {}", ran.stdout);
        let name = format!("blocks.0.ffn.0.{end}");
        tensors.get_mut(&name).unwrap().bytes[5] = code;
        write_tensors(&path, &tensors);
        let (ran, said) = (
            verify(),
            format!("NaN or infinite values in the tensor {name}"),
        );
        assert_eq!(ran.code, Some(1), "{form}");
        assert!(ran.stdout.contains(&said), "{form}: {}", ran.stdout);
    }
}

#[test]
fn what_files_hold_besides_hashes_is_verified_too() {
    let mut model = Model::original(".pth");
    let vae = "Wan2.1_VAE.pth";
    let folder = tempfile::tempdir().unwrap();
    let inspect = |path: &std::path::Path| {
        let path = path.to_str().unwrap();
        finish(program().args(["inspect", path, "--verify"]))
    };
    model.write(folder.path());
    let ran = inspect(folder.path());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("- (not in the hub's cache)  CRC-32 of "),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("- (safetensors has none)  finite"),
        "{}",
        ran.stdout
    );
    // A byte in the middle, which belongs to a tensor.
    let bytes = model.0.get_mut(vae).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    model.write(folder.path());
    let ran = inspect(folder.path());
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stdout
            .contains("other bytes than were written in the tensor"),
        "{}",
        ran.stdout
    );

    // A conversion's report names the hashes of what was written.
    Model::miniature().write(&folder.path().join("tiny"));
    let (source, target) = (folder.path().join("tiny"), folder.path().join("converted"));
    let mut convert = program();
    convert.arg("convert").args([&source, &target]);
    assert_eq!(finish(&mut convert).code, Some(0));
    let ran = inspect(&target);
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    assert!(ran.stdout.contains("BLAKE3 of "), "{}", ran.stdout);
    let file = fs::read_dir(&target)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let file = file
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".safetensors"))
        .unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 2;
    bytes[last..].fill(0xff);
    fs::write(&file, bytes).unwrap();
    let ran = inspect(&target);
    assert_eq!(ran.code, Some(1));
    for said in [
        "other bytes than were written",
        "NaN or infinite values in the tensor",
    ] {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
}
