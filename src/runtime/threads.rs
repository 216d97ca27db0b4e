//! The threads that the processor's kernels share.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rayon::{ThreadBuilder, ThreadPoolBuilder};

/// The variable that says how many threads there are, rayon's own.
const NUMBER: &str = "RAYON_NUM_THREADS";

/// Starts the kernels' threads: one a core, or as many as the system allows. Where it allows none,
/// the calling thread does the work. Rayon by itself would panic at its first use.
pub fn start_threads() {
    let asked = std::env::var(NUMBER)
        .ok()
        .and_then(|text| text.parse().ok());
    let cores = thread::available_parallelism().map_or(1, Into::into);
    let wanted = asked.filter(|&n| n > 0).unwrap_or(cores);
    // More wait for each other alone.
    let mut threads = threads(wanted.min(16 * cores), |receiver| {
        let work = move || receiver.recv().map_or((), ThreadBuilder::run);
        thread::Builder::new().spawn(work).map(drop)
    });
    let pool = ThreadPoolBuilder::new();
    // One that is there already does as well.
    let _ = match threads.len() {
        0 => pool.num_threads(1).use_current_thread().build_global(),
        count => pool
            .num_threads(count)
            .spawn_handler(|thread| {
                let sender = threads.pop().ok_or(io::ErrorKind::Other)?;
                sender.send(thread).map_err(|_| io::ErrorKind::Other.into())
            })
            .build_global(),
    };
}

/// As many waiting threads as are wanted; where the system refuses one, half of those that it
/// allowed, since this program and its libraries want others.
fn threads<T>(
    wanted: usize,
    mut spawn: impl FnMut(Receiver<T>) -> io::Result<()>,
) -> Vec<Sender<T>> {
    let mut threads = Vec::new();
    for _ in 0..wanted {
        let (sender, receiver) = mpsc::channel();
        if spawn(receiver).is_err() {
            threads.truncate(threads.len() / 2);
            break;
        }
        threads.push(sender);
    }
    threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_threads_do_where_the_system_allows_no_more() {
        for (allowed, expected) in [(0, 0), (1, 0), (5, 2), (8, 8), (20, 8)] {
            let mut left = allowed;
            let threads = threads::<()>(8, |_| match left {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => {
                    left -= 1;
                    Ok(())
                }
            });
            assert_eq!(threads.len(), expected, "{allowed}");
        }
    }
}
