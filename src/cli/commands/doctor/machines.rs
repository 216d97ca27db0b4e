//! How fast machines exchange arrays, and what that means for clips of the published model.

use std::time::Instant;

use anyhow::Result;
use mlx_rs::ops::zeros;
use serde_json::json;

use super::named;
use crate::cli::ui::{human_bytes, human_time, print, print_json};
use crate::model::dit::share::sent_bytes;
use crate::runtime::{Group, Links};
use crate::weights::published;

/// Numbers of the large array, float32.
const LARGE: i32 = 16 << 20;
/// Exchanges of each size that are timed.
const TIMES: usize = 5;
/// Latent frames, rows and columns of 81 frames.
const CLIPS: [(&str, [i32; 3]); 2] = [("480p", [21, 60, 104]), ("720p", [21, 90, 160])];

/// Bytes that each machine sends for a clip of I2V-A14B in bfloat16.
fn sent(grid: [i32; 3], machines: u64) -> [u64; 2] {
    sent_bytes(&published::expert(), grid, 2, machines)
}

/// Measures; rank 0 prints.
///
/// # Errors
/// When a machine is lost.
pub(super) fn measure(links: Links, as_json: bool) -> Result<()> {
    let group = Group::connect(links)?;
    // The first one of a size is slower.
    let times = |numbers: i32| -> Result<f64> {
        let part = zeros::<f32>(&[numbers])?;
        part.eval()?;
        group.all_gather(&part)?;
        let start = Instant::now();
        for _ in 0..TIMES {
            group.all_gather(&part)?;
        }
        Ok(start.elapsed().as_secs_f64() / TIMES as f64)
    };
    let (least, large) = (times(1)?, times(LARGE)?);
    if group.rank() > 0 {
        return Ok(());
    }
    let machines = group.size() as u64;
    let rate = (machines - 1) as f64 * f64::from(LARGE) * 4.0 / large;
    let names: Vec<String> = (0..group.size()).map(|rank| group.name(rank)).collect();
    let seconds = |bytes: u64| bytes as f64 / rate + least;
    if as_json {
        let clips = CLIPS.map(|(size, grid)| {
            let [guidance, sequence] = sent(grid, machines).map(seconds);
            json!({ "size": size, "guidance_step": guidance, "sequence_pass": sequence })
        });
        return print_json(&json!({
            "machines": names,
            "bytes_per_second": rate,
            "least_seconds": least,
            "clips": clips,
        }));
    }
    let rate = human_bytes(rate as u64);
    let mut text = named("machines", &names.join(", "));
    text += &named(
        "exchange",
        &format!("{rate}/s each way, {:.2} ms at least", least * 1e3),
    );
    for (size, grid) in CLIPS {
        let [guidance, sequence] = sent(grid, machines).map(seconds);
        // The latents go there and a prediction comes back.
        let guidance = match machines {
            2 => format!("guidance {} a step, ", human_time(2.0 * guidance)),
            _ => String::new(),
        };
        let sequence = human_time(sequence);
        text += &named(size, &format!("{guidance}sequence {sequence} a pass"));
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures of docs/machines.md.
    #[test]
    fn bytes_are_those_of_the_docs() {
        let docs = include_str!("../../../../docs/machines.md");
        for (name, (_, grid)) in ["832x480", "1280x720"].iter().zip(CLIPS) {
            let [guidance, two] = sent(grid, 2);
            let [_, four] = sent(grid, 4);
            for row in [
                format!("| guidance, {name}, a step | {} |", human_bytes(guidance)),
                format!("| sequence of 2, {name}, a pass | {} |", human_bytes(two)),
                format!("| sequence of 4, {name}, a pass | {} |", human_bytes(four)),
            ] {
                assert!(docs.contains(&row), "{row}");
            }
        }
    }
}
