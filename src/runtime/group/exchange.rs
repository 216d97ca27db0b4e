//! Arrays that ranks exchange over MLX's own engine: its ring over TCP, or `jaccl`, RDMA over Thunderbolt 5.
//!
//! MLX waits for a rank forever, and keeps a core busy meanwhile. Ranks therefore agree by messages when
//! an exchange of arrays begins, and wait for one another there, where a rank that is lost is noticed.

use std::cell::Cell;
use std::env;
use std::ffi::CStr;
use std::net::SocketAddrV4;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mlx_rs::error::Exception;
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};

use super::meet::can_listen;
use super::{LOOK, Links, patience};
use crate::runtime::ffi::{Connected, Ranks};
use crate::runtime::to_host;
use crate::util::show::gist;

/// Seconds that MLX gets to connect ranks that have met: its ring tries again for half of it.
const CONNECTING: u64 = 30;
/// Between looks at what may have happened while arrays are exchanged.
const SHORT_LOOK: Duration = Duration::from_micros(200);

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
        let Some(ranks) = connected.map(Ranks::of) else {
            // One may have been taken since it was found free.
            self.hosts
                .of(self.rank)
                .iter()
                .try_for_each(|own| can_listen(*own))?;
            bail!(self.unconnected());
        };
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
    /// [`RankLost`](super::RankLost), or arrays do not arrive.
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
    /// [`RankLost`](super::RankLost), or MLX fails.
    pub fn all_gather(&self, x: &Array) -> Result<Array> {
        self.finish(self.begin_all_gather(x)?)
    }

    /// Begins [`Self::all_gather`], which MLX goes on with by itself.
    ///
    /// # Errors
    /// [`RankLost`](super::RankLost), or MLX fails.
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
    /// [`RankLost`](super::RankLost), or MLX fails.
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
    /// [`RankLost`](super::RankLost), or MLX fails.
    pub fn receive(&self, shape: &[i32], dtype: Dtype, from: usize) -> Result<Array> {
        let received = self.ranks.receive(shape, dtype, from as i32)?;
        self.finish(self.begin([received], 0)?)
    }

    /// Begins to exchange `x`, which lies in memory row by row, for what a neighbour in the ring has in its
    /// place and exchanges at the same time.
    ///
    /// # Errors
    /// [`RankLost`](super::RankLost), or MLX fails.
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
    /// [`RankLost`](super::RankLost), or MLX fails.
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
