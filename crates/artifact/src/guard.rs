//! Calls libraries that may panic on damaged files, and returns their panics as errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a library on bytes of any origin. If it panics, the bytes are at fault and not the program, so the panic is not printed and its
/// payload is returned.
pub fn guarded<T>(read: impl FnOnce() -> T) -> std::thread::Result<T> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    GUARDED.set(outer);
    outcome
}

/// Whether this thread is in [`guarded`], in which case a panic hook stays silent.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_with_the_innermost_guard_and_no_other_thread_is_guarded() {
        assert!(!is_guarded());
        let outcome = guarded(|| {
            assert!(is_guarded());
            assert!(!std::thread::spawn(is_guarded).join().unwrap());
            let inner = guarded(|| std::panic::resume_unwind(Box::new("inner")));
            assert!(is_guarded(), "the outer one goes on");
            inner.is_err()
        });
        assert!(outcome.unwrap());
        assert!(!is_guarded());
    }
}
