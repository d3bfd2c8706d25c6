//! What a program sets up before it computes: threads and memory. The module has `unsafe` for one call into the environment and
//! one into the allocator's options.

#![allow(unsafe_code)]

const THREADS: &str = "RAYON_NUM_THREADS";

/// Gives the operators as many threads as `RAYON_NUM_THREADS` says, or the machine has, and candle one: its own pool spins
/// while it waits, which costs more than it brings beside rayon's. Call it before any thread starts; later calls do nothing.
pub fn start_threads() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(set_threads);
}

fn set_threads() {
    let asked = std::env::var(THREADS).ok().and_then(|text| text.parse().ok()).filter(|&n| n > 0);
    let threads = asked.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    // A pool that exists already keeps its size.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    // SAFETY: rayon's threads read no environment, and by contract of this function no others run yet.
    unsafe { std::env::set_var(THREADS, "1") };
}

/// Tells mimalloc, where it is the program's allocator, to keep memory that is freed: steps free and ask for the same large
/// blocks over and over, and the system would clear each anew. Call it in `main` of programs that train.
pub fn keep_memory() {
    // `mi_option_purge_delay` of mimalloc.h, for which the crate has no name; -1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the call stores a number in the allocator's table of options, of which 15 is one in versions 2 and 3.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// The threads that operators use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
