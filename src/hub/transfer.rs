//! Fetching one file, going on where an earlier try stopped.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::address::header;
use super::digest::{Hash, Hasher};
use super::disk::{free_disk, size_text};
use super::http::{Failure, Http, Target};
use crate::util::files::open_own;
use crate::util::files::open_regular;
use crate::util::show::Show;

/// How much is read at a time.
pub(super) const PIECE: usize = 256 << 10;

/// A file to fetch.
pub(super) struct Transfer<'a> {
    pub(super) http: &'a Http,
    pub(super) target: Target<'a>,
    pub(super) url: String,
    pub(super) size: u64,
    pub(super) hash: &'a Hash,
    /// Where it is put; what is there already is its beginning.
    pub(super) part: &'a Path,
}

/// How one try ended.
enum Outcome {
    Done,
    /// The server cannot go on in the middle; the whole file may still be had.
    NoRanges(String),
    /// The answer is something else than the file.
    Wrong(String),
    Again(Error, Option<Duration>),
    /// As [`Self::Again`], and what came is no reason to go on for longer.
    Slow(Error),
}

impl Transfer<'_> {
    /// Fetches what is missing of the file and checks its hash. Afterwards `part` is the whole
    /// file, on disk.
    ///
    /// # Errors
    /// What is there so far is kept, except when its hash is wrong or it is too long.
    pub(super) fn run(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut state = State::open(self, progress)?;
        // The most that was ever there. A server that breaks off at the same place each time
        // brings something each time, and still gets nowhere.
        let mut best = state.done;
        let (mut failures, mut ranges) = (0, true);
        while state.done < self.size {
            let from = if ranges { state.done } else { 0 };
            let mut slow = false;
            let (error, after) = match self.attempt(&mut state, from, progress)? {
                Outcome::Done => break,
                Outcome::NoRanges(_) if from > 0 => {
                    ranges = false;
                    continue;
                }
                Outcome::NoRanges(why) | Outcome::Wrong(why) => bail!("{}: {why}", self.target),
                Outcome::Again(error, after) => (error, after),
                Outcome::Slow(error) => {
                    slow = true;
                    (error, None)
                }
            };
            failures = match state.done > best && !slow {
                true => 1,
                false => failures + 1,
            };
            best = best.max(state.done);
            if failures >= self.http.tries() {
                return Err(error.context(format!(
                    "{}: gave up after {failures} tries; {} of {} are kept\nhint: the same command \
                     resumes from there",
                    self.target,
                    size_text(state.done),
                    size_text(self.size)
                )));
            }
            self.http.pause(failures, after, &error);
        }
        let found = state.hasher.finish();
        if &found != self.hash {
            fs::remove_file(self.part)
                .with_context(|| format!("cannot remove {}", self.part.shown()))?;
            bail!(
                "{}: what was fetched has the wrong hash ({found}, expected {}) and was removed\n\
                 hint: run the same command again",
                self.target,
                self.hash
            );
        }
        state
            .file
            .sync_all()
            .map_err(|error| self.unwritable(error, self.size))
    }

    /// One request for the bytes from `from` on; writes what it brings.
    fn attempt(
        &self,
        state: &mut State,
        from: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Outcome> {
        let response = match self.http.file(&self.url, from, None, self.target) {
            Ok(response) => response,
            Err(Failure::Again(error, after)) => return Ok(Outcome::Again(error, after)),
            Err(Failure::Stop(error)) => return Err(error),
        };
        let begins = match self.begins(&response, from, state.done > 0) {
            Ok(begins) => begins,
            Err(outcome) => return Ok(outcome),
        };
        // A server may ignore the range and send the file from its beginning. Only now, with the
        // right answer at hand, is it worth giving up what is there.
        if begins != state.done {
            state.restart(self)?;
            progress(0);
        }
        self.receive(response, state, progress)
    }

    /// Where the body begins in the file, if it is of the file. `dear`: something is lost if it
    /// is not.
    fn begins(&self, response: &Response<Body>, from: u64, dear: bool) -> Result<u64, Outcome> {
        let headers = response.headers();
        let length = content_length(headers);
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let text = header(headers, "content-range").unwrap_or("nothing");
                let fits = |(first, last, total): &(u64, u64, Option<u64>)| {
                    *first == from
                        && first <= last
                        && *last < self.size
                        && total.is_none_or(|total| total == self.size)
                        && length.is_none_or(|length| length == last - first + 1)
                };
                match parse_range(text).filter(fits) {
                    Some((first, _, _)) => Ok(first),
                    None => Err(Outcome::NoRanges(format!(
                        "asked for the bytes from {from} of {}, the server answers with {text:?}",
                        self.size
                    ))),
                }
            }
            StatusCode::OK => match length {
                Some(length) if length == self.size => Ok(0),
                None if !dear => Ok(0),
                // A page that asks to log in to the network, for one.
                length => Err(Outcome::Wrong(format!(
                    "the hub's listing says {} bytes, the server's answer has {}",
                    self.size,
                    length.map_or_else(|| "no length".to_owned(), |length| length.to_string())
                ))),
            },
            status => Err(Outcome::NoRanges(format!(
                "asked for the bytes from {from}, the server answers {status}"
            ))),
        }
    }

    fn receive(
        &self,
        response: Response<Body>,
        state: &mut State,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Outcome> {
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        let mut pace = self.http.pace();
        loop {
            let read = match body.read(&mut piece) {
                Ok(0) if state.done == self.size => return Ok(Outcome::Done),
                Ok(0) => {
                    let error = anyhow!("the connection was closed early");
                    return Ok(Outcome::Again(error, None));
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Outcome::Again(self.http.interrupted(&error), None)),
            };
            let bytes = &piece[..read];
            let done = u64::try_from(read)
                .ok()
                .and_then(|read| state.done.checked_add(read));
            let Some(done) = done.filter(|done| *done <= self.size) else {
                state.restart(self)?;
                bail!(
                    "{}: the server sends more than {} bytes",
                    self.target,
                    self.size
                );
            };
            state
                .file
                .write_all(bytes)
                .map_err(|error| self.unwritable(error, state.done))?;
            state.hasher.update(bytes);
            state.done = done;
            progress(done);
            if done == self.size {
                return Ok(Outcome::Done);
            }
            if let Err(slow) = pace.note(read) {
                return Ok(Outcome::Slow(slow));
            }
        }
    }

    /// A write that failed after `done` bytes.
    fn unwritable(&self, error: io::Error, done: u64) -> Error {
        let missing = size_text(self.size.saturating_sub(done));
        let full = matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        );
        if !full {
            return Error::new(error).context(format!("cannot write {}", self.part.shown()));
        }
        let free = match free_disk(self.part) {
            Ok(free) => format!(" and {} are free", size_text(free)),
            Err(_) => String::new(),
        };
        anyhow!(
            "{}: the disk is full: {missing} are still missing{free}; what was fetched is kept in \
             {}\nhint: make room, then the same command resumes from there",
            self.target,
            self.part.shown()
        )
    }
}

/// The part on disk.
struct State {
    file: File,
    hasher: Hasher,
    done: u64,
}

impl State {
    /// Opens the part and hashes what is there.
    fn open(transfer: &Transfer, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        let part = transfer.part;
        let open = || -> io::Result<File> {
            if let Some(folder) = part.parent() {
                fs::create_dir_all(folder)?;
            }
            open_own(part)
        };
        let file = open().with_context(|| format!("cannot write {}", part.shown()))?;
        let mut state = Self {
            file,
            hasher: Hasher::new(transfer.hash, transfer.size),
            done: 0,
        };
        let mut piece = vec![0; PIECE];
        loop {
            let read = match state.file.read(&mut piece) {
                Ok(0) => return Ok(state),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {}", part.shown()));
                }
            };
            state.hasher.update(&piece[..read]);
            state.done = state.done.saturating_add(u64::try_from(read)?);
            if state.done > transfer.size {
                state.restart(transfer)?;
                return Ok(state);
            }
            progress(state.done);
        }
    }

    /// Throws away what is there.
    fn restart(&mut self, transfer: &Transfer) -> Result<()> {
        let mut empty = || -> io::Result<()> {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0)).map(|_| ())
        };
        empty().with_context(|| format!("cannot empty {}", transfer.part.shown()))?;
        self.hasher = Hasher::new(transfer.hash, transfer.size);
        self.done = 0;
        Ok(())
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, "content-length")?.trim().parse().ok()
}

/// `bytes 5-9/10` as (5, 9, 10); the total may be `*`.
pub(super) fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((from.trim().parse().ok()?, to.trim().parse().ok()?, total))
}

/// The hash of a file that is there, of the kind of `expected`.
pub(super) fn hash_of(path: &Path, expected: &Hash, size: u64) -> io::Result<Hash> {
    let mut file = open_regular(path)?;
    let mut hasher = Hasher::new(expected, size);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, 9, None)));
        let lies = [
            "",
            "5-9/10",
            "bytes 5-9",
            "bytes */10",
            "bytes -5-9/10",
            "bytes 5-x/10",
        ];
        assert!(lies.iter().all(|text| parse_range(text).is_none()));
        assert_eq!(parse_range("bytes 99999999999999999999-1/2"), None);
    }
}
