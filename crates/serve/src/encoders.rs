//! Encoders that stay in memory between requests.

use std::sync::{Mutex, PoisonError};

use mp4sr_extract::Encoders;
use mp4sr_pipeline::Context;

/// The encoders of the run in service, which one request at a time works with.
#[derive(Default)]
pub struct ResidentEncoders(Mutex<Option<Encoders>>);

impl ResidentEncoders {
    /// Does `work` with the encoders of `context`. They are those of the last call, unless settings or files that decide their vectors
    /// have changed since.
    pub fn with<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Encoders) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut held = self.0.lock().unwrap_or_else(|poisoned| {
            // A defect may have left them half changed.
            self.0.clear_poison();
            let mut held = PoisonError::into_inner(poisoned);
            *held = None;
            held
        });
        // Others go before these come, so that both are never in memory at once.
        let encoders = match held.take().filter(|own| own.fit(context)) {
            Some(own) => own,
            None => Encoders::of(context)?,
        };
        work(held.insert(encoders))
    }
}
