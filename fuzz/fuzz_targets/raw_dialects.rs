//! Runs `targets::raw_dialects` on generated inputs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mp4sr_fuzz::targets::raw_dialects(mp4sr_fuzz::scratch(), bytes);
});
