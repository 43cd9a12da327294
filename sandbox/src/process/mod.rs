//! Real processes under supervision: started, watched, restarted, killed and paused on command.
//!
//! A [`Process`] is a handle; a task of the sandbox's own runtime owns the child. All signals go through that task, which
//! alone reaps the child, so no signal can reach a stranger that inherited the process id.

mod launch;
pub(crate) mod log;
mod supervisor;
mod tree;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use nix::sys::signal::Signal;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use launch::{Account, Spec};

use crate::error::{Error, Result};
use crate::guard::Guard;
use crate::http;
use crate::ports::Port;
use supervisor::{Order, Supervisor};

/// How many lines of a log go into a message.
const TAIL_LINES: usize = 20;
/// How often readiness is asked for.
const READY_POLL: Duration = Duration::from_millis(15);
/// Who waits for a process that has ended this often in a row waits in vain.
const HOPELESS: u32 = 3;
/// Exits that are remembered for [`Process::exits`].
const EXITS_KEPT: usize = 100;

/// How one run of a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its id while it lived.
    pub pid: u32,
    /// The exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// How long it lived.
    pub lived: Duration,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(formatter, "exit code {code}"),
            (None, Some(signal)) => write!(formatter, "signal {signal}"),
            (None, None) => formatter.write_str("an unknown status"),
        }
    }
}

/// What supervised processes report while nobody asks.
#[derive(Debug, Clone)]
pub enum Event {
    /// A process ended though nobody had asked it to.
    Died {
        /// Which, as in `worker-1`.
        name: String,
        /// How.
        exit: Exit,
        /// How often in a row it has now ended soon after its start.
        in_a_row: u32,
        /// When it is started again; `None` when it stays down.
        again_in: Option<Duration>,
        /// The log's last lines.
        tail: String,
    },
    /// A process that had died runs again.
    Restarted {
        /// Which.
        name: String,
        /// The new process id.
        pid: u32,
    },
}

/// What a process is doing now.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// Set while it runs.
    pub(crate) pid: Option<u32>,
    /// How often it was started.
    pub(crate) starts: u32,
    pub(crate) exits: Vec<Exit>,
    /// How many exits there were, those no longer kept included.
    pub(crate) exited: u32,
    /// How often in a row it ended soon after its start, other than by our own SIGKILL.
    pub(crate) in_a_row: u32,
    /// Down, and about to be started again.
    pub(crate) comes_back: bool,
}

/// A handle on one supervised process. Clones are the same process; it ends with its sandbox.
#[derive(Debug, Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    log: std::path::PathBuf,
    port: Option<Arc<Port>>,
    stop_within: Duration,
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
}

impl Process {
    /// Hands `spec` to a supervisor on `runtime`; nothing runs before [`Process::start`].
    pub(crate) fn supervise(
        spec: Spec,
        guard: Arc<Guard>,
        runtime: &tokio::runtime::Handle,
        events: broadcast::Sender<Event>,
    ) -> Result<Self> {
        log::put_aside(&spec.log)?;
        let (orders, received) = mpsc::channel(16);
        let (publish, state) = watch::channel(State::default());
        let inner =
            Inner { name: spec.name.clone(), log: spec.log.clone(), port: spec.port.clone(), stop_within: spec.stop_within, orders, state };
        runtime.spawn(Supervisor::new(spec, guard, publish, events).run(received));
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What it is called, as in `api-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.inner.state.borrow().pid
    }

    /// Where it listens, when it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.port.as_ref().map(|port| port.address())
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end; empty for what does not speak HTTP.
    #[must_use]
    pub fn url(&self) -> String {
        self.address().map(|address| format!("http://{address}")).unwrap_or_default()
    }

    /// How often it was started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.inner.state.borrow().starts
    }

    /// How its latest runs ended, oldest first; at most 100 are remembered.
    #[must_use]
    pub fn exits(&self) -> Vec<Exit> {
        self.inner.state.borrow().exits.clone()
    }

    /// Where its output goes. Restarts add to the same file.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.inner.log
    }

    /// All it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.inner.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Starts it when it does not run. Does not wait until it is ready.
    ///
    /// # Errors
    /// When the program can't be run.
    pub async fn start(&self) -> Result<()> {
        self.order(Order::Start).await?
    }

    /// Asks it to end (SIGTERM, or what this service takes for it), kills it when the deadline has passed, and returns how
    /// it ended; `None` when it did not run. It is not restarted.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn stop(&self) -> Result<Option<Exit>> {
        self.order(|done| Order::Stop(self.inner.stop_within, done)).await
    }

    /// [`Process::stop`] with a deadline of one's own.
    ///
    /// # Errors
    /// As [`Process::stop`].
    pub async fn stop_within(&self, deadline: Duration) -> Result<Option<Exit>> {
        self.order(|done| Order::Stop(deadline, done)).await
    }

    /// SIGKILL, as a crash of the machine would: returns when it is dead. It comes back by itself when restarting is on.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn kill9(&self) -> Result<Option<Exit>> {
        self.order(Order::Kill).await
    }

    /// SIGQUIT, and waits until it has ended; it comes back as after [`Process::kill9`].
    pub(crate) async fn quit(&self) -> Result<()> {
        if self.signal(Signal::SIGQUIT).await? {
            self.wait_exit(self.inner.stop_within).await?;
        }
        Ok(())
    }

    /// SIGSTOP: the process stands still, its connections stay open. False when it does not run.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn pause(&self) -> Result<bool> {
        self.signal(Signal::SIGSTOP).await
    }

    /// SIGCONT: goes on after [`Process::pause`]. False when it does not run.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn resume(&self) -> Result<bool> {
        self.signal(Signal::SIGCONT).await
    }

    /// SIGTERM, without waiting: for tests that watch what happens during a shutdown. It is not restarted when it ends
    /// by this. False when it does not run.
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn terminate(&self) -> Result<bool> {
        self.order(Order::Terminate).await
    }

    /// Whether it is started again when it dies by itself or by [`Process::kill9`].
    ///
    /// # Errors
    /// Only when the sandbox is being taken down.
    pub async fn set_restart(&self, restart: bool) -> Result<()> {
        self.order(|done| Order::SetRestart(restart, done)).await
    }

    /// Waits until the running process has ended and says how; when it does not run, how it ended last.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<Exit> {
        let mut state = self.inner.state.clone();
        let running = state.borrow().pid;
        let ended = state.wait_for(|state| state.pid.is_none() || state.pid != running);
        match tokio::time::timeout(deadline, ended).await {
            Ok(Ok(state)) => state.exits.last().cloned().ok_or_else(|| self.not_ready("it was never started".to_owned())),
            Ok(Err(_)) => Err(Error::Stopping),
            Err(_) => Err(self.not_ready(format!("it still runs after {} s", deadline.as_secs()))),
        }
    }

    /// Waits until `GET /health/ready` answers 200.
    ///
    /// # Errors
    /// When the process ends meanwhile and stays down, or ends three times, or the deadline passes; with its log's end.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let address = self.address().ok_or_else(|| self.not_ready("it has no address to ask".to_owned()))?;
        let mut last = "nothing listens".to_owned();
        self.wait_until(deadline, async || {
            match http::ask(address, Method::GET, "/health/ready", http::Caller::default(), String::new(), Duration::from_secs(2)).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => {
                    last = format!("/health/ready answers {} {}", answer.status, answer.body.trim());
                }
                Err(error) => last = format!("/health/ready: {error}"),
            }
            Err(last.clone())
        })
        .await
    }

    /// Waits until `ready` says so, giving up early when the process dies. `ready` returns why it is not yet.
    pub(crate) async fn wait_until(
        &self,
        deadline: Duration,
        mut ready: impl AsyncFnMut() -> std::result::Result<(), String>,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        let exited_before = self.inner.state.borrow().exited;
        loop {
            let reason = match ready().await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            // It may have ended before we began to wait, so that it is down says more than that it went down.
            let lost = {
                let state = self.inner.state.borrow();
                let down = state.pid.is_none() && !state.comes_back;
                down || (state.in_a_row >= HOPELESS && state.exited > exited_before)
            };
            if lost {
                let exit = self.exits().last().map_or_else(|| "nothing: it was never started".to_owned(), ToString::to_string);
                return Err(self.not_ready(format!("it ended with {exit}")));
            }
            if Instant::now() > end {
                return Err(self.not_ready(format!("{reason}, after {} s", deadline.as_secs())));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    async fn signal(&self, signal: Signal) -> Result<bool> {
        self.order(|done| Order::Signal(signal, done)).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.inner.orders.send(order(done)).await.map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)
    }

    fn not_ready(&self, reason: String) -> Error {
        Error::NotReady { name: self.inner.name.clone(), reason, log: self.inner.log.clone(), tail: log::tail(&self.inner.log, TAIL_LINES) }
    }
}
