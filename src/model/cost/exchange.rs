//! How fast machines exchange arrays, as `doctor` has measured it between them: kept beside their rates, in a
//! file of its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::kept::{cache_file, keep, read};

/// Its name in the cache's folder.
const FILE: &str = "exchange.json";
/// Sets of machines that are remembered.
const MOST_KEPT: usize = 32;
/// No wire between machines is as fast, and nobody waits so long for one.
const MOST_BYTES_PER_SECOND: f64 = 1e12;
const MOST_SECONDS: f64 = 60.0;

/// How fast some machines exchange arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeRate {
    /// The machines' addresses by rank.
    pub machines: Vec<Ipv4Addr>,
    /// Bytes that each sends a second while all do.
    pub bytes_per_second: f64,
    /// Seconds that an exchange takes whatever its size.
    pub least_seconds: f64,
    /// Seconds since 1970 when that was measured.
    pub measured_at: u64,
}

impl ExchangeRate {
    /// What has just been measured.
    pub fn now(machines: Vec<Ipv4Addr>, bytes_per_second: f64, least_seconds: f64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            machines,
            bytes_per_second,
            least_seconds,
            measured_at: now.map_or(0, |now| now.as_secs()),
        }
    }

    /// The last one that was measured over a wire between so many machines.
    pub fn of_wire(machines: usize) -> Option<Self> {
        Self::newest(read(&cache_file(FILE)?), machines)
    }

    fn newest(all: Vec<Self>, machines: usize) -> Option<Self> {
        let mut newest_first = all.into_iter().rev();
        newest_first.find(|rate| {
            rate.machines.len() == machines && rate.is_of_wire() && rate.is_plausible()
        })
    }

    /// Keeps it for forecasts, if that can be.
    pub fn keep(&self) {
        let _ = cache_file(FILE).map(|file| self.keep_in(&file));
    }

    /// Puts it into a file, the last of a few, in place of what the same machines had.
    fn keep_in(&self, file: &Path) -> Result<()> {
        keep(file, self, MOST_KEPT, |other: &Self| {
            other.addresses() == self.addresses()
        })
    }

    fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.machines.iter().copied().collect()
    }

    /// Whether machines were apart: processes on one say nothing of a wire.
    fn is_of_wire(&self) -> bool {
        let addresses = self.addresses();
        addresses.len() > 1 && !addresses.iter().all(Ipv4Addr::is_loopback)
    }

    /// Whether any wire is like that: what a file says may be anything.
    fn is_plausible(&self) -> bool {
        let is_within = |value: f64, most| value > 0.0 && value <= most;
        is_within(self.bytes_per_second, MOST_BYTES_PER_SECOND)
            && is_within(self.least_seconds, MOST_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(file: &Path) -> Vec<ExchangeRate> {
        super::read(file)
    }

    fn rate(machines: &[[u8; 4]], bytes_per_second: f64) -> ExchangeRate {
        let machines = machines.iter().map(|parts| Ipv4Addr::from(*parts));
        ExchangeRate::now(machines.collect(), bytes_per_second, 1e-3)
    }

    const ONE: [u8; 4] = [10, 0, 0, 1];
    const TWO: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn the_last_one_between_so_many_machines_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/exchange.json");
        let newest = |machines| ExchangeRate::newest(read(&file), machines);
        assert_eq!(newest(2), None);
        let both = rate(&[ONE, TWO], 1e9);
        both.keep_in(&file).unwrap();
        assert!(both.measured_at > 1_700_000_000);
        let three = rate(&[ONE, TWO, [10, 0, 0, 3]], 2e9);
        three.keep_in(&file).unwrap();
        assert_eq!((newest(2), newest(3)), (Some(both), Some(three)));
        // The same machines in another order, and others.
        let again = rate(&[TWO, ONE], 3e9);
        again.keep_in(&file).unwrap();
        assert_eq!((read(&file).len(), newest(2)), (2, Some(again.clone())));
        for last in 0..MOST_KEPT as u8 {
            rate(&[ONE, [10, 0, 1, last]], 4e9).keep_in(&file).unwrap();
        }
        assert_eq!(read(&file).len(), MOST_KEPT);
        assert_eq!(
            (newest(2).unwrap().bytes_per_second, newest(3)),
            (4e9, None)
        );
        // Whatever else is there is replaced.
        fs::write(&file, r#"[{"machines": 2}]"#).unwrap();
        assert_eq!(newest(2), None);
        again.keep_in(&file).unwrap();
        assert_eq!(read(&file), [again]);
        // Where nothing can be written nothing is kept.
        assert!(rate(&[ONE, TWO], 1e9).keep_in(&file.join("below")).is_err());
    }

    #[test]
    fn processes_of_one_machine_and_impossible_rates_do_not_count() {
        let good = rate(&[ONE, TWO], 1e9);
        let with = |bytes_per_second, least_seconds| ExchangeRate {
            bytes_per_second,
            least_seconds,
            ..good.clone()
        };
        for bad in [
            rate(&[[127, 0, 0, 1], [127, 0, 0, 1]], 1e9),
            rate(&[[127, 0, 0, 1], [127, 0, 0, 2]], 1e9),
            rate(&[ONE, ONE], 1e9),
            with(0.0, 1e-3),
            with(-1.0, 1e-3),
            with(f64::NAN, 1e-3),
            with(f64::INFINITY, 1e-3),
            with(1.1e12, 1e-3),
            with(1e9, 0.0),
            with(1e9, -1.0),
            with(1e9, 61.0),
            with(1e9, f64::NAN),
        ] {
            let all = vec![good.clone(), bad.clone()];
            assert_eq!(ExchangeRate::newest(all, 2), Some(good.clone()), "{bad:?}");
        }
    }
}
