//! Adapters from the hub.

use std::fs;

use image::RgbImage;
use wan_i2v::tiny;

use crate::hub::Bench;
use crate::hub::server::{Fault, REPO};

/// A bench with a picture, whose repository has adapters for the miniature.
fn bench() -> Bench {
    let bench = Bench::new();
    RgbImage::new(64, 64)
        .save(bench.folder.path().join("start.png"))
        .unwrap();
    for file in tiny::LIGHTNING {
        bench
            .server
            .large(&format!("four/{}", file.path), file.bytes);
    }
    bench
        .server
        .large("style_high_noise.safetensors", tiny::LIGHTNING[0].bytes);
    bench.server.small("README.md", b"adapters");
    bench
}

/// The arguments of a small clip of the miniature with an adapter.
fn clip<'a>(lora: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--lora", lora, "--output", "clip.mp4", "--overwrite"];
    args.extend(["--image", "start.png", "--prompt", "a red circle"]);
    args.extend(["--frames", "5", "--steps", "2", "--guide-scale", "1"]);
    args.extend(["--seed", "7", "--device", "cpu", "--no-metadata"]);
    args.extend(more);
    args
}

#[test]
fn adapters_are_fetched_once_and_then_used_without_a_network() {
    let bench = bench();
    let made = || fs::read(bench.folder.path().join("clip.mp4")).unwrap();
    let plain = bench.folder.path().join("style_high_noise.safetensors");
    fs::write(&plain, tiny::LIGHTNING[0].bytes).unwrap();
    bench.run(&clip("style_high_noise.safetensors", &[])).path();
    let expected = made();
    let file = "owner/model:style_high_noise.safetensors";

    // Nothing is fetched unasked.
    bench.run(&clip(file, &[])).assert_fails(&[
        "--lora owner/model:style_high_noise.safetensors: not on this machine",
        "831.5 kB are to be fetched",
        "wan-i2v pull owner/model style_high_noise.safetensors",
        "--yes",
    ]);
    bench.offline(&clip(file, &["--yes"])).assert_fails(&[
        "--lora owner/model:style_high_noise.safetensors: no such file or folder",
        "not in the cache",
        "HF_HUB_OFFLINE=1",
    ]);
    bench.run(&clip(file, &["--yes"])).path();
    assert!(made() == expected, "the hub's adapter makes another clip");
    // Only what was named, once.
    bench.server.log();
    for other in [file, "owner/model/style_high_noise.safetensors"] {
        for lora in [other.to_owned(), format!("{other}:1.0")] {
            bench.offline(&clip(&lora, &[])).path();
            assert!(made() == expected, "{lora}");
        }
    }
    bench
        .offline(&clip("owner/model/style_high_noise.safetensors:0.5", &[]))
        .path();
    assert!(made() != expected, "its strength counts");
    assert!(bench.server.log().is_empty(), "offline is offline");

    // A folder with a file for each expert; beside the first, of which nothing comes again.
    bench.run(&clip("owner/model/four", &["--yes"])).path();
    let both = made();
    assert!(both != expected);
    let fetched = bench.server.log();
    assert!(
        !fetched.iter().any(|request| request.path.contains("style")),
        "{fetched:?}"
    );
    bench.offline(&clip("owner/model:four", &[])).path();
    assert!(made() == both);
}

#[test]
fn damaged_and_missing_adapters_are_named() {
    let bench = bench();
    bench
        .run(&clip(
            "owner/model:stile_high_noise.safetensors",
            &["--yes"],
        ))
        .assert_fails(&[
            "--lora owner/model:stile_high_noise.safetensors: no such file or folder, and the hub",
            "has no file \"stile_high_noise.safetensors\"",
            "nearest: style_high_noise.safetensors",
        ]);
    bench
        .run(&clip("owner/model:README.md", &["--yes"]))
        .assert_fails(&["README.md"]);
    let name = "style_high_noise.safetensors";
    let lora = format!("{REPO}:{name}");
    bench.server.stuck(name, &[Fault::Corrupt]);
    bench
        .run(&clip(&lora, &["--yes"]))
        .assert_fails(&[name, "wrong hash"]);
    assert!(!bench.folder.path().join("clip.mp4").exists());
    // What was damaged on its way comes again.
    bench.server.stuck(name, &[]);
    bench.run(&clip(&lora, &["--yes"])).path();
    // Damaged before it was published.
    let broken = &tiny::LIGHTNING[0].bytes[..500_000];
    bench.server.large("cut_high_noise.safetensors", broken);
    bench
        .run(&clip("owner/model:cut_high_noise.safetensors", &["--yes"]))
        .assert_fails(&["cut_high_noise.safetensors", "not a whole safetensors file"]);
}
