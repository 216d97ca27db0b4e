//! How fast machines exchange arrays, and what that means for clips of the published model.

use std::time::Instant;

use anyhow::Result;
use mlx_rs::ops::zeros;
use serde_json::json;

use super::named;
use crate::cli::ui::{human_bytes, human_short_time, print, print_json};
use crate::model::dit::share::Traffic;
use crate::pipeline::plan::ExchangeRate;
use crate::runtime::{Group, Links};
use crate::weights::published;

/// Numbers of the large array, float32.
const LARGE: i32 = 16 << 20;
/// Exchanges of each size that are timed.
const TIMES: usize = 5;
/// Latent frames, rows and columns of 81 frames.
const CLIPS: [(&str, [i32; 3]); 2] = [("480p", [21, 60, 104]), ("720p", [21, 90, 160])];

/// What machines send one another for a clip of I2V-A14B in bfloat16, in a step that is `guided` or not as all
/// of its clip.
fn traffic(grid: [i32; 3], machines: u64, guided: bool) -> Traffic {
    Traffic::new(&published::expert(), grid, 2, machines, guided, true)
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
        // What is on its way is the last that it needs.
        group.next(0)?;
        return Ok(());
    }
    let machines = group.size() as u64;
    let rate = (machines - 1) as f64 * f64::from(LARGE) * 4.0 / large;
    ExchangeRate::now(group.hosts().addresses(), rate, least).keep();
    let names: Vec<String> = (0..group.size()).map(|rank| group.name(rank)).collect();
    let clips = CLIPS.map(|(size, grid)| {
        let steps = [true, false].map(|guided| {
            let traffic = traffic(grid, machines, guided);
            traffic.seconds(guided, rate, least)
        });
        (size, steps)
    });
    if as_json {
        let clips = clips.map(|(size, [guided, unguided])| {
            json!({ "size": size, "guided_step": guided, "unguided_step": unguided })
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
    text += "\nExchanges of a step of Wan2.2 I2V-A14B, 81 frames, beside what it computes:\n";
    for (size, steps) in clips {
        let [guided, unguided] = steps.map(human_short_time);
        text += &named(
            size,
            &format!("{guided} a guided step, {unguided} an unguided one"),
        );
    }
    let addresses = group.hosts().addresses();
    if addresses.iter().any(|ip| Some(ip) != addresses.first()) {
        text += "\nwan-i2v plan --machines N takes this rate.\n";
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::commands::plan::WIRES;

    /// The figures of docs/machines.md.
    #[test]
    fn bytes_and_times_are_those_of_the_docs() {
        let docs = include_str!("../../../../docs/machines.md");
        for (machines, guided) in [(2, true), (2, false), (3, true), (4, true), (4, false)] {
            for (name, (_, grid)) in ["832x480", "1280x720"].iter().zip(CLIPS) {
                let traffic = traffic(grid, machines, guided);
                let kind = if guided { "guided" } else { "unguided" };
                let sent = human_bytes(traffic.most_sent(guided));
                let [fast, slow] =
                    WIRES.map(|(_, rate)| human_short_time(traffic.seconds(guided, rate, 0.0)));
                let row = format!("| {kind}, {name} | {machines} | {sent} | {fast} | {slow} |");
                assert!(docs.contains(&row), "{row}");
            }
        }
    }
}
