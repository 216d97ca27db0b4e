//! How ranks come together, before there is anything to exchange.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::link::{read_greeting, write_greeting};
use super::{Hosts, LOOK};
use crate::runtime::mlx_version;

/// Seconds that ranks wait for one another before they begin.
const JOINING: u64 = 120;
/// Seconds after which they say for whom.
const PAUSE: u64 = 5;
/// The most bytes of a greeting.
const GREETING: usize = 4096;

/// What a rank says first.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    rank: usize,
    size: usize,
    program: String,
    mlx: String,
}

/// Fails unless this machine can listen at an address of the host file.
pub(super) fn can_listen(own: SocketAddrV4) -> Result<()> {
    let error = match TcpListener::bind(own) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::AddrNotAvailable => bail!(
            "{} is not an address of this machine\n\
             hint: see to the addresses of --hosts or of the host file, and to MLX_RANK",
            own.ip()
        ),
        _ => Err(error).with_context(|| {
            format!("cannot listen at {own}\nhint: name other ports in the host file, or with launch --port")
        }),
    }
}

/// Waits for all other ranks; returns their connections.
pub(super) fn meet_all(hosts: &Hosts, tell: &dyn Fn(&str)) -> Result<Vec<(usize, TcpStream)>> {
    let address = hosts.control()?;
    let listener = TcpListener::bind(address)
        .with_context(|| format!("rank 0 cannot listen at {address}, the port after MLX's"))?;
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let mut found: Vec<(usize, TcpStream)> = Vec::new();
    let mut strangers: Vec<IpAddr> = Vec::new();
    let mut has_told = false;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                // A stranger is of no concern, a rank of another program is.
                if let Some((rank, stream)) = greeted(hosts, stream, peer)? {
                    let is_known = found.iter().any(|(known, _)| *known == rank);
                    ensure!(!is_known, "two machines have MLX_RANK={rank}");
                    found.push((rank, stream));
                } else if !strangers.contains(&peer.ip()) && strangers.len() < hosts.size() {
                    strangers.push(peer.ip());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(error) => return Err(error).context("cannot wait for the machines"),
        }
        let missing = || {
            let is_missing = |rank: &usize| !found.iter().any(|(known, _)| known == rank);
            let missing = (1..hosts.size()).filter(is_missing);
            let missing: Vec<String> = missing.map(|rank| hosts.name(rank)).collect();
            missing.join(", ")
        };
        if found.len() + 1 == hosts.size() {
            break;
        }
        let waited = start.elapsed().as_secs();
        if waited >= PAUSE && !has_told {
            tell(&format!("waiting at {address} for {}", missing()));
            has_told = true;
        }
        if waited >= JOINING {
            let others: Vec<String> = strangers.iter().map(IpAddr::to_string).collect();
            let others = match others.is_empty() {
                true => String::new(),
                false => format!(", but {} did", others.join(", ")),
            };
            bail!(
                "{} did not connect to {address} within {JOINING} s{others}\n\
                 hint: a firewall may be in the way; without launch, start the same command on every \
                 machine, each with its MLX_RANK",
                missing()
            );
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    for (_, stream) in &mut found {
        write_greeting(stream, Ok(&greeting(hosts, 0)?))?;
    }
    Ok(found)
}

/// The rank that a connection is of; `None` where it is nobody's who was listed.
fn greeted(
    hosts: &Hosts,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Result<Option<(usize, TcpStream)>> {
    if !(1..hosts.size()).any(|rank| hosts.has(rank, peer.ip())) {
        return Ok(None);
    }
    stream.set_nonblocking(false)?;
    let Ok(bytes) = read_greeting(&mut stream, GREETING, Duration::from_secs(2)) else {
        return Ok(None);
    };
    let Ok(said) = serde_json::from_slice::<Greeting>(&bytes) else {
        return Ok(None);
    };
    let rank = said.rank;
    if rank == 0 || !hosts.has(rank, peer.ip()) {
        return Ok(None);
    }
    match said.differs(hosts, rank) {
        None => Ok(Some((rank, stream))),
        Some(difference) => {
            let text = format!("{}: {difference}", hosts.name(rank));
            // It need not be told.
            let _ = write_greeting(&mut stream, Err(&text));
            Err(anyhow!(text))
        }
    }
}

/// Connects from an address to another.
fn connect(from: Ipv4Addr, to: SocketAddrV4, wait: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), wait)?;
    Ok(socket.into())
}

/// Connects to rank 0.
pub(super) fn meet(hosts: &Hosts, rank: usize, tell: &dyn Fn(&str)) -> Result<TcpStream> {
    let address = hosts.control()?;
    // The one that rank 0 knows, of all that this machine may have.
    let own = hosts.of(rank).first().context("it has no address")?;
    let start = Instant::now();
    let mut has_told = false;
    let mut stream = loop {
        let error = match connect(*own.ip(), address, Duration::from_secs(PAUSE)) {
            Ok(stream) => break stream,
            Err(error) => error,
        };
        let waited = start.elapsed().as_secs();
        if waited >= JOINING {
            let text = format!("rank 0 does not listen at {address} within {JOINING} s");
            return Err(error).context(text);
        }
        if waited >= PAUSE && !has_told {
            tell(&format!(
                "waiting for {} at {address}: {error}",
                hosts.name(0)
            ));
            has_told = true;
        }
        thread::sleep(LOOK * 5);
    };
    write_greeting(&mut stream, Ok(&greeting(hosts, rank)?))?;
    // It answers once all are there.
    let answer = read_greeting(&mut stream, GREETING, Duration::from_secs(JOINING));
    let answer =
        answer.with_context(|| format!("{} has no place for rank {rank}", hosts.name(0)))?;
    let said: Greeting = serde_json::from_slice(&answer)?;
    match said.differs(hosts, 0) {
        None => Ok(stream),
        Some(difference) => bail!("{}: {difference}", hosts.name(0)),
    }
}

fn greeting(hosts: &Hosts, rank: usize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Greeting::of(hosts, rank))?)
}

impl Greeting {
    fn of(hosts: &Hosts, rank: usize) -> Self {
        Self {
            rank,
            size: hosts.size(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            mlx: mlx_version(),
        }
    }

    /// What a rank has that this one has not.
    fn differs(&self, hosts: &Hosts, rank: usize) -> Option<String> {
        let here = Self::of(hosts, rank);
        let facts = [
            ("machines", self.size.to_string(), here.size.to_string()),
            ("wan-i2v", self.program.clone(), here.program),
            ("MLX", self.mlx.clone(), here.mlx),
        ];
        let other = facts.into_iter().find(|(_, there, here)| there != here);
        other.map(|(name, there, here)| {
            format!("{name} {there} there, {here} here; expected the same on every machine")
        })
    }
}
