//! Mapped files, and which of them an address belongs to: where one is truncated while it is read,
//! the system sends a signal with the address, and its handler asks here.

use std::ops::{Deref, Range};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

/// Files that are known by name at a time; more are mapped without one.
const SLOTS: usize = 256;

/// Where a file is mapped, and its name. Never changed and never let go, so that a handler, which
/// takes no lock, sees one file's whole: a path for every file that is opened.
#[derive(Debug)]
struct Place {
    range: Range<usize>,
    name: Box<str>,
}

/// The place of a mapped file; null where none is.
type Slot = AtomicPtr<Place>;

static TABLE: [Slot; SLOTS] = [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS];

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    slot: Option<&'static Slot>,
}

impl Mapped {
    /// Of the file that is called `name` in messages.
    pub fn new(map: Mmap, name: &str) -> Self {
        let start = map.as_ptr() as usize;
        let place: *mut Place = Box::leak(Box::new(Place {
            range: start..start + map.len(),
            name: name.into(),
        }));
        let free = |slot: &&Slot| {
            let (taken, full) = (Ordering::Release, Ordering::Relaxed);
            slot.compare_exchange(ptr::null_mut(), place, taken, full)
                .is_ok()
        };
        let slot = TABLE.iter().find(free);
        Self { map, slot }
    }

    /// Lets the machine drop these bytes' pages, whole ones; they are read again when needed.
    pub fn release(&self, range: Range<usize>) {
        // A kernel that refuses costs memory, no correctness.
        // SAFETY: the pages are never written, so dropping them loses nothing.
        let _ = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }

    /// Where the pages lie that the machine has not in its memory, as far as it says.
    pub fn absent(&self) -> Vec<Range<usize>> {
        // SAFETY: it takes no pointer.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
        let page = page.unwrap_or(0).max(4096);
        let mut pages = vec![0_u8; self.map.len().div_ceil(page)];
        let start = self.map.as_ptr().cast_mut().cast();
        // SAFETY: the file is mapped from there on, and there is a byte for each of its pages.
        let told = unsafe { libc::mincore(start, self.map.len(), pages.as_mut_ptr().cast()) };
        if told != 0 {
            return Vec::new();
        }
        let mut absent: Vec<Range<usize>> = Vec::new();
        for (at, _) in pages.iter().enumerate().filter(|(_, page)| **page & 1 == 0) {
            let (start, end) = (at * page, ((at + 1) * page).min(self.map.len()));
            match absent.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => absent.push(start..end),
            }
        }
        absent
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // Before the file is unmapped, and so before another is where it was.
            slot.store(ptr::null_mut(), Ordering::SeqCst);
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// The name of the file that is mapped at an address. A signal's handler may call it: it takes no
/// lock and allocates nothing.
pub fn mapped_at(address: usize) -> Option<&'static str> {
    TABLE.iter().find_map(|slot| {
        // SAFETY: null, or a place that was leaked before it came here and is only read.
        let place = unsafe { slot.load(Ordering::Acquire).as_ref() }?;
        place.range.contains(&address).then_some(&*place.name)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn an_address_is_in_the_file_that_is_mapped_there() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        // SAFETY: nobody else has the file.
        let map = || unsafe { Mmap::map(&file) }.unwrap();
        let (a, b) = (Mapped::new(map(), "a/é"), Mapped::new(map(), "b"));
        let (start, other) = (a.as_ptr() as usize, b.as_ptr() as usize);
        assert_eq!(mapped_at(start), Some("a/é"));
        assert_eq!(mapped_at(start + 4999), Some("a/é"));
        assert_eq!(mapped_at(other + 2500), Some("b"));
        drop(a);
        // Another test may have mapped a file there meanwhile.
        assert_ne!(mapped_at(start), Some("a/é"));
        assert_eq!(mapped_at(0), None);
        assert_eq!(b[4999], 7);
    }

    #[test]
    fn pages_that_are_in_memory_are_told_from_others() {
        let length = 64 * (16 << 10) + 5;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; length]).unwrap();
        // SAFETY: nobody else has the file.
        let mapped = Mapped::new(unsafe { Mmap::map(&file) }.unwrap(), "x");
        assert!(mapped.iter().all(|byte| *byte == 7));
        assert!(mapped.absent().is_empty());
        // A hole has none.
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(length as u64).unwrap();
        // SAFETY: nobody else has the file.
        let mapped = Mapped::new(unsafe { Mmap::map(&hole) }.unwrap(), "x");
        assert_eq!(mapped.absent().first(), Some(&(0..length)));
    }

    #[test]
    fn files_that_come_and_go_meanwhile_are_never_mixed_up() {
        let file = |pages: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(pages << 14).unwrap();
            file
        };
        // SAFETY: nobody else has the files.
        let map = |file: &File| unsafe { Mmap::map(file) }.unwrap();
        let (small, large) = (file(1), file(100));
        // What comes and goes has the slots before this file's.
        let first: Vec<Mapped> = (0..8).map(|_| Mapped::new(map(&small), "first")).collect();
        let kept = Mapped::new(map(&file(1)), "kept");
        drop(first);
        let here = kept.as_ptr() as usize;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for (file, name) in [(&small, "a"), (&large, "the large one")] {
                            let mapped = Mapped::new(map(file), name);
                            assert_eq!(mapped_at(mapped.as_ptr() as usize + 9), Some(name));
                        }
                    }
                });
            }
            let found: Vec<_> = (0..300_000).map(|_| mapped_at(here)).collect();
            done.store(true, Ordering::Relaxed);
            assert!(found.iter().all(|name| *name == Some("kept")));
        });
    }
}
