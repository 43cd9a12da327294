//! What can be wrong with a source, sorted by what helps: waiting, the operator, or the manifest's author.

use std::{borrow::Cow, time::Duration};

use shared::job::Failure;
use sqlx::error::DatabaseError;

/// A fault of a source, or of the way to it. Never shows its URL.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection, or it broke, or the server is full, starting, stopping.
    #[error("the database of source `{name}` is not available now{}", reason(source))]
    Unavailable {
        /// The source's name in the manifest.
        name: String,
        /// What happened.
        #[source]
        source: sqlx::Error,
    },
    /// The server does not answer.
    #[error("the database of source `{name}` did not answer within {} s", .within.as_secs())]
    Silent {
        /// The source's name in the manifest.
        name: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The variable holds no usable URL, or the worker was started without it.
    #[error("this worker has no address for source `{name}`; set {variable} to a Postgres URL and start it again")]
    Address {
        /// The source's name in the manifest.
        name: String,
        /// The variable's name.
        variable: String,
    },
    /// The server does not let us in.
    #[error(
        "the database of source `{name}` does not let its role in: {said}; correct the URL in the source's variable, or the role's rights"
    )]
    Login {
        /// The source's name in the manifest.
        name: String,
        /// What the server said.
        said: String,
    },
    /// The statement ran into its timeout. Permanent: the same statement over the same data takes as long again, at the
    /// product's expense; a person who knows better can retry.
    #[error(
        "the dataset `{dataset}` ran into its statement timeout of {} s; narrow it by its parameters, give it an index, or raise `statement_timeout_seconds` of source `{name}` in the manifest",
        .timeout.as_secs()
    )]
    StatementTimeout {
        /// The source's name in the manifest.
        name: String,
        /// The dataset's name.
        dataset: String,
        /// How long it may run.
        timeout: Duration,
    },
    /// The server refuses the statement or a value.
    #[error(
        "the database refused the dataset `{dataset}`: {said}; correct its SQL or its parameters in the manifest, or what was asked for"
    )]
    Refused {
        /// The dataset's name.
        dataset: String,
        /// What the server said, with its code, as far as it can hold nobody's data.
        said: String,
        /// All that it said.
        #[source]
        source: sqlx::Error,
    },
    /// The server says what we don't understand.
    #[error("reading the dataset `{dataset}` failed; this is a fault in the product")]
    Protocol {
        /// The dataset's name.
        dataset: String,
        /// What happened.
        #[source]
        source: sqlx::Error,
    },
}

/// What was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Connect,
    Begin,
    /// Reading a dataset.
    Dataset(String),
}

impl SourceError {
    /// The source can't be reached because the worker doesn't know where it is.
    #[must_use]
    pub fn address(name: &str, variable: &str) -> Self {
        Self::Address { name: name.to_owned(), variable: variable.to_owned() }
    }

    pub(super) fn silent(name: &str, within: Duration) -> Self {
        Self::Silent { name: name.to_owned(), within }
    }

    pub(super) fn of(step: Step, name: &str, statement_timeout: Duration, error: sqlx::Error) -> Self {
        let name = name.to_owned();
        let Some(said) = error.as_database_error() else {
            let passing = matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed);
            return match step {
                Step::Dataset(dataset) if !passing => Self::Protocol { dataset, source: error },
                _ => Self::Unavailable { name, source: error },
            };
        };
        let code = said.code().unwrap_or(Cow::Borrowed(""));
        if is_passing(&code) {
            return Self::Unavailable { name, source: error };
        }
        match step {
            Step::Connect | Step::Begin => Self::Login { name, said: words(said) },
            // query_canceled: by the timeout, or by an administrator, who should not have to do it three times.
            Step::Dataset(dataset) if code == "57014" => Self::StatementTimeout { name, dataset, timeout: statement_timeout },
            Step::Dataset(dataset) => Self::Refused { dataset, said: public_words(said), source: error },
        }
    }

    /// Whether trying the same again later may work.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Silent { .. })
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "source_unavailable",
            Self::Silent { .. } => "source_timeout",
            Self::Address { .. } => "source_unknown",
            Self::Login { .. } => "source_login_refused",
            Self::StatementTimeout { .. } => "dataset_timeout",
            Self::Refused { .. } => "dataset_refused",
            Self::Protocol { .. } => "dataset_unreadable",
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let new = if error.is_transient() { Self::transient } else { Self::permanent };
        let words = match &error {
            SourceError::Unavailable { .. } | SourceError::Silent { .. } => "the data can't be read for now; try again later".to_owned(),
            SourceError::StatementTimeout { dataset, .. } => format!("reading `{dataset}` took too long; ask for less of it"),
            SourceError::Refused { dataset, .. } => {
                format!(
                    "`{dataset}` can't be read as it was asked for; ask for something else, or whoever runs this service has to look into it"
                )
            }
            SourceError::Address { .. } | SourceError::Login { .. } | SourceError::Protocol { .. } => {
                "the data can't be read; whoever runs this service has to look into it".to_owned()
            }
        };
        let failure = new(error.code(), error.to_string()).for_owner(words);
        match std::error::Error::source(&error) {
            Some(cause) => failure.caused_by(cause),
            None => failure,
        }
    }
}

/// Why there is no connection, where it is plain.
fn reason(error: &sqlx::Error) -> &'static str {
    use std::io::ErrorKind;
    match error {
        sqlx::Error::Tls(_) => ": it does not speak TLS as the source's URL wants it (`sslmode`)",
        sqlx::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => ": it refuses connections",
        sqlx::Error::Io(error) if error.to_string().contains("lookup address") => ": its host's name is not known",
        _ => "",
    }
}

/// SQLSTATEs that pass by themselves. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_passing(code: &str) -> bool {
    // 08 connection; 40 rollback, as a standby's conflict with recovery is; 53 resources, too many connections among them;
    // 58 system error, as of a disk. 57014 (query canceled) is not among them.
    ["08", "40", "53", "58"].iter().any(|class| code.starts_with(class))
        || matches!(
            code,
            "25P03" | "25P04"           // idle in transaction, transaction timeout
            | "55P03" | "55006"         // lock not available, object in use
            | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" // shutdowns, starting, database dropped, idle session
            | "72000"                   // snapshot too old
            | "XX000" // internal: a relation that was dropped meanwhile shows so
        )
}

/// The server's message where it is about the statement (class 42: syntax, names, rights; 25: a statement that would write),
/// which its author wrote. Others may quote a row, which is for operators only; those are told by their code's class.
fn public_words(said: &dyn DatabaseError) -> String {
    let code = said.code().unwrap_or(Cow::Borrowed(""));
    let class = match code.as_ref() {
        "22012" => "division by zero",
        "21000" => "a subquery for one value brought more rows",
        code if code.starts_with("42") || code.starts_with("25") => return words(said),
        code if code.starts_with("22") => "a value is not what the statement needs",
        code if code.starts_with("54") => "the statement is too large or too complex",
        code if code.starts_with("P0") || code.starts_with("38") || code.starts_with("39") => "a function of the product's failed",
        _ => "see the causes in the worker's log, or `api jobs show`",
    };
    format!("{class} (SQLSTATE {code})")
}

/// The server's message with its code, at most so long.
fn words(said: &dyn DatabaseError) -> String {
    let message: String = said.message().chars().take(500).collect();
    match said.code() {
        Some(code) => format!("{message} (SQLSTATE {code})"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::is_passing;

    #[test]
    fn what_passes_and_what_does_not() {
        for code in ["08006", "40001", "53300", "57P01", "57P03", "55P03", "58030", "XX000"] {
            assert!(is_passing(code), "{code}");
        }
        for code in
            ["42P01", "42703", "42601", "42501", "22P02", "22012", "57014", "28P01", "3D000", "25006", "21000", "0A000", "XX001", ""]
        {
            assert!(!is_passing(code), "{code}");
        }
    }
}
