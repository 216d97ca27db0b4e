//! Ranks of several machines: messages over TCP between rank 0 and the others, and arrays over MLX's own
//! engine: its ring over TCP, or `jaccl`, RDMA over Thunderbolt 5.
//!
//! Here are the messages: what all of them say to one another before and beside [`Group`]'s exchanges.

mod exchange;
mod hosts;
mod link;
mod meet;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use self::link::{Incoming, Link};
use self::meet::{can_listen, meet, meet_all};
use crate::util::show::Show;

pub use exchange::{Exchange, Group, is_abandoned};
pub use hosts::{Hosts, is_of_machine};

/// Seconds after which a rank that shows no sign of life is lost.
const PATIENCE: f64 = 30.0;
/// Seconds between looks at what may have happened.
const LOOK: Duration = Duration::from_millis(20);

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
}

/// How long a rank may show no sign of life. `WAN_TEST_PATIENCE`, for this project's tests, has other
/// seconds.
fn patience() -> Duration {
    let seconds = env::var("WAN_TEST_PATIENCE").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let seconds = seconds.filter(|seconds| (0.1..=PATIENCE).contains(seconds));
    Duration::from_secs_f64(seconds.unwrap_or(PATIENCE))
}
