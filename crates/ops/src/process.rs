//! The threads and the memory of a program. `unsafe` is needed for calls that change the environment and a flag of the process, and
//! for two calls of the allocator.

#![allow(unsafe_code)]

use crate::scratch;

const THREADS: &str = "RAYON_NUM_THREADS";

/// Gives the operators as many threads as `RAYON_NUM_THREADS` says, or as the machine has, and candle's own pool a single one: that pool
/// spins while it waits, which costs more than it gains beside rayon's. Later calls do nothing. candle takes this number only from the
/// environment, so call this before starting a thread that reads the environment.
pub fn start_threads() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(set_threads);
}

fn set_threads() {
    let asked = std::env::var(THREADS).ok().and_then(|text| text.parse().ok()).filter(|&n| n > 0);
    let threads = asked.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    // An existing pool keeps its size.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    // SAFETY: the threads that may already run are rayon's and the one that waits for the end of the parent process, and neither reads the
    // environment. Programs call this before they start others.
    unsafe { std::env::set_var(THREADS, "1") };
}

/// Makes mimalloc keep freed memory, if it is the program's allocator: steps free and request the same large blocks over and over, and the
/// system would clear each of them again. Call this in `main` of programs that train.
pub fn keep_memory() {
    // `mi_option_purge_delay` of mimalloc.h, for which the crate has no name; -1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the call stores a number in the allocator's table of options, in which index 15 exists in versions 2 and 3.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) an error like others, instead of the end of the process.
pub fn report_file_limit() {
    // SAFETY: the call changes how one signal is handled, and no handler of the program is replaced.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Keeps the system from backing this process's memory by huge pages from now on. mimalloc asks for them, and the system then adds pages
/// that the program does not use, whenever it chooses: a service of a small run needs twice the memory, and the amount goes up in steps. If
/// the system has no huge pages, the call has no effect.
pub fn avoid_huge_pages() {
    // SAFETY: the call sets a flag of the process and reads no memory.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// Returns the idle buffers of the operators to the system, and the memory that this thread and those of the operators have freed, if
/// mimalloc is the program's allocator. This memory would otherwise stay with these threads or, after this one has ended, remain unused
/// until another thread takes it over.
pub fn release_memory() {
    scratch::drop_idle();
    rayon::broadcast(|_| release_thread_memory());
    release_thread_memory();
}

/// Returns to the system the memory that this thread, and threads that have ended, have freed, if mimalloc is the program's allocator.
pub fn release_thread_memory() {
    // SAFETY: the call touches only blocks that are free, those of the calling thread and of threads that have ended.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// The number of threads that operators use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
