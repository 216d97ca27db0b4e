//! Batches that are killed, again and again.

use std::fs;

use crate::cli::running::{Running, succeed};
use crate::cli::{Bench, names};

/// Numbers that look like chance and are the same every time.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

const JOBS: &str = r#"{"name": "a", "prompt": "a cat", "seed": [1, 2]}
{"name": "b", "prompt": "a dog", "seed": 3, "no-metadata": true}
{"name": "c", "prompt": "a dog", "seed": 4, "output": "c/{seed}/"}"#;

#[test]
fn killed_fifty_times_it_loses_nothing() {
    let bench = Bench::new("a");
    let batch = || bench.batch("jobs.jsonl", JOBS, &["--jobs-at-once", "3"]);
    succeed(&mut batch());
    let expected = bench.clips();
    let frames = |name: &str| crate::cli::running::bytes(&bench.path(name));
    let expected_frames = frames("out/c/4");
    assert_eq!((expected.len(), expected_frames.len()), (3, 5));
    fs::remove_dir_all(bench.path("out")).unwrap();

    let (mut chance, mut kills, mut ends) = (Chance(7), 0, 0);
    while kills < 50 {
        let mut running = Running::start(&mut batch());
        let mut alive = true;
        for _ in 0..1 + chance.below(30) {
            alive = alive && running.next().is_some();
        }
        // What is there is whole, and stays.
        if alive {
            running.kill();
            kills += 1;
        } else {
            assert_eq!(running.end().0, Some(0));
            assert!(bench.clips() == expected);
            assert!(frames("out/c/4") == expected_frames);
            let left: Vec<String> = names(&bench.path("out")).into_iter().collect();
            assert_eq!(
                left,
                [
                    "a_1.mp4",
                    "a_2.mp4",
                    "b_3.mp4",
                    "c",
                    "index.html",
                    "wan-batch.json"
                ]
            );
            assert_eq!(names(&bench.path("out/c")).len(), 1);
            fs::remove_dir_all(bench.path("out")).unwrap();
            ends += 1;
            continue;
        }
        for (name, clip) in bench.clips() {
            assert!(expected[&name] == clip, "{name} after {kills} kills");
        }
        if bench.path("out/c/4").exists() {
            assert!(frames("out/c/4") == expected_frames);
        }
    }
    println!("measured: {kills} kills, {ends} batches complete between them");
    succeed(&mut batch());
    assert!(bench.clips() == expected);
    assert!(frames("out/c/4") == expected_frames);
}
