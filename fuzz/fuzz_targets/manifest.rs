//! Runs `targets::manifest` on generated inputs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mp4sr_fuzz::targets::manifest(mp4sr_fuzz::scratch(), bytes);
});
