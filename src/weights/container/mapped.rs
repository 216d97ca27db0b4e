//! Mapped files, and which of them an address belongs to: where one is truncated while it is read,
//! the system sends a signal with the address, and its handler asks here.

use std::ops::{Deref, Range};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use memmap2::{Mmap, UncheckedAdvice};

/// Files that are known by name at a time; more are mapped without one.
const SLOTS: usize = 256;

/// What a handler can read without a lock: where a file is mapped, and its name.
#[derive(Debug)]
struct Slot {
    /// Where it begins; 0 when nothing is here.
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<u8>,
    length: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(ptr::null_mut()),
        length: AtomicUsize::new(0),
    }
}; SLOTS];

/// What takes a slot while it is filled in: no file is mapped there.
const TAKEN: usize = usize::MAX;

/// A mapped file.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    slot: Option<&'static Slot>,
}

impl Mapped {
    /// Of the file that is called `name` in messages.
    pub fn new(map: Mmap, name: &str) -> Self {
        let free = |slot: &&Slot| {
            let (free, taken) = (Ordering::Relaxed, Ordering::Acquire);
            slot.start.compare_exchange(0, TAKEN, taken, free).is_ok()
        };
        let slot = TABLE.iter().find(free);
        if let Some(slot) = slot {
            // A handler may read it at any time, so it stays: a path for every file that is opened.
            let name: &'static mut str = Box::leak(name.into());
            let start = map.as_ptr() as usize;
            slot.length.store(name.len(), Ordering::Relaxed);
            slot.name.store(name.as_mut_ptr(), Ordering::Relaxed);
            slot.end.store(start + map.len(), Ordering::Relaxed);
            slot.start.store(start, Ordering::Release);
        }
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
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.start.store(0, Ordering::Release);
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
        let start = slot.start.load(Ordering::Acquire);
        if start == 0 || !(start..slot.end.load(Ordering::Relaxed)).contains(&address) {
            return None;
        }
        let (name, length) = (&slot.name, &slot.length);
        let (name, length) = (name.load(Ordering::Relaxed), length.load(Ordering::Relaxed));
        // SAFETY: of a text that is never let go. The slot is that of the file which is being read
        // at this address, so nobody changes it meanwhile.
        let name = unsafe { std::slice::from_raw_parts(name, length) };
        std::str::from_utf8(name).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
        assert_eq!(mapped_at(start), None);
        assert_eq!(mapped_at(0), None);
        assert_eq!(b[4999], 7);
    }
}
