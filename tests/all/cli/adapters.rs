//! Adapters, by the program itself.

use std::fs;
use std::path::Path;

use crate::cli::running::{bytes, succeed};
use crate::cli::{Bench, run};
use crate::support::scratch::{Tensor, Tensors, write_tensors};

/// Writes an adapter of both experts of the checkpoint `a`, which `seed` tells from others.
fn write(path: &Path, seed: usize) {
    const WIDTH: usize = 132;
    let factor = |shape: [usize; 2]| {
        let value = |i: usize| ((i * 37 + seed * 11) % 17) as f32 / 40.0 - 0.2;
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
        Tensor::f32(&shape, &values)
    };
    let module = |block| format!("diffusion_model.blocks.{block}.self_attn.v");
    let tensors: Tensors = (0..2)
        .flat_map(|block| {
            [
                (
                    format!("{}.lora_up.weight", module(block)),
                    factor([WIDTH, 3]),
                ),
                (
                    format!("{}.lora_down.weight", module(block)),
                    factor([3, WIDTH]),
                ),
            ]
        })
        .collect();
    write_tensors(path, &tensors);
}

#[test]
fn a_killed_run_with_an_adapter_goes_on_to_the_same_bytes() {
    let bench = Bench::new("a");
    write(&bench.path("style.safetensors"), 1);
    write(&bench.path("other.safetensors"), 2);
    let lora = |value: &'static str| ["--lora", value];
    for (bits, more) in [("as stored", &[][..]), ("4", &["--bits", "4"])] {
        let flags = [&lora("style.safetensors:0.5"), more].concat();
        succeed(&mut bench.clip("plain.mp4", more));
        succeed(&mut bench.clip("whole.mp4", &flags));
        assert!(
            bytes(&bench.path("whole.mp4")) != bytes(&bench.path("plain.mp4")),
            "{bits}"
        );
        bench.killed_after(3, "clip.mp4", &flags);
        let saved = fs::read(bench.state("clip.mp4")).unwrap();
        // With another strength or file, without one or with one more.
        for (loras, now) in [
            (vec![lora("style.safetensors:0.6")], " x 0.6"),
            (vec![lora("other.safetensors:0.5")], "other.safetensors ("),
            (vec![], "nothing"),
            (
                vec![lora("style.safetensors:0.5"), lora("other.safetensors")],
                " x 0.5, other.safetensors (",
            ),
        ] {
            let flags = [&loras.concat(), more].concat();
            let ran = run(&mut bench.clip("clip.mp4", &flags));
            let parts = [
                "--lora of the high-noise expert: style.safetensors (",
                " x 0.5 then, ",
            ];
            ran.assert_refused(1, &parts);
            let parts = [
                "--lora of the low-noise expert: ",
                now,
                " now\n",
                "--resume never",
            ];
            ran.assert_refused(1, &parts);
            assert!(fs::read(bench.state("clip.mp4")).unwrap() == saved);
        }
        let ran = succeed(&mut bench.clip("clip.mp4", &flags));
        assert!(
            ran.stderr.contains("resuming after step "),
            "{}",
            ran.stderr
        );
        assert!(
            bytes(&bench.path("clip.mp4")) == bytes(&bench.path("whole.mp4")),
            "{bits}"
        );
        for clip in ["plain.mp4", "whole.mp4", "clip.mp4"] {
            fs::remove_file(bench.path(clip)).unwrap();
        }
    }
    // The name is not what counts.
    fs::copy(
        bench.path("style.safetensors"),
        bench.path("copy.safetensors"),
    )
    .unwrap();
    bench.killed_after(3, "clip.mp4", &lora("style.safetensors"));
    let ran = succeed(&mut bench.clip("clip.mp4", &lora("copy.safetensors")));
    assert!(
        ran.stderr.contains("resuming after step "),
        "{}",
        ran.stderr
    );
}
