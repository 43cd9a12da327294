//! What is measured of whom: the report's rows.

/// A line of the report: what was measured, of whom, how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// What.
    pub figure: Figure,
    /// Who.
    pub contestant: &'static str,
    /// In which way.
    pub how: &'static str,
    /// Whether the ledger had a history.
    pub grown: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Jobs that wait are worked off by so many processes.
    Drain(usize),
    /// Jobs are added a thousand at a time.
    Bulk,
    /// Jobs are added over HTTP.
    Http,
    /// Jobs are added one by one by a library, 64 at a time.
    Single,
    /// A job starts on an idle system.
    Pickup,
    /// Many clients poll.
    Polling,
    /// Many clients listen.
    Streams,
    /// Nothing happens.
    Idle,
    /// Jobs that wait are worked off by so many processes.
    Scaling(usize),
    /// Messages are sealed, signed and pushed.
    Push,
    /// Mails are sent.
    Mail,
    /// One notification is told to many.
    FanOut,
}

/// The name of ours.
pub const OURS: &str = "Offstage";
/// What a vacuum costs after a drain.
pub const TIDY: &str = "vacuum afterwards";
/// The handler's own word.
pub const STARTS: &str = "POST sent → handler starts";

const fn ours(figure: Figure, how: &'static str) -> Row {
    Row { figure, contestant: OURS, how, grown: false }
}

/// The rows of ours that others are compared with.
pub const BULK: Row = ours(Figure::Bulk, "`POST /v1/jobs/batch` of 1,000");
/// The backlog's making.
pub const PREPARED: Row = ours(Figure::Bulk, "the ledger's insert of 1,000, no HTTP");
/// HTTP.
pub const HTTP: Row = ours(Figure::Http, "`POST /v1/jobs`, 64 connections");
/// Pick-up as the handler tells it.
pub const PICKUP: Row = ours(Figure::Pickup, STARTS);
/// Pick-up as the ledger has it.
pub const CLAIMED: Row = ours(Figure::Pickup, "POST sent → claimed (ledger)");
/// Pick-up as an outsider sees it.
pub const CALLED_BACK: Row = ours(Figure::Pickup, "POST sent → handler's callback arrives");
/// Polling.
pub const POLLING: Row = ours(Figure::Polling, "`GET /v1/jobs/{id}`");
/// Listening.
pub const STREAMS: Row = ours(Figure::Streams, "`GET /v1/jobs/{id}/events`");
/// Idling.
pub const IDLE: Row = ours(Figure::Idle, "an API, a worker on all queues");

/// Pushes without the engine, as libraries are.
pub const PUSH_ALONE: Row = ours(Figure::Push, "the worker's client by itself, no engine");
/// Pushes, one a job.
pub const PUSH: Row = ours(Figure::Push, "`push.send`, a browser a job, through the engine");
/// Pushes, twenty a job.
pub const PUSH_CROWDED: Row = ours(Figure::Push, "`push.send`, 20 browsers a job, through the engine");
/// Mails without the engine.
pub const MAIL_ALONE: Row = ours(Figure::Mail, "the worker's client by itself, no engine");
/// Mails.
pub const MAIL: Row = ours(Figure::Mail, "`email.send`, through the engine");

/// A notification to many.
pub const FAN_OUT: Row = ours(Figure::FanOut, "`POST /v1/notifications` → the last inbox's row");

/// Ours, by so many processes.
#[must_use]
pub const fn drain(processes: usize) -> Row {
    ours(Figure::Drain(processes), "worker, durable rows")
}

/// Jobs that wait, by so many processes.
#[must_use]
pub const fn scaling(processes: usize) -> Row {
    ours(Figure::Scaling(processes), "jobs that wait 20 ms, 25 at a time a process")
}

/// The row of a peer.
#[must_use]
pub const fn of(peer: &'static str, figure: Figure) -> Row {
    let how = match figure {
        Figure::Drain(_) => "worker",
        Figure::Bulk => "bulk add of 1,000, in process",
        Figure::Http => "`POST /v1/jobs`, 64 connections, no durable record",
        Figure::Single => "single add, in process, 64 in flight",
        Figure::Pickup => "add called → handler starts",
        Figure::Push => "sealed and signed by the library, sent by Node's client",
        Figure::Mail => "`sendMail` with a pool of 10 connections",
        Figure::Polling | Figure::Streams | Figure::Idle | Figure::Scaling(_) | Figure::FanOut => "",
    };
    Row { figure, contestant: peer, how, grown: false }
}

impl Row {
    /// The same with a history.
    #[must_use]
    pub const fn with_history(self) -> Self {
        Self { grown: true, ..self }
    }
}
