//! Any text as a pipeline file, its last line as an override: a configuration that gives itself again, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mp4sr_pipeline::Config;

fuzz_target!(|text: &str| {
    let (file, assignment) = text.rsplit_once('\n').unwrap_or((text, ""));
    let overrides = if assignment.is_empty() { vec![] } else { vec![assignment.to_owned()] };
    if let Ok(config) = Config::parse(file, "fuzz", &overrides) {
        let again = Config::parse(&config.to_toml().unwrap(), "again", &[]).unwrap();
        assert_eq!(again, config);
    }
});
