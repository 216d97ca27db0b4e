//! Connections between rank 0 and the others: messages, and signs of life.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::util::show::Show;

/// A rank that says nothing for so many of a link's ticks is lost.
const TICKS: u32 = 10;
/// Signs of life in a tick.
const BEATS: u32 = 3;
/// The most bytes of a message: a clip's latents, prompts and condition have a hundredth.
const LONGEST: usize = 1 << 30;

/// Kinds of frames.
const BEAT: u8 = 0;
const MESSAGE: u8 = 1;
const FAILURE: u8 = 2;
const END: u8 = 3;

/// What comes over a link.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Vec<u8>),
    /// The rank is done.
    Ended,
    /// The rank has ended early, with its own words.
    Failed(String),
    /// The rank is not there any more, and how that is known.
    Gone(String),
}

/// A connection to a rank.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) rank: usize,
    stream: Arc<Mutex<TcpStream>>,
    closed: Arc<AtomicBool>,
}

impl Link {
    /// Begins to listen to a rank and to show it signs of life; one that shows none for `patience` is
    /// lost.
    pub(super) fn start(
        rank: usize,
        stream: TcpStream,
        patience: Duration,
        inbox: Sender<(usize, Incoming)>,
    ) -> Result<Self> {
        let tick = patience / TICKS;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(tick))?;
        stream.set_write_timeout(Some(patience))?;
        let mut read = stream.try_clone()?;
        thread::Builder::new().spawn(move || {
            loop {
                let (incoming, last) = match read_frame(&mut read) {
                    Ok((BEAT, _)) => continue,
                    Ok((MESSAGE, bytes)) => (Incoming::Message(bytes), false),
                    Ok((END, _)) => (Incoming::Ended, true),
                    Ok((_, bytes)) => {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        (Incoming::Failed(text), true)
                    }
                    Err(error) if error.kind() == ErrorKind::TimedOut => {
                        let seconds = patience.as_secs_f64();
                        (
                            Incoming::Gone(format!("no sign of life for {seconds} s")),
                            true,
                        )
                    }
                    Err(_) => (Incoming::Gone("its connection has ended".into()), true),
                };
                if inbox.send((rank, incoming)).is_err() || last {
                    return;
                }
            }
        })?;
        let stream = Arc::new(Mutex::new(stream));
        let (beating, closed) = (Arc::downgrade(&stream), Arc::<AtomicBool>::default());
        let is_closed = Arc::clone(&closed);
        thread::Builder::new().spawn(move || beat(&beating, &is_closed, tick / BEATS))?;
        Ok(Self {
            rank,
            stream,
            closed,
        })
    }

    /// Sends a message.
    pub(super) fn message(&self, bytes: &[u8]) -> Result<()> {
        self.frame(MESSAGE, bytes)
    }

    /// Says that this rank ends, and why.
    pub(super) fn failure(&self, text: &str) -> Result<()> {
        self.frame(FAILURE, text.as_bytes())
    }

    fn frame(&self, kind: u8, bytes: &[u8]) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut stream, kind, bytes)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is gone need not know. The other side reads what was written before.
        let _ = write_frame(&mut stream, END, &[]);
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Shows signs of life until the link is gone. A message under way is one too.
fn beat(stream: &Weak<Mutex<TcpStream>>, closed: &AtomicBool, pause: Duration) {
    while !closed.load(Ordering::Relaxed) {
        let Some(stream) = stream.upgrade() else {
            return;
        };
        if let Ok(mut stream) = stream.try_lock()
            && write_frame(&mut stream, BEAT, &[]).is_err()
        {
            // The reader finds out why.
            return;
        }
        drop(stream);
        thread::sleep(pause);
    }
}

/// Writes a frame: its kind, its length and its bytes.
fn write_frame(stream: &mut TcpStream, kind: u8, bytes: &[u8]) -> Result<()> {
    let length = u32::try_from(bytes.len()).ok();
    let length = length.filter(|_| bytes.len() <= LONGEST);
    let length = length.context("a message between machines is too long")?;
    let head = [&[kind][..], &length.to_le_bytes()].concat();
    stream.write_all(&head)?;
    Ok(stream.write_all(bytes)?)
}

/// Reads a message of at most `most` bytes from a rank that is about to become one of the group, and has so long
/// for all of it.
pub(super) fn read_greeting(
    stream: &mut TcpStream,
    most: usize,
    time: Duration,
) -> Result<Vec<u8>> {
    let end = Some(Instant::now() + time);
    stream.set_read_timeout(Some(time / TICKS))?;
    let mut head = [0; 5];
    fill(stream, &mut head, end)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(
        (MESSAGE..END).contains(&kind) && length <= most,
        "it is no rank of this program's"
    );
    let mut bytes = vec![0; length];
    fill(stream, &mut bytes, end)?;
    match kind {
        MESSAGE => Ok(bytes),
        _ => bail!("{}", String::from_utf8_lossy(&bytes).shown()),
    }
}

/// Writes what [`read_greeting`] reads: a message, or why there is none.
pub(super) fn write_greeting(
    stream: &mut TcpStream,
    greeting: std::result::Result<&[u8], &str>,
) -> Result<()> {
    match greeting {
        Ok(bytes) => write_frame(stream, MESSAGE, bytes),
        Err(why) => write_frame(stream, FAILURE, why.as_bytes()),
    }
}

fn read_frame(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    fill(stream, &mut head, None)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    if kind > END || length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    // As it comes, not as it is announced.
    while bytes.len() < length {
        let (start, end) = (bytes.len(), length.min(bytes.len() + (1 << 20)));
        bytes.resize(end, 0);
        fill(stream, &mut bytes[start..], None)?;
    }
    Ok((kind, bytes))
}

/// Fills `buffer`, by `end` if there is one. Silence is counted in ticks that were waited for: a process that was
/// stopped, or a machine that slept, first reads what has come meanwhile.
fn fill(stream: &mut TcpStream, buffer: &mut [u8], end: Option<Instant>) -> io::Result<()> {
    let (mut filled, mut silent) = (0, 0);
    while filled < buffer.len() {
        if end.is_some_and(|end| Instant::now() > end) {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => (filled, silent) = (filled + count, 0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                silent += 1;
                if silent >= TICKS {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
