//! The machines of a group, as MLX's ring names them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::util::files::{MAX_OWN, read_small};
use crate::util::show::Show;

/// The most machines of a group: more would share too little.
const MOST: usize = 64;

/// The addresses of each rank: `[["10.0.0.1:32323"], ["10.0.0.2:32323"]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(Vec<Vec<SocketAddrV4>>);

impl Hosts {
    /// Reads the file that `MLX_HOSTFILE` names.
    ///
    /// # Errors
    /// When it cannot be read or is no list of addresses.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_small(path, MAX_OWN);
        let text = text.with_context(|| format!("cannot read {}", path.shown()))?;
        let parsed = serde_json::from_slice(&text).context(
            "expected a JSON list of each machine's addresses, such as \
             [[\"10.0.0.1:32323\"], [\"10.0.0.2:32323\"]]",
        );
        parsed
            .and_then(Self::parse)
            .with_context(|| path.shown().to_string())
    }

    fn parse(ranks: Vec<Vec<String>>) -> Result<Self> {
        ensure!(
            (2..=MOST).contains(&ranks.len()),
            "number of machines: {}; expected 2 to {MOST}",
            ranks.len()
        );
        let address = |text: String| -> Result<SocketAddrV4> {
            let parsed = text.parse().ok();
            let parsed = parsed.filter(|address: &SocketAddrV4| is_of_machine(*address.ip()));
            parsed.with_context(|| {
                format!(
                    "\"{}\" is not a machine's address; expected an IPv4 address and a port, such as 10.0.0.1:32323",
                    text.shown()
                )
            })
        };
        let rank = |(rank, addresses): (usize, Vec<String>)| {
            ensure!(!addresses.is_empty(), "rank {rank} has no address");
            addresses.into_iter().map(address).collect()
        };
        let hosts: Self = Self(
            ranks
                .into_iter()
                .enumerate()
                .map(rank)
                .collect::<Result<_>>()?,
        );
        hosts.control()?;
        let mut seen = BTreeSet::new();
        let twice = hosts
            .0
            .iter()
            .flatten()
            .find(|address| !seen.insert(**address));
        if let Some(twice) = twice {
            bail!("{twice} is listed twice; expected a port of its own for each");
        }
        Ok(hosts)
    }

    /// How many machines there are.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Where a rank listens for its neighbour in MLX's ring.
    pub(super) fn of(&self, rank: usize) -> &[SocketAddrV4] {
        self.0.get(rank).map_or(&[], Vec::as_slice)
    }

    /// The first address of each rank.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        let first = self.0.iter().filter_map(|all| all.first());
        first.map(|address| *address.ip()).collect()
    }

    /// A rank as messages name it.
    pub fn name(&self, rank: usize) -> String {
        let ip = self.of(rank).first();
        ip.map_or_else(
            || format!("rank {rank}"),
            |ip| format!("rank {rank} ({})", ip.ip()),
        )
    }

    /// Where rank 0 listens: on its first address, at the port after all that MLX has.
    pub(super) fn control(&self) -> Result<SocketAddrV4> {
        let ports = self.0.iter().flatten().map(SocketAddrV4::port);
        let port = ports.max().and_then(|port| port.checked_add(1));
        let port =
            port.context("port 65535 is taken; expected one below it, since the next is used too")?;
        let ip = self.of(0).first();
        let ip = ip.map_or(Ipv4Addr::LOCALHOST, |address| *address.ip());
        Ok(SocketAddrV4::new(ip, port))
    }

    /// Whether an address is a rank's.
    pub(super) fn has(&self, rank: usize, ip: IpAddr) -> bool {
        let mut all = self.of(rank).iter();
        all.any(|address| IpAddr::V4(*address.ip()) == ip)
    }
}

/// Whether an address can be a machine's, and not of all or of many.
pub fn is_of_machine(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::util::show::chain;

    #[test]
    fn hosts_are_addresses_by_rank() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.json");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Hosts::read(&path)
        };
        let hosts = read(r#"[["10.0.0.1:5000", "10.0.1.1:5001"], ["10.0.0.2:5002"]]"#).unwrap();
        assert_eq!(hosts.size(), 2);
        assert_eq!(hosts.name(1), "rank 1 (10.0.0.2)");
        let addresses = [[10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from);
        assert_eq!(hosts.addresses(), addresses);
        assert_eq!(hosts.control().unwrap().to_string(), "10.0.0.1:5003");
        assert!(hosts.has(0, "10.0.1.1".parse().unwrap()));
        assert!(!hosts.has(1, "10.0.1.1".parse().unwrap()));
        for (text, said) in [
            ("{}", "expected a JSON list of each machine's addresses"),
            (
                r#"[["10.0.0.1:1"]]"#,
                "number of machines: 1; expected 2 to 64",
            ),
            (r#"[["10.0.0.1:1"], []]"#, "rank 1 has no address"),
            (
                r#"[["10.0.0.1:1"], ["b:2"]]"#,
                "\"b:2\" is not a machine's address; expected an IPv4 address",
            ),
            (
                r#"[["10.0.0.1:1"], ["0.0.0.0:2"]]"#,
                "\"0.0.0.0:2\" is not a machine's address",
            ),
            (
                r#"[["10.0.0.1:1"], ["10.0.0.1:1"]]"#,
                "10.0.0.1:1 is listed twice",
            ),
            (
                r#"[["10.0.0.1:65535"], ["10.0.0.2:1"]]"#,
                "port 65535 is taken",
            ),
        ] {
            let error = chain(&read(text).unwrap_err());
            assert!(
                error.contains("hosts.json: ") && error.contains(said),
                "{error}"
            );
        }
    }
}
