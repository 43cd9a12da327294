//! The business time of an installation, in a test's hands.

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use sandbox::{Launch, Sandbox};

/// A clock that stands until it is moved; programs that are started with it (debug builds only) all show its time.
#[derive(Debug, Clone)]
pub struct SetClock {
    path: PathBuf,
}

impl SetClock {
    /// A clock of a sandbox, standing at `time` (RFC 3339).
    #[must_use]
    pub fn at(sandbox: &Sandbox, time: &str) -> Self {
        let clock = Self { path: sandbox.directory().join("clock") };
        clock.set(parse(time));
        clock
    }

    /// How a program is started that goes by it.
    #[must_use]
    pub fn launch(&self) -> Launch {
        Launch::new().env("OFFSTAGE_CLOCK_FILE", self.path.display().to_string())
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        parse(read(&self.path).trim())
    }

    /// Moves it. A reader sees the time before or after, and no half of either.
    pub fn set(&self, time: DateTime<Utc>) {
        let next = self.path.with_extension("next");
        std::fs::write(&next, time.to_rfc3339()).expect("a file in the sandbox");
        std::fs::rename(&next, &self.path).expect("a file in the sandbox");
    }

    /// Puts it forward.
    pub fn advance(&self, span: TimeDelta) {
        self.set(self.now() + span);
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("the clock's file")
}

fn parse(time: &str) -> DateTime<Utc> {
    time.parse().unwrap_or_else(|error| panic!("{time}: {error}"))
}
