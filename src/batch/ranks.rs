//! The clips of a batch on several machines: rank 0 hands them out, and puts what comes back in its place.
//!
//! A machine asks for clips when it has none, makes them in a folder of its own, and sends the files. Those
//! that a lost machine had go back. Clips with a saved run are rank 0's, which has it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{BatchOptions, Entry, check_output};
use crate::clip::Identity;
use crate::persist::Lock;
use crate::pipeline::{Event, EventKind, Interrupted, Progress, Summary};
use crate::progress::check_stop;
use crate::runtime::{Heard, Links};
use crate::util::files::read_small;
use crate::util::show::{Show, chain};
use crate::util::temporary;

/// Between looks at what may have happened.
const LOOK: Duration = Duration::from_millis(20);
/// The most bytes of a clip's file that is sent.
const MOST: u64 = 1 << 29;

/// What a rank says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// The clips that it can make, by number.
    Has(BTreeMap<usize, Identity>),
    /// It has nothing to do, and takes so many clips at once.
    Wants(usize),
    /// A clip is made. The files' bytes follow, in order.
    Made {
        number: usize,
        summary: Box<Summary>,
        files: Vec<(PathBuf, usize)>,
    },
    /// A clip cannot be made.
    Failed { number: usize, error: String },
}

impl Said {
    fn bytes(&self, files: &[Vec<u8>]) -> Result<Vec<u8>> {
        let mut head = serde_json::to_vec(self)?;
        head.push(0);
        files.iter().for_each(|file| head.extend_from_slice(file));
        Ok(head)
    }

    /// What is said, and the bytes after it.
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let end = bytes.iter().position(|byte| *byte == 0);
        let (head, rest) = bytes.split_at(end.context("a message without an end")?);
        Ok((serde_json::from_slice(head)?, &rest[1..]))
    }
}

/// The clips that nobody has begun, and those that other ranks have.
#[derive(Debug, Default)]
struct Clips {
    open: BTreeSet<usize>,
    held: HashMap<usize, HashSet<usize>>,
    /// Of what each rank can make.
    able: HashMap<usize, BTreeSet<usize>>,
    ranks: usize,
}

impl Clips {
    /// The next ones for a rank that takes `most` at once; the others get their share of the last ones.
    fn take(&mut self, rank: usize, most: usize) -> Vec<usize> {
        let share = self.open.len().div_ceil(self.ranks.max(1));
        let able = self.able.get(&rank);
        let is_able = |number: &usize| rank == 0 || able.is_some_and(|able| able.contains(number));
        let taken = self.open.iter().copied().filter(is_able);
        let taken: Vec<usize> = taken.take(most.min(share)).collect();
        for number in &taken {
            self.open.remove(number);
        }
        if rank > 0 {
            self.held.entry(rank).or_default().extend(&taken);
        }
        taken
    }

    /// A rank has ended one of its clips; `false` where it had no such clip.
    fn end(&mut self, rank: usize, number: usize) -> bool {
        let held = self.held.get_mut(&rank);
        held.is_some_and(|held| held.remove(&number))
    }

    /// A rank is not there any more; returns the clips that go back.
    fn lose(&mut self, rank: usize) -> usize {
        let back = self.held.remove(&rank).unwrap_or_default();
        self.ranks -= usize::from(self.able.remove(&rank).is_some());
        self.open.extend(&back);
        back.len()
    }

    /// Whether other ranks have some.
    fn are_held(&self) -> bool {
        self.held.values().any(|held| !held.is_empty())
    }
}

/// What rank 0 is told while it makes clips itself.
enum News {
    Made(usize, Box<Summary>),
    Failed(usize, String),
    Warning(String),
}

/// Makes clips with the ranks that are linked, as [`super::run`] does on one machine.
///
/// # Errors
/// As there, and when a rank makes other clips.
pub(crate) fn run(
    entries: Vec<(usize, Entry, bool)>,
    options: BatchOptions<'_>,
    links: Links,
    progress: &mut dyn Progress,
) -> Result<()> {
    let mut able = HashMap::new();
    for rank in 1..links.size() {
        let message = links.read(rank)?;
        let (said, _) = Said::parse(&message)?;
        let Said::Has(theirs) = said else {
            bail!(
                "{} says {said:?}; expected what clips it has",
                links.name(rank)
            );
        };
        for (number, entry, _) in &entries {
            if let Some(identity) = theirs.get(number) {
                let same = identity.check_rank(&links.name(rank), entry.identity());
                let same = same.with_context(|| entry.output().shown().to_string());
                same.inspect_err(|_| links.fail("it makes other clips"))?;
            }
        }
        able.insert(rank, theirs.into_keys().collect());
    }
    let saved = entries.iter().filter(|(_, _, saved)| *saved);
    let mut own: Vec<usize> = saved.map(|(number, ..)| *number).collect();
    let open = entries.iter().filter(|(_, _, saved)| !saved);
    let clips = Arc::new(Mutex::new(Clips {
        open: open.map(|(number, ..)| *number).collect(),
        able,
        ranks: links.size(),
        ..Clips::default()
    }));
    let outputs = entries
        .iter()
        .map(|(number, entry, _)| (*number, entry.output().to_owned()));
    let (sender, news) = mpsc::channel();
    let ends = Arc::<AtomicBool>::default();
    let server = Server {
        links,
        clips: Arc::clone(&clips),
        outputs: outputs.collect(),
        folder: options.folder.to_owned(),
        news: sender,
        ends: Arc::clone(&ends),
    };
    let server = thread::Builder::new().spawn(move || server.run())?;
    let mut entries: HashMap<usize, (usize, Entry, bool)> =
        entries.into_iter().map(|entry| (entry.0, entry)).collect();
    let mut relay = Relay {
        inner: progress,
        news: &news,
    };
    let ran = loop {
        relay.tell(Duration::ZERO);
        let mut numbers = std::mem::take(&mut own);
        if numbers.is_empty() {
            let mut clips = clips.lock().unwrap_or_else(PoisonError::into_inner);
            numbers = clips.take(0, options.capacity.at_once);
            if numbers.is_empty() && !clips.are_held() {
                break Ok(());
            }
        }
        let mine: Vec<_> = numbers
            .iter()
            .filter_map(|number| entries.remove(number))
            .collect();
        let ran = match mine.is_empty() {
            true => {
                relay.tell(LOOK);
                check_stop(&relay)
            }
            false => super::run(mine, options, &mut relay),
        };
        if ran.is_err() {
            break ran;
        }
    };
    ends.store(true, Ordering::Relaxed);
    // It cannot fail but by a bug, which has been told.
    let _ = server.join();
    relay.tell(Duration::ZERO);
    ran
}

/// Rank 0's own progress, with that of the others in between.
struct Relay<'a> {
    inner: &'a mut dyn Progress,
    news: &'a Receiver<News>,
}

impl Relay<'_> {
    /// Tells what has come, waiting for the first of it for so long.
    fn tell(&mut self, mut pause: Duration) {
        while let Ok(news) = self.news.recv_timeout(pause) {
            pause = Duration::ZERO;
            let (clip, kind) = match &news {
                News::Made(number, summary) => (Some(*number), EventKind::Made(summary)),
                News::Failed(number, error) => (Some(*number), EventKind::Failed(error)),
                News::Warning(text) => (None, EventKind::Warning(text)),
            };
            self.inner.on_event(&Event { clip, kind });
        }
    }
}

impl Progress for Relay<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        self.tell(Duration::ZERO);
        self.inner.on_event(event);
    }

    fn stops(&self) -> bool {
        self.inner.stops()
    }
}

/// Serves the other ranks while rank 0 computes.
struct Server {
    links: Links,
    clips: Arc<Mutex<Clips>>,
    outputs: HashMap<usize, PathBuf>,
    folder: PathBuf,
    news: Sender<News>,
    ends: Arc<AtomicBool>,
}

impl Server {
    fn run(self) {
        // Those that want clips while there are none, and how many.
        let mut waiting: BTreeMap<usize, usize> = BTreeMap::new();
        while !self.ends.load(Ordering::Relaxed) {
            if let Some((rank, heard)) = self.links.hear(LOOK) {
                let heard = match heard {
                    Heard::Message(message) => self.said(rank, &message, &mut waiting),
                    Heard::Left(why) => Err(anyhow!("{} {why}", self.links.name(rank))),
                };
                if let Err(error) = heard {
                    waiting.remove(&rank);
                    let back = self.clips().lose(rank);
                    let why = chain(&error);
                    let text = format!("{why}; clips that other machines take over: {back}");
                    self.tell(News::Warning(text));
                }
            }
            waiting.retain(|rank, most| {
                let numbers = self.clips().take(*rank, *most);
                if numbers.is_empty() {
                    return true;
                }
                // A rank that is gone is heard of.
                let numbers = serde_json::to_vec(&numbers).unwrap_or_default();
                self.links.post(*rank, &numbers);
                false
            });
        }
    }

    fn clips(&self) -> MutexGuard<'_, Clips> {
        self.clips.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, news: News) {
        // Nobody listens after the batch's end.
        let _ = self.news.send(news);
    }

    fn said(
        &self,
        rank: usize,
        message: &[u8],
        waiting: &mut BTreeMap<usize, usize>,
    ) -> Result<()> {
        let (number, news) = match Said::parse(message)? {
            (Said::Wants(most), _) => {
                waiting.insert(rank, most);
                return Ok(());
            }
            (
                Said::Made {
                    number,
                    summary,
                    files,
                },
                bytes,
            ) => {
                let news = match self.put(number, &files, bytes) {
                    Ok(()) => News::Made(number, summary),
                    Err(error) => News::Failed(number, chain(&error)),
                };
                (number, news)
            }
            (Said::Failed { number, error }, _) => {
                let name = self.links.name(rank);
                (
                    number,
                    News::Failed(number, format!("{}, on {name}", error.as_str().shown())),
                )
            }
            (said @ Said::Has(_), _) => bail!("it says {said:?} once more"),
        };
        // Told before it is ended, so that the batch is not over before.
        let is_known = self
            .clips()
            .held
            .get(&rank)
            .is_some_and(|held| held.contains(&number));
        ensure!(is_known, "it has made a clip that it was not given");
        self.tell(news);
        self.clips().end(rank, number);
        Ok(())
    }

    /// Puts a clip's files in their places.
    fn put(&self, number: usize, files: &[(PathBuf, usize)], mut bytes: &[u8]) -> Result<()> {
        let output = self.outputs.get(&number).context("no such clip")?;
        let _lock = Lock::take(output)?;
        for (name, length) in files {
            let is_plain = name
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            ensure!(is_plain, "{} is no name in the folder", name.shown());
            let path = self.folder.join(name);
            check_output(&path, &self.folder)?;
            let (content, rest) = bytes
                .split_at_checked(*length)
                .context("a file is cut off")?;
            bytes = rest;
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file = temporary::file(&path)?;
            file.write_all(content)?;
            file.persist(&path)
                .with_context(|| path.shown().to_string())?;
        }
        Ok(())
    }
}

/// Makes the clips that rank 0 hands out, in the folder of `options`, which nobody else has.
///
/// # Errors
/// As [`super::run`], and when rank 0 is lost.
pub(crate) fn serve(
    entries: Vec<(usize, Entry)>,
    options: BatchOptions<'_>,
    links: &Links,
) -> Result<()> {
    let has = entries
        .iter()
        .map(|(number, entry)| (*number, entry.identity().clone()));
    links.write(0, &Said::Has(has.collect()).bytes(&[])?)?;
    let mut entries: HashMap<usize, Entry> = entries.into_iter().collect();
    loop {
        links.write(0, &Said::Wants(options.capacity.at_once).bytes(&[])?)?;
        let Some(numbers) = links.next(0)? else {
            return Ok(());
        };
        let numbers: Vec<usize> = serde_json::from_slice(&numbers)?;
        let clips = numbers.into_iter();
        let clips = clips.filter_map(|number| Some((number, entries.remove(&number)?, false)));
        let mut courier = Courier {
            links,
            folder: options.folder,
            failed: None,
        };
        let ran = super::run(clips.collect(), options, &mut courier);
        if let Some(error) = courier.failed {
            return Err(error);
        }
        match ran {
            Err(error) if error.is::<Interrupted>() => {
                // Says so if rank 0 is lost.
                links.next(0)?;
                return Ok(());
            }
            ran => ran?,
        }
    }
}

/// Sends clips to rank 0 as they are made.
struct Courier<'a> {
    links: &'a Links,
    folder: &'a Path,
    failed: Option<anyhow::Error>,
}

impl Courier<'_> {
    fn send(&self, number: usize, summary: &Summary) -> Result<()> {
        let mut found = Vec::new();
        find(self.folder, &mut found)?;
        let mut files = Vec::new();
        let mut contents = Vec::new();
        for path in found {
            let content = read_small(&path, MOST);
            let content = content.with_context(|| path.shown().to_string())?;
            files.push((path.strip_prefix(self.folder)?.to_owned(), content.len()));
            contents.push(content);
            fs::remove_file(&path)?;
        }
        let summary = Box::new(summary.clone());
        let made = Said::Made {
            number,
            summary,
            files,
        };
        self.links.write(0, &made.bytes(&contents)?)
    }
}

impl Progress for Courier<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        let Some(number) = event.clip else {
            return;
        };
        let sent = match event.kind {
            EventKind::Made(summary) => self.send(number, summary),
            EventKind::Failed(error) => {
                let error = error.to_owned();
                let failed = Said::Failed { number, error }.bytes(&[]);
                failed.and_then(|failed| self.links.write(0, &failed))
            }
            _ => return,
        };
        self.failed = self.failed.take().or(sent.err());
    }

    fn stops(&self) -> bool {
        self.failed.is_some() || self.links.is_over()
    }
}

/// The files of a finished clip: all but what a batch keeps for itself, and what is not finished.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let is_own =
            text.starts_with(".wan") || text.ends_with(".wan-state") || text.ends_with(".wan-lock");
        match entry.file_type()? {
            _ if is_own => {}
            kind if kind.is_dir() => find(&entry.path(), found)?,
            _ => found.push(entry.path()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_are_shared_and_come_back() {
        let mut clips = Clips {
            open: (0..8).collect(),
            able: HashMap::from([(1, (0..8).collect()), (2, [7].into())]),
            ranks: 3,
            ..Clips::default()
        };
        assert_eq!(clips.take(1, 8), [0, 1, 2]);
        assert_eq!(clips.take(0, 1), [3]);
        assert_eq!(clips.take(2, 8), [7]);
        assert!(clips.take(2, 8).is_empty());
        assert!(clips.end(1, 1) && !clips.end(1, 1) && !clips.end(2, 0));
        assert_eq!(clips.lose(1), 2);
        assert_eq!(clips.lose(1), 0);
        assert!(clips.take(1, 8).is_empty(), "it is gone");
        assert_eq!(clips.ranks, 2);
        assert_eq!(clips.take(0, 8), [0, 2, 4]);
        assert!(clips.end(2, 7) && !clips.are_held());
        assert_eq!(clips.take(0, 8), [5]);
        assert_eq!(clips.take(0, 8), [6]);
    }

    #[test]
    fn what_is_said_goes_with_its_files() {
        let said = Said::Failed {
            number: 3,
            error: "no\0pe".into(),
        };
        let bytes = said.bytes(&[vec![0, 1], vec![2]]).unwrap();
        let (parsed, rest) = Said::parse(&bytes).unwrap();
        assert!(matches!(parsed, Said::Failed { number: 3, error } if error == "no\0pe"));
        assert_eq!(rest, [0, 1, 2]);
        assert!(Said::parse(b"{}").is_err());
    }
}
