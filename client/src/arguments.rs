//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Asks Offstage for jobs, and follows them.
#[derive(Debug, Parser)]
#[command(
    name = "offstage",
    version,
    after_help = "The API's address is taken from OFFSTAGE_URL, the API key from OFFSTAGE_KEY.\n\
                  Exit codes: 0 done, 1 the job failed, was cancelled or expired, 2 wrong usage or input, 3 not reachable, 4 refused, 5 not done in time."
)]
pub struct Arguments {
    /// Where the API is, such as `https://offstage.example.com`.
    #[arg(long, env = "OFFSTAGE_URL", default_value = "http://127.0.0.1:8080", global = true)]
    pub url: String,
    /// The end user to act for: then only that user's things exist.
    #[arg(long = "as", value_name = "USER", env = "OFFSTAGE_USER", global = true)]
    pub acting_user: Option<String>,
    /// Writes JSON, one object a line, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Jobs: asked for, shown, followed.
    #[command(subcommand)]
    Jobs(Jobs),
    /// Schedules: jobs that come again and again.
    #[command(subcommand)]
    Schedules(Schedules),
    /// Queues: how they stand, and pauses of them.
    #[command(subcommand)]
    Queues(Queues),
}

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// Asks for a job, and writes its id.
    Create(Create),
    /// Shows a job.
    Get {
        /// The job's id.
        id: String,
        /// With its runs.
        #[arg(long)]
        attempts: bool,
    },
    /// Follows a job to its end: a bar on a terminal, else a line of JSON at each change.
    Follow {
        /// The job's id.
        id: String,
        /// The longest to wait, in seconds.
        #[arg(long, default_value_t = 86_400)]
        timeout: u64,
    },
    /// Cancels a job.
    Cancel {
        /// The job's id.
        id: String,
    },
    /// Tries a job again that failed, was cancelled or expired.
    Retry {
        /// The job's id.
        id: String,
    },
    /// Tells why a job is not running, and when it should.
    Explain {
        /// The job's id.
        id: String,
    },
    /// Lists jobs, newest first.
    Ls(List),
}

/// A job to be asked for.
#[derive(Debug, Args)]
pub struct Create {
    /// What kind of work, such as `export.create`.
    pub kind: String,
    /// What to do: JSON, `@FILE`, or `-` for standard input.
    #[arg(long, default_value = "{}")]
    pub payload: String,
    /// Makes a repeated call harmless for a day: the same key and job lead to the same job.
    #[arg(long)]
    pub key: Option<String>,
    /// Waits for the job's end; the exit code tells how it ended.
    #[arg(long)]
    pub wait: bool,
    /// The longest to wait, in seconds; the job goes on afterwards.
    #[arg(long, default_value_t = 3_600, requires = "wait")]
    pub timeout: u64,
    /// When to run it (RFC 3339).
    #[arg(long)]
    pub run_at: Option<String>,
    /// When it is no longer worth starting (RFC 3339).
    #[arg(long)]
    pub start_by: Option<String>,
    /// Which jobs of its queue it goes before.
    #[arg(long)]
    pub priority: Option<Priority>,
    /// The end user whose job it is.
    #[arg(long)]
    pub owner: Option<String>,
    /// Where to POST the job when it has ended.
    #[arg(long)]
    pub completion_url: Option<String>,
}

/// Which jobs go first.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Priority {
    /// Before the others.
    High,
    /// As most.
    Normal,
    /// After the others.
    Low,
}

impl Priority {
    /// Its word in a request.
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// Which jobs to list.
#[derive(Debug, Args)]
pub struct List {
    /// Only this kind's.
    #[arg(long)]
    pub kind: Option<String>,
    /// Only in this state.
    #[arg(long)]
    pub state: Option<String>,
    /// Only this end user's.
    #[arg(long)]
    pub owner: Option<String>,
    /// Only this queue's.
    #[arg(long)]
    pub queue: Option<String>,
    /// Only those that failed with this code; with `--state failed`.
    #[arg(long)]
    pub error_code: Option<String>,
    /// Only those accepted then or later (RFC 3339).
    #[arg(long)]
    pub created_from: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// Goes on where a page ended: the `next_cursor` that was written behind it.
    #[arg(long)]
    pub cursor: Option<String>,
}

/// What to do with schedules.
#[derive(Debug, Subcommand)]
pub enum Schedules {
    /// Lists schedules.
    Ls,
    /// Makes a job of a schedule at once.
    Run {
        /// The schedule's name or id.
        schedule: String,
        /// Waits for the job's end; the exit code tells how it ended.
        #[arg(long)]
        wait: bool,
        /// The longest to wait, in seconds.
        #[arg(long, default_value_t = 3_600, requires = "wait")]
        timeout: u64,
    },
    /// Pauses a schedule.
    Pause {
        /// The schedule's name or id.
        schedule: String,
    },
    /// Lets a schedule go on.
    Resume {
        /// The schedule's name or id.
        schedule: String,
    },
}

/// What to do with queues.
#[derive(Debug, Subcommand)]
pub enum Queues {
    /// Lists queues.
    Ls,
    /// Pauses a queue: what runs goes on, nothing new starts.
    Pause {
        /// The queue's name.
        queue: String,
        /// Only this kind's jobs.
        #[arg(long)]
        kind: Option<String>,
        /// Why, for whoever finds it paused.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lets a queue go on.
    Resume {
        /// The queue's name.
        queue: String,
        /// Only this kind's jobs.
        #[arg(long)]
        kind: Option<String>,
    },
}
