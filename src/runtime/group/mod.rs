//! Ranks of several machines: messages over TCP between rank 0 and the others, and arrays over MLX's own
//! engine: its ring over TCP, or `jaccl`, RDMA over Thunderbolt 5.
//!
//! MLX waits for a rank forever, and keeps a core busy meanwhile. Ranks therefore agree by messages when
//! an exchange of arrays begins, and wait for one another there, where a rank that is lost is noticed.

mod hosts;
mod link;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::env;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mlx_rs::error::Exception;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use self::link::{Incoming, Link, read_greeting, write_greeting};
use super::ffi::{Connected, Ranks};
use super::{mlx_version, to_host};
use crate::util::show::{Show, gist};

pub use hosts::Hosts;

/// Seconds after which a rank that shows no sign of life is lost.
const PATIENCE: f64 = 30.0;
/// Seconds that ranks wait for one another before they begin.
const JOINING: u64 = 120;
/// Seconds after which they say for whom.
const PAUSE: u64 = 5;
/// Seconds that MLX gets to connect ranks that have met: its ring tries again for half of it.
const CONNECTING: u64 = 30;
/// Seconds between looks at what may have happened.
const LOOK: Duration = Duration::from_millis(20);
/// The same while arrays are exchanged.
const SHORT_LOOK: Duration = Duration::from_micros(200);
/// The most bytes of a greeting.
const GREETING: usize = 4096;

/// MLX's engines, as it names them.
const RING: &CStr = c"ring";
const JACCL: &CStr = c"jaccl";
/// What `jaccl` reads, from MLX's `distributed/jaccl`; whoever sets both wants it.
const JACCL_VARIABLES: [&str; 2] = ["MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR"];

/// Whether MLX was left waiting for a rank.
static ABANDONED: AtomicBool = AtomicBool::new(false);

/// Whether the process cannot end as others do, since MLX waits for a rank that is lost.
pub fn is_abandoned() -> bool {
    ABANDONED.load(Ordering::Relaxed)
}

/// A rank that has died or stalled.
#[derive(Clone, Debug)]
pub struct RankLost {
    name: String,
    what: String,
}

impl fmt::Display for RankLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.what)
    }
}

impl std::error::Error for RankLost {}

/// What is heard of a rank.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Vec<u8>),
    /// It is not there any more, and why.
    Left(String),
}

/// What a rank says first.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    rank: usize,
    size: usize,
    program: String,
    mlx: String,
}

/// The connections between rank 0 and the others, as one of them has them.
#[derive(Debug)]
pub struct Links {
    hosts: Hosts,
    rank: usize,
    /// Rank 0's to all others, and theirs to it.
    links: Vec<Link>,
    inbox: Receiver<(usize, Incoming)>,
    /// Messages that came while another rank's was waited for.
    waiting: RefCell<VecDeque<(usize, Option<Vec<u8>>)>>,
    /// Ranks that have said that they are done.
    done: RefCell<Vec<usize>>,
    lost: RefCell<Option<RankLost>>,
}

/// The machines that make a clip together: linked, and connected by MLX.
#[derive(Debug)]
pub struct Group {
    links: Links,
    ranks: Ranks,
    sent: Cell<u64>,
}

impl Deref for Group {
    type Target = Links;

    fn deref(&self) -> &Links {
        &self.links
    }
}

/// Arrays that MLX exchanges with other ranks while other work goes on.
#[derive(Debug)]
#[must_use]
pub struct Exchange {
    arrays: Vec<Array>,
    /// The place of the one that it is for.
    wanted: usize,
}

impl Exchange {
    fn is_done(&self, ranks: &Ranks) -> mlx_rs::error::Result<bool> {
        let mut arrays = self.arrays.iter();
        arrays.try_fold(true, |done, array| Ok(done && ranks.is_done(array)?))
    }

    /// The array, once all are done.
    fn into_array(mut self) -> Array {
        let array = self.arrays.swap_remove(self.wanted);
        self.arrays.clear();
        array
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.arrays.is_empty() {
            // MLX still writes there.
            std::mem::forget(std::mem::take(&mut self.arrays));
            ABANDONED.store(true, Ordering::Relaxed);
        }
    }
}

impl Links {
    /// Meets the other ranks as `rank`, and checks that they are of one version; tells for whom it waits.
    ///
    /// # Errors
    /// When a rank is missing or another, or this one's addresses are not its own.
    pub fn meet(hosts: Hosts, rank: usize, tell: &dyn Fn(&str)) -> Result<Self> {
        let patience = patience();
        hosts.of(rank).iter().try_for_each(|own| can_listen(*own))?;
        let (sender, inbox) = mpsc::channel();
        let link = |(rank, stream)| Link::start(rank, stream, patience, sender.clone());
        let links = match rank {
            0 => meet_all(&hosts, tell)?
                .into_iter()
                .map(link)
                .collect::<Result<_>>()?,
            _ => vec![link((0, meet(&hosts, rank, tell)?))?],
        };
        Ok(Self {
            hosts,
            rank,
            links,
            inbox,
            waiting: RefCell::default(),
            done: RefCell::default(),
            lost: RefCell::default(),
        })
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.hosts.size()
    }

    /// A rank as messages name it.
    pub fn name(&self, rank: usize) -> String {
        self.hosts.name(rank)
    }

    /// The machines that there are.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Sends a message to a rank that this one is linked with.
    ///
    /// # Errors
    /// [`RankLost`].
    pub fn write(&self, rank: usize, message: &[u8]) -> Result<()> {
        // Where that fails, what is read next says why.
        if !self.post(rank, message) {
            self.read(rank)?;
        }
        Ok(())
    }

    /// As [`Self::write`], for whoever hears of lost ranks anyway; whether it was sent.
    pub fn post(&self, rank: usize, message: &[u8]) -> bool {
        let link = self.links.iter().find(|link| link.rank == rank);
        link.is_some_and(|link| link.message(message).is_ok())
    }

    /// The next message of a rank, waited for as long as every rank shows signs of life; `None` when the
    /// rank is done.
    ///
    /// # Errors
    /// [`RankLost`].
    pub fn next(&self, rank: usize) -> Result<Option<Vec<u8>>> {
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let found = waiting.iter().position(|(from, _)| *from == rank);
            if let Some((_, message)) = found.and_then(|at| waiting.remove(at)) {
                return Ok(message);
            }
            drop(waiting);
            let is_over = self.done.borrow().contains(&rank);
            ensure!(!is_over, self.lost(rank, "has ended".into()));
            self.look(LOOK)?;
        }
    }

    /// As [`Self::next`] of a rank that cannot be done yet.
    ///
    /// # Errors
    /// [`RankLost`].
    pub fn read(&self, rank: usize) -> Result<Vec<u8>> {
        let message = self.next(rank)?;
        message.ok_or_else(|| self.lost(rank, "has ended".into()).into())
    }

    /// What the next rank to say something says, or that it is not there any more; `None` when none does
    /// within `pause`.
    pub fn hear(&self, pause: Duration) -> Option<(usize, Heard)> {
        let earlier = self.waiting.borrow_mut().pop_front();
        let earlier = earlier.map(|(rank, message)| {
            let message = message.map(Incoming::Message);
            (rank, message.unwrap_or(Incoming::Ended))
        });
        let next = || {
            let next = self.inbox.recv_timeout(pause);
            if matches!(next, Err(RecvTimeoutError::Disconnected)) {
                // No rank is left to say anything.
                thread::sleep(pause);
            }
            next.ok()
        };
        let (rank, incoming) = earlier.or_else(next)?;
        let heard = match incoming {
            Incoming::Message(message) => Heard::Message(message),
            Incoming::Ended => Heard::Left("has ended".into()),
            Incoming::Failed(why) => Heard::Left(format!("has failed: {}", why.shown())),
            Incoming::Gone(why) => Heard::Left(format!("is lost: {why}")),
        };
        Some((rank, heard))
    }

    /// Fails if a rank is known to be lost.
    ///
    /// # Errors
    /// [`RankLost`].
    pub fn check(&self) -> Result<()> {
        self.look(Duration::ZERO)
    }

    /// Whether rank 0 wants nothing more, or is lost.
    pub fn is_over(&self) -> bool {
        self.look(Duration::ZERO).is_err() || !self.done.borrow().is_empty()
    }

    /// Fails if a rank is done, of which more is wanted.
    fn none_is_done(&self) -> Result<()> {
        let done = self.done.borrow().first().copied();
        done.map_or(Ok(()), |rank| bail!(self.lost(rank, "has ended".into())))
    }

    /// Tells the others that this rank ends, and why.
    pub fn fail(&self, why: &str) {
        for link in &self.links {
            // One that is gone need not know.
            let _ = link.failure(why);
        }
    }

    /// Takes notice of what has come, waiting for it for so long.
    fn look(&self, pause: Duration) -> Result<()> {
        let lost = self.lost.borrow().clone();
        if let Some(lost) = lost {
            bail!(lost);
        }
        let (rank, what) = match self.inbox.recv_timeout(pause) {
            Ok((rank, Incoming::Message(message))) => {
                self.waiting.borrow_mut().push_back((rank, Some(message)));
                return Ok(());
            }
            Ok((rank, Incoming::Ended)) => {
                self.waiting.borrow_mut().push_back((rank, None));
                self.done.borrow_mut().push(rank);
                return Ok(());
            }
            Ok((rank, Incoming::Failed(why))) => (rank, format!("has failed: {}", why.shown())),
            Ok((rank, Incoming::Gone(why))) => (rank, format!("is lost: {why}")),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            // No rank is left to say anything, and none was lost.
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(pause);
                return Ok(());
            }
        };
        bail!(self.lost(rank, what))
    }

    fn lost(&self, rank: usize, what: String) -> RankLost {
        let name = self.name(rank);
        let lost = RankLost { name, what };
        *self.lost.borrow_mut() = Some(lost.clone());
        lost
    }

    /// Has MLX connect the ranks.
    fn connect(&self) -> Result<Ranks> {
        let engine = engine(&|name| env::var_os(name).is_some());
        // It ends the process where there is none.
        ensure!(
            Connected::is_available(engine),
            "{} are set, but there is no jaccl here; expected macOS 26.2, a program built for it, and RDMA \
             enabled\nhint: unset them for the ring over TCP",
            JACCL_VARIABLES.join(" and ")
        );
        let (sender, connected) = mpsc::channel();
        if self.rank > 0 {
            self.read(0)?;
        }
        thread::Builder::new().spawn(move || sender.send(Connected::wait(engine)))?;
        if self.rank == 0 {
            // Ranks accept before they connect, the last one the other way round; one that connects too
            // early tries again after a second.
            thread::sleep(LOOK);
            (1..self.size()).try_for_each(|rank| {
                if rank + 1 == self.size() {
                    thread::sleep(LOOK * 5);
                }
                self.write(rank, b"connect")
            })?;
        }
        let end = Instant::now() + Duration::from_secs(CONNECTING);
        let connected = loop {
            match connected.try_recv() {
                Ok(connected) => break connected,
                Err(_) => {
                    let looked = self.look(LOOK).and_then(|()| self.none_is_done());
                    let looked = looked.and_then(|()| {
                        ensure!(Instant::now() < end, self.unconnected());
                        Ok(())
                    });
                    looked.inspect_err(|_| ABANDONED.store(true, Ordering::Relaxed))?;
                }
            }
        };
        let ranks = connected.map(Ranks::of);
        let ranks = ranks.with_context(|| self.unconnected())?;
        let (place, expected) = (ranks.place(), (self.rank as i32, self.size() as i32));
        ensure!(
            place == expected,
            "MLX has connected rank {} of {}; expected {} of {}\n\
             hint: MLX_RANK and MLX_HOSTFILE have to be those of --machines",
            place.0,
            place.1,
            expected.0,
            expected.1
        );
        Ok(ranks)
    }

    /// That MLX does not connect this rank, and what may be in the way.
    fn unconnected(&self) -> String {
        let (size, rank) = (self.size(), self.rank);
        let (before, after) = ((rank + size - 1) % size, (rank + 1) % size);
        let ports = |rank| self.hosts.of(rank).iter().map(SocketAddrV4::to_string);
        let ports = |rank| ports(rank).collect::<Vec<_>>().join(", ");
        format!(
            "MLX cannot connect rank {rank} with its neighbours\n\
             hint: a firewall may be in the way: this machine has to reach {}, and {} this one at {}; \
             MLX_RING_VERBOSE=1 says more",
            ports(after),
            self.name(before),
            ports(rank),
        )
    }
}

impl Group {
    /// Has MLX connect the ranks, and checks that arrays arrive as they were sent. MLX itself reads `MLX_RANK`
    /// and `MLX_HOSTFILE`.
    ///
    /// # Errors
    /// [`RankLost`], or arrays do not arrive.
    pub fn connect(links: Links) -> Result<Self> {
        let fail = |error: &anyhow::Error| links.fail(&gist(error));
        let ranks = links.connect().inspect_err(fail)?;
        let sent = Cell::default();
        let group = Self { links, ranks, sent };
        let checked = group.check_gathered();
        checked.inspect_err(|error| group.fail(&gist(error)))?;
        Ok(group)
    }

    /// Bytes of arrays that this rank has sent.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Everybody's `x`, in the order of ranks along the first axis.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn all_gather(&self, x: &Array) -> Result<Array> {
        self.finish(self.begin_all_gather(x)?)
    }

    /// Begins [`Self::all_gather`], which MLX goes on with by itself.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn begin_all_gather(&self, x: &Array) -> Result<Exchange> {
        x.eval()?;
        self.look(Duration::ZERO)?;
        let gathered = self.ranks.all_gather(x)?;
        self.count(x, self.size() - 1);
        self.begin([gathered], 0)
    }

    /// Has MLX take up the arrays, one after the other.
    fn begin<const N: usize>(&self, arrays: [Array; N], wanted: usize) -> Result<Exchange> {
        let exchange = Exchange {
            arrays: arrays.into(),
            wanted,
        };
        let mut arrays = exchange.arrays.iter();
        let begun = arrays.try_for_each(|array| async_eval([array]));
        begun.map_err(|error| self.blamed(error))?;
        Ok(exchange)
    }

    /// Who was lost where MLX fails, which the link knows a moment later; else MLX's own words.
    fn blamed(&self, error: Exception) -> anyhow::Error {
        let end = Instant::now() + patience();
        while Instant::now() < end {
            let looked = self.look(LOOK).and_then(|()| self.none_is_done());
            if let Err(lost) = looked {
                return lost;
            }
        }
        error.into()
    }

    /// Hands `x` to a neighbour in the ring, which takes it at the same time.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn send(&self, x: &Array, to: usize) -> Result<()> {
        // As it lies in memory, so it goes.
        let x = x.contiguous()?;
        x.eval()?;
        let sent = self.ranks.send(&x, to as i32)?;
        self.count(&x, 1);
        self.finish(self.begin([sent], 0)?)?;
        Ok(())
    }

    /// Takes what a neighbour hands over.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn receive(&self, shape: &[i32], dtype: Dtype, from: usize) -> Result<Array> {
        let received = self.ranks.receive(shape, dtype, from as i32)?;
        self.finish(self.begin([received], 0)?)
    }

    /// Begins to exchange `x`, which lies in memory row by row, for what a neighbour in the ring has in its
    /// place and exchanges at the same time.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn begin_swap(&self, x: &Array, with: usize) -> Result<Exchange> {
        x.eval()?;
        self.look(Duration::ZERO)?;
        let sent = self.ranks.send(x, with as i32)?;
        let received = self.ranks.receive(x.shape(), x.dtype(), with as i32)?;
        self.count(x, 1);
        // In this order on MLX's stream; two that both sent first would wait for each other.
        match self.rank() < with {
            true => self.begin([sent, received], 1),
            false => self.begin([received, sent], 0),
        }
    }

    /// Waits for what was begun; the array that it is for.
    ///
    /// # Errors
    /// [`RankLost`], or MLX fails.
    pub fn finish(&self, exchange: Exchange) -> Result<Array> {
        // A rank may be done with what is still on its way.
        let mut last: Option<Instant> = None;
        let done = loop {
            match exchange.is_done(&self.ranks) {
                Ok(false) => {}
                Ok(true) => break self.ranks.check(),
                Err(error) => break Err(error),
            }
            self.look(SHORT_LOOK)?;
            if !self.done.borrow().is_empty() {
                let last = last.get_or_insert_with(|| Instant::now() + patience());
                if Instant::now() > *last {
                    self.none_is_done()?;
                }
            }
        };
        done.map_err(|error| self.blamed(error))?;
        Ok(exchange.into_array())
    }

    /// Counts that `x` goes to so many others.
    fn count(&self, x: &Array, others: usize) {
        self.sent.update(|sent| sent + (x.nbytes() * others) as u64);
    }

    /// Gathers a pattern of which every value says where it comes from: engines have gathered wrongly.
    fn check_gathered(&self) -> Result<()> {
        // More than goes over one connection, and not by equal parts.
        const VALUES: usize = 200_003;
        let pattern = |rank: usize| (0..VALUES).map(move |at| (rank * VALUES + at) as f32);
        let own: Vec<f32> = pattern(self.rank).collect();
        let gathered = self.all_gather(&Array::from_slice(&own, &[VALUES as i32]))?;
        let gathered = to_host(&gathered)?;
        let expected = (0..self.size()).flat_map(pattern);
        let wrong = gathered.iter().zip(expected).position(|(a, b)| *a != b);
        ensure!(
            wrong.is_none() && gathered.len() == VALUES * self.size(),
            "MLX's exchange between the machines is wrong: value {} of {} of a known pattern is another\n\
             hint: use MLX's ring over TCP, without {}",
            wrong.unwrap_or_default(),
            gathered.len(),
            JACCL_VARIABLES.join(" and ")
        );
        self.sent.set(0);
        Ok(())
    }
}

/// The engine that the variables which `is_set` ask for.
fn engine(is_set: &dyn Fn(&str) -> bool) -> &'static CStr {
    match JACCL_VARIABLES.iter().all(|name| is_set(name)) {
        true => JACCL,
        false => RING,
    }
}

/// How long a rank may show no sign of life. `WAN_TEST_PATIENCE`, for this project's tests, has other
/// seconds.
fn patience() -> Duration {
    let seconds = env::var("WAN_TEST_PATIENCE").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let seconds = seconds.filter(|seconds| (0.1..=PATIENCE).contains(seconds));
    Duration::from_secs_f64(seconds.unwrap_or(PATIENCE))
}

/// Fails unless this machine can listen at an address of the host file.
fn can_listen(own: SocketAddrV4) -> Result<()> {
    let error = match TcpListener::bind(own) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::AddrNotAvailable => bail!(
            "{} is no address of this machine\n\
             hint: see to the addresses of the host file, and to MLX_RANK",
            own.ip()
        ),
        _ => Err(error).with_context(|| {
            format!("cannot listen at {own}\nhint: name other ports in the host file, or with launch --port")
        }),
    }
}

/// Waits for all other ranks; returns their connections.
fn meet_all(hosts: &Hosts, tell: &dyn Fn(&str)) -> Result<Vec<(usize, TcpStream)>> {
    let address = hosts.control()?;
    let listener = TcpListener::bind(address)
        .with_context(|| format!("rank 0 cannot listen at {address}, the port after MLX's"))?;
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let mut found: Vec<(usize, TcpStream)> = Vec::new();
    let mut strangers: Vec<IpAddr> = Vec::new();
    let mut has_told = false;
    while found.len() + 1 < hosts.size() {
        match listener.accept() {
            Ok((stream, peer)) => {
                // A stranger is of no concern, a rank of another program is.
                let Some((rank, stream)) = greeted(hosts, stream, peer)? else {
                    if !strangers.contains(&peer.ip()) && strangers.len() < hosts.size() {
                        strangers.push(peer.ip());
                    }
                    continue;
                };
                let is_known = found.iter().any(|(known, _)| *known == rank);
                ensure!(!is_known, "two machines have MLX_RANK={rank}");
                found.push((rank, stream));
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
        let waited = start.elapsed().as_secs();
        if waited >= PAUSE && !has_told {
            tell(&format!("waiting at {address} for {}", missing()));
            has_told = true;
        }
        if waited >= JOINING {
            let others: Vec<String> = strangers.iter().map(IpAddr::to_string).collect();
            let others = match others.is_empty() {
                true => String::new(),
                false => format!("; {} did, which is another", others.join(", ")),
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
    stream.set_nonblocking(false)?;
    // Ten times that, for whoever says nothing.
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let listed = (1..hosts.size()).any(|rank| hosts.has(rank, peer.ip()));
    let Some(bytes) = read_greeting(&mut stream, GREETING).ok().filter(|_| listed) else {
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
fn meet(hosts: &Hosts, rank: usize, tell: &dyn Fn(&str)) -> Result<TcpStream> {
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
    stream.set_read_timeout(Some(Duration::from_secs(JOINING) / 10))?;
    let answer = read_greeting(&mut stream, GREETING);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jaccl_is_for_whoever_asks_for_it() {
        let of = |set: &[&str]| engine(&|name| set.contains(&name));
        assert_eq!(of(&[]), RING);
        assert_eq!(of(&["MLX_IBV_DEVICES"]), RING);
        assert_eq!(of(&JACCL_VARIABLES), JACCL);
    }
}
