//! How a process ends: asked once it finishes what it holds, asked twice it stops now, and its exit code tells which.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The process' two stages of stopping. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    asked: CancellationToken,
    forced: CancellationToken,
}

impl Shutdown {
    /// A shutdown that nobody has asked for and no signal will: for tests, and for parts that run inside others.
    #[must_use]
    pub fn manual() -> Self {
        Self::default()
    }

    /// Listens for SIGTERM and SIGINT from now on: the first asks to stop, the second forces. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Where the operating system refuses the signal handlers.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    received = terminate.recv() => received.map(|()| "SIGTERM"),
                    received = interrupt.recv() => received.map(|()| "SIGINT"),
                };
                // `None` comes with the runtime's end: nothing is left to tell.
                let Some(name) = name else { return };
                if listener.asked.is_cancelled() {
                    tracing::warn!(signal = name, "second signal: stopping now");
                    listener.forced.cancel();
                    return;
                }
                tracing::info!(signal = name, "stopping: finishing what is under way; a second signal stops at once");
                listener.asked.cancel();
            }
        });
        Ok(shutdown)
    }

    /// Asks to stop, as a first signal would.
    pub fn ask(&self) {
        self.asked.cancel();
    }

    /// Forces to stop, as a second signal would.
    pub fn force(&self) {
        self.asked.cancel();
        self.forced.cancel();
    }

    /// Whether stopping was asked for.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Whether stopping at once was asked for.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        self.forced.is_cancelled()
    }

    /// Cancelled once stopping is asked for: take on nothing new, finish what is held.
    #[must_use]
    pub fn asked(&self) -> &CancellationToken {
        &self.asked
    }

    /// Cancelled once stopping at once is asked for: leave everything as it stands, another process will recover it.
    #[must_use]
    pub fn forced(&self) -> &CancellationToken {
        &self.forced
    }
}

/// How a process ended, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: all it held was finished.
    Finished,
    /// 1: it could not start, or an outside fault ended it; the log's last lines say why.
    Fault,
    /// 2: the command line or the settings are wrong; trying again changes nothing.
    Settings,
    /// 3: the grace time ran out; jobs still running were handed back and will run elsewhere, requests were cut off.
    HandedBack,
    /// 4: a second signal forced it; what was running is recovered by others.
    Forced,
    /// 5: a handler kept a thread and would not let go; the process ended to be started anew, the log names the job.
    Stuck,
}

impl Exit {
    /// The number that the operating system sees.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Fault => 1,
            Self::Settings => 2,
            Self::HandedBack => 3,
            Self::Forced => 4,
            Self::Stuck => 5,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forcing_also_asks_and_clones_share() {
        let shutdown = Shutdown::manual();
        let twin = shutdown.clone();
        assert!(!twin.is_asked());
        shutdown.ask();
        assert!(twin.is_asked() && !twin.is_forced());
        shutdown.force();
        assert!(twin.is_forced());
    }
}
