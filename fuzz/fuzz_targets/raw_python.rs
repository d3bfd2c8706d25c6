//! Runs `targets::raw_python` on generated inputs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mp4sr_fuzz::targets::raw_python(mp4sr_fuzz::scratch(), bytes);
});
