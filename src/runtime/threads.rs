//! The threads that the processor's kernels share.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use rayon::{ThreadBuilder, ThreadPoolBuilder};

/// The variable that says how many threads there are, rayon's own.
const NUMBER: &str = "RAYON_NUM_THREADS";

/// Threads that MLX starts at its own time, with some to spare: one a stream, and four that read arrays.
/// Where the system refuses it one of them, MLX ends the process or waits forever.
const OF_MLX: usize = 12;

/// Starts the kernels' threads: one a core, or as many as the system allows beside MLX's. The calling
/// thread is one of them: work that is soon done never waits for another. Rayon by itself would panic at
/// its first use where the system allows no thread.
///
/// # Errors
/// When the system allows too few for MLX.
pub fn start_threads() -> io::Result<()> {
    let asked = std::env::var(NUMBER)
        .ok()
        .and_then(|text| text.parse().ok());
    let cores = thread::available_parallelism().map_or(1, Into::into);
    let wanted = asked.filter(|&n| n > 0).unwrap_or(cores);
    // More wait for each other alone. One is another than the calling one, which may be waiting for a
    // thread that has work for the pool.
    let wanted = wanted.clamp(2, 16 * cores.max(1)) - 1;
    let mut threads = with_room(OF_MLX, wanted, |receiver: Receiver<ThreadBuilder>| {
        let work = move || receiver.recv().map_or((), ThreadBuilder::run);
        thread::Builder::new().spawn(work)
    })?;
    // A pool that is there already does as well.
    let _ = ThreadPoolBuilder::new()
        .num_threads(threads.len() + 1)
        .use_current_thread()
        .spawn_handler(|thread| {
            let sender = threads.pop().ok_or(io::ErrorKind::Other)?;
            sender.send(thread).map_err(|_| io::ErrorKind::Other.into())
        })
        .build_global();
    Ok(())
}

/// As many waiting threads as are wanted, or as the system allows so that it allows `others` as well.
///
/// # Errors
/// When it does not even allow one beside the others.
fn with_room<T>(
    others: usize,
    wanted: usize,
    mut spawn: impl FnMut(Receiver<T>) -> io::Result<JoinHandle<()>>,
) -> io::Result<Vec<Sender<T>>> {
    let mut waiting = || {
        let (sender, receiver) = mpsc::channel();
        spawn(receiver).map(|handle| (sender, handle))
    };
    // All at once, as they will be.
    let room = (0..others)
        .map(|_| waiting())
        .collect::<io::Result<Vec<_>>>()?;
    let mut threads = vec![waiting()?.0];
    threads.extend((1..wanted).map_while(|_| Some(waiting().ok()?.0)));
    for (sender, handle) in room {
        drop(sender);
        let _ = handle.join();
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_threads_do_where_the_system_allows_no_more() {
        for (allowed, expected) in [(2, None), (3, None), (4, Some(1)), (20, Some(8))] {
            let mut left = allowed;
            let threads = with_room::<()>(3, 8, |receiver| {
                if left == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                left -= 1;
                Ok(thread::spawn(move || receiver.recv().unwrap_or(())))
            });
            assert_eq!(threads.ok().map(|t| t.len()), expected, "{allowed}");
        }
    }
}
