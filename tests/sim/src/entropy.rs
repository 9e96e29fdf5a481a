//! The process's own entropy, pinned.
//!
//! Three things that run in the simulation ask the operating system for chance and let nobody give them a seed:
//! `std`'s hash maps (the order in which they are walked), tokio's `select!` (which branch is looked at first) and
//! random UUIDs (the agents' pauses between two dials). All of them do it through libc's `getrandom`; the definition
//! here takes its place in this program. It gives one fixed sequence per process, so a run is the same each time that
//! it is the first and only one of its process.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::chance::Chance;

static ASKED: AtomicU64 = AtomicU64::new(0);

/// What libc's `getrandom` is to this program: numbers that depend on nothing but how often it was asked.
///
/// # Safety
/// As libc's: `buffer` is valid for `length` bytes.
// SAFETY: the symbol has the signature of libc's `getrandom`(2) and keeps its contract: it fills the buffer whole.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    let mut chance = Chance::new(ASKED.fetch_add(1, Ordering::Relaxed), "getrandom");
    for at in 0..length {
        // SAFETY: `at` is below `length`, for which the caller has made the buffer valid.
        unsafe { buffer.add(at).write(chance.next() as u8) };
    }
    length as isize
}

/// How often this process has asked for chance. Zero in a process that needs some: it came from elsewhere.
#[must_use]
pub fn asked() -> u64 {
    ASKED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    #[test]
    fn chance_of_this_process_is_pinned() {
        let before = super::asked();
        let _ = std::thread::spawn(std::hash::RandomState::new).join();
        assert!(super::asked() > before, "hash maps are seeded from elsewhere");
        let before = super::asked();
        let _ = uuid::Uuid::new_v4();
        assert!(super::asked() > before, "UUIDs come from elsewhere");
    }
}
