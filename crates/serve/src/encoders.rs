//! Encoders that stay in memory between requests.

use std::sync::{Mutex, PoisonError};

use mp4sr_extract::Encoders;
use mp4sr_pipeline::Context;

/// The encoders of the run in service; requests use them one at a time.
#[derive(Default)]
pub struct ResidentEncoders(Mutex<Option<Encoders>>);

impl ResidentEncoders {
    /// Calls `work` with the encoders of `context`. The encoders of the last call are reused unless settings or files that determine their
    /// vectors have changed since.
    pub fn with<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Encoders) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut held = self.0.lock().unwrap_or_else(|poisoned| {
            // A panic may have left the encoders half changed.
            self.0.clear_poison();
            let mut held = PoisonError::into_inner(poisoned);
            *held = None;
            held
        });
        // The old encoders are dropped before the new ones are loaded, so that both are never in memory at once.
        let encoders = match held.take().filter(|own| own.fit(context)) {
            Some(own) => own,
            None => Encoders::of(context)?,
        };
        work(held.insert(encoders))
    }
}
