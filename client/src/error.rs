//! What can go wrong, in words for whoever reads a cron mail, and the exit code that tells scripts.

use std::fmt::Write;

use serde_json::Value;

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the environment is wrong.
    #[error("{0}")]
    Usage(String),
    /// The API was not reached, or could not serve.
    #[error("{0}")]
    Unreachable(String),
    /// The API refused.
    #[error("{}", refusal(*.status, .problem))]
    Refused {
        /// The status.
        status: u16,
        /// The problem (RFC 9457).
        problem: Value,
    },
    /// It is not done in the time that was given.
    #[error("{0}")]
    Late(String),
    /// What was asked for can't be written.
    #[error("standard output can't be written to: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// The job failed, was cancelled, or expired.
    pub const FAILED: u8 = 1;
    /// The API can't be reached.
    pub const UNREACHABLE: u8 = 3;

    /// See `docs/client.md`.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Refused { status: 400 | 413 | 415 | 422, .. } => 2,
            Self::Unreachable(_) | Self::Output(_) => Self::UNREACHABLE,
            Self::Refused { .. } => 4,
            Self::Late(_) => 5,
        }
    }
}

/// The problem's words, each field at fault on a line.
fn refusal(status: u16, problem: &Value) -> String {
    let text = |field: &str| problem.get(field).and_then(Value::as_str);
    let Some(detail) = text("detail") else { return format!("the API answered {status}; is OFFSTAGE_URL right?") };
    let mut words = format!("{detail} ({})", text("code").unwrap_or("no code"));
    let errors = problem.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if errors.len() > 1 {
        for error in errors {
            let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
            // Writing to a string can't fail.
            _ = write!(words, "\n  {}: {}", field("pointer"), field("detail"));
        }
    }
    words
}
