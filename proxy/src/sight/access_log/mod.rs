//! The access log: a line for a request that is over, on standard output.
//!
//! Workers make lines and put them into a buffer of at most [`MAX_WAITING`] bytes; a thread of its own
//! writes what is there, at least every [`PAUSE`]. Where the reader of the output is too slow, lines
//! are dropped and counted: a worker never waits for it.

mod line;

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use remora_core::{settings::AccessLog as Which, telemetry::LogFormat};
use tokio::{sync::Notify, time::timeout};

use self::line::Line;
use super::{finished::Finished, id::DecisionId};
use crate::metrics::Metrics;

/// Bytes of lines that wait; while some are written, as many again may.
pub const MAX_WAITING: usize = 256 * 1024;
/// Lines are written together that come within this time.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the end of the process waits for the last lines.
const LAST: Duration = Duration::from_secs(1);

/// The access log of one process; cloning is cheap.
#[derive(Debug, Clone)]
pub struct AccessLog {
    which: Which,
    format: LogFormat,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    ended: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    lines: u64,
    closed: bool,
}

impl AccessLog {
    /// Starts the thread that writes to `out`; `None` where no request gets a line.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn start(
        which: Which,
        format: LogFormat,
        out: Box<dyn Write + Send>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Option<Self>> {
        if which == Which::Off {
            return Ok(None);
        }
        let (state, changed) = (Mutex::default(), Condvar::new());
        let queue = Arc::new(Queue { state, changed, ended: Notify::new(), metrics });
        let writer = Arc::clone(&queue);
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.write(out))?;
        Ok(Some(Self { which, format, queue }))
    }

    /// Whether a request gets a line. `kept`: it is recorded, because it failed or was chosen.
    #[must_use]
    pub fn wants(&self, failed: bool, kept: bool) -> bool {
        match self.which {
            Which::Off => false,
            Which::Errors => failed,
            Which::Sampled => failed || kept,
            Which::All => true,
        }
    }

    /// Writes a line, or counts that there was no room for it. `at`: when the request was over, since
    /// 1970; `id`: that of its record, where there is one.
    pub fn write(&self, at: Duration, id: Option<DecisionId>, finished: &Finished<'_>) {
        self.queue.push(&Line { at, id, finished }.text(self.format));
    }

    /// Waits until what was logged is written, for a moment at most.
    pub async fn close(&self) {
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_one();
        // A reader that does not read loses lines, which it would have lost anyway.
        let _ = timeout(LAST, self.queue.ended.notified()).await;
    }
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        let before = state.bytes.len();
        let after = before + line.len();
        if after > MAX_WAITING {
            drop(state);
            return self.metrics.access_log_dropped(1);
        }
        state.bytes.extend_from_slice(line);
        state.lines += 1;
        drop(state);
        // The writer waits for the first line, and then for half a buffer or its pause's end.
        let half = MAX_WAITING / 2;
        if before == 0 || (before < half && after >= half) {
            self.changed.notify_one();
        }
    }

    /// The writer's work, to the end.
    fn write(&self, mut out: Box<dyn Write + Send>) {
        let mut failing = false;
        loop {
            let mut state = self.state.lock();
            while state.bytes.is_empty() && !state.closed {
                self.changed.wait(&mut state);
            }
            if state.bytes.is_empty() {
                break;
            }
            self.pause(&mut state);
            let (bytes, lines) = (std::mem::take(&mut state.bytes), state.lines);
            state.lines = 0;
            drop(state);
            match out.write_all(&bytes).and_then(|()| out.flush()) {
                Ok(()) => {
                    failing = false;
                    self.metrics.access_log_written(lines);
                }
                Err(error) => {
                    self.metrics.access_log_dropped(lines);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "access log cannot be written");
                    }
                }
            }
        }
        self.ended.notify_one();
    }

    /// Lets more lines come, so that a busy proxy writes many at once.
    fn pause(&self, state: &mut MutexGuard<'_, State>) {
        let more = |state: &mut State| !state.closed && state.bytes.len() < MAX_WAITING / 2;
        self.changed.wait_while_for(state, more, PAUSE);
    }
}

#[cfg(test)]
mod tests;
