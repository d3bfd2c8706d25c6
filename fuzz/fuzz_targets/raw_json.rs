//! Runs `targets::raw_json` on generated inputs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mp4sr_fuzz::targets::raw_json(mp4sr_fuzz::scratch(), bytes);
});
