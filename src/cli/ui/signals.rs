//! Ctrl-C and SIGTERM: the first asks the run to stop where nothing is lost, the second ends the
//! program at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::pipeline::{Event, Progress};
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use super::stderr::info;

/// Added by a shell to a signal's number for the exit code of a program that it has ended.
const BY_SIGNAL: i32 = 128;

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
        for number in [SIGINT, SIGTERM] {
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
}

impl Progress for Stoppable<'_> {
    fn on_event(&mut self, event: &Event<'_>) {
        self.inner.on_event(event);
    }

    fn stops(&self) -> bool {
        self.listener.exit_code().is_some()
    }
}
