//! Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second ends the
//! program at once.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::pipeline::{Event, EventKind, Progress};
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::{self, emulate_default_handler};

use super::desktop;
use super::stderr::{self, Style, info, style};
use super::terminal::{is_seen, tell};

/// Added by a shell to a signal's number for the exit code of a program that it has ended.
const BY_SIGNAL: i32 = 128;

/// Whether a [`Listener`] takes care of signals.
static LISTENS: AtomicBool = AtomicBool::new(false);
/// The command that goes on with what is being fetched, while something is.
static FETCHING: Mutex<Option<String>> = Mutex::new(None);

/// Something is being fetched, until this is dropped: a signal ends the program at once, since what
/// is fetched is kept, and says how to go on.
#[derive(Debug)]
pub(crate) struct Fetching;

impl Fetching {
    /// Begins; `command` goes on with it.
    ///
    /// # Errors
    /// When the system refuses to listen for signals.
    pub(crate) fn start(command: String) -> Result<Self> {
        static STARTED: OnceLock<()> = OnceLock::new();
        *FETCHING.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
        if STARTED.set(()).is_ok() {
            Self::listen().context("cannot listen for signals")?;
        }
        Ok(Self)
    }

    fn listen() -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        thread::Builder::new().spawn(move || {
            for number in signals.forever() {
                if let Ok(fetching) = FETCHING.lock()
                    && let Some(command) = &*fetching
                {
                    end(number, command);
                }
                if !LISTENS.load(Ordering::Relaxed) {
                    // As if nobody had ever listened.
                    let _ = emulate_default_handler(number);
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Ok(mut fetching) = FETCHING.lock() {
            *fetching = None;
        }
    }
}

fn end(number: i32, command: &str) {
    let code = BY_SIGNAL + number;
    if style() == Style::Bar && is_seen() {
        // Below the bar.
        tell("");
    }
    let text = format!("interrupted; what has been fetched is kept\nhint: to go on: {command}");
    stderr::error(&text, u8::try_from(code).unwrap_or(1));
    low_level::exit(code);
}

/// Whether the program was started with a signal ignored, as `nohup` does.
pub(crate) fn is_ignored(number: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call changes nothing, and writes the action where it succeeds; zeros are one too.
    let action = unsafe {
        libc::sigaction(number, null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Listens for the signals.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// The first signal's number, or 0.
    signal: Arc<AtomicUsize>,
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn start() -> Result<Self> {
        Self::register().context("cannot listen for signals")
    }

    fn register() -> io::Result<Self> {
        let (signal, again) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        LISTENS.store(true, Ordering::Relaxed);
        for number in [SIGINT, SIGTERM] {
            let ends = Arc::clone(&again);
            let clear = move || {
                if ends.load(Ordering::Relaxed) {
                    desktop::clear();
                }
            };
            // SAFETY: it takes no lock, allocates nothing, and calls nothing of the system but write.
            unsafe { low_level::register(number, clear)? };
            // In this order: the first signal arms what ends the program at the second.
            flag::register_conditional_shutdown(number, BY_SIGNAL + number, Arc::clone(&again))?;
            flag::register(number, Arc::clone(&again))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let received = Arc::clone(&signal);
        thread::Builder::new().spawn(move || {
            if let Some(number) = signals.forever().next() {
                // First, so that what the run says of its end comes last.
                info!("stopping after this step, whose state is saved; once more to stop at once");
                received.store(number as usize, Ordering::Relaxed);
            }
        })?;
        Ok(Self { signal })
    }

    /// The exit code that the signal asks for, if there was one.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            number => u8::try_from(number + BY_SIGNAL as usize).ok(),
        }
    }
}

/// Progress that stops at a signal.
pub(crate) struct Stoppable<'a> {
    /// Receives the events of the run.
    pub(crate) inner: &'a mut dyn Progress,
    /// Receives the signals.
    pub(crate) listener: &'a Listener,
    /// Whether there is more on disk than before: a step's state, or a clip.
    pub(crate) advanced: bool,
}

impl Progress for Stoppable<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        self.advanced |= matches!(
            event.kind,
            EventKind::Saved { step: 1.., .. } | EventKind::Made(_)
        );
        self.inner.on_event(event);
    }

    fn stops(&self) -> bool {
        self.listener.exit_code().is_some()
    }
}
