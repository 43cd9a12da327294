//! The task that owns a child process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{EXITS_KEPT, Event, Exit, Spec, State, TAIL_LINES, log, tree};
use crate::error::{Doing, Result};
use crate::guard::Guard;

/// The first restart comes after this, each further one in a row after twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// A process that lived this long was well: its next end is the first of a new row.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// What a handle can ask of the supervisor; each is answered when it is done.
#[derive(Debug)]
pub(super) enum Order {
    Start(oneshot::Sender<Result<()>>),
    Stop(Duration, oneshot::Sender<Option<Exit>>),
    Kill(oneshot::Sender<Option<Exit>>),
    Terminate(oneshot::Sender<bool>),
    Signal(Signal, oneshot::Sender<bool>),
    SetRestart(bool, oneshot::Sender<()>),
}

struct Running {
    child: Child,
    pid: u32,
    since: Instant,
}

pub(super) struct Supervisor {
    spec: Spec,
    guard: Arc<Guard>,
    state: watch::Sender<State>,
    events: broadcast::Sender<Event>,
    running: Option<Running>,
    /// Somebody asked it to end: not a death.
    ending: bool,
    /// We killed it: a death, but no sign of trouble.
    killed: bool,
    /// When to start it again.
    again_at: Option<tokio::time::Instant>,
    in_a_row: u32,
}

impl Supervisor {
    pub(super) fn new(spec: Spec, guard: Arc<Guard>, state: watch::Sender<State>, events: broadcast::Sender<Event>) -> Self {
        Self { spec, guard, state, events, running: None, ending: false, killed: false, again_at: None, in_a_row: 0 }
    }

    /// Works until every handle is gone or the runtime ends; the guard then ends the child.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            if let Some(running) = self.running.as_mut() {
                tokio::select! {
                    status = running.child.wait() => self.died(status),
                    order = orders.recv() => match order {
                        Some(order) => self.obey(order).await,
                        None => return,
                    },
                }
            } else {
                let again_at = self.again_at;
                let pause = async {
                    match again_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = pause => self.start_again(),
                    order = orders.recv() => match order {
                        Some(order) => self.obey(order).await,
                        None => return,
                    },
                }
            }
        }
    }

    /// Answers that nobody waits for any more are dropped: the asker has gone, the deed stands.
    async fn obey(&mut self, order: Order) {
        match order {
            Order::Start(done) => {
                self.in_a_row = 0;
                let _ = done.send(if self.running.is_some() { Ok(()) } else { self.start() });
            }
            Order::Stop(deadline, done) => {
                let _ = done.send(self.stop(deadline).await);
            }
            Order::Kill(done) => {
                self.killed = self.signal(Signal::SIGKILL);
                let exit = match self.running.as_mut() {
                    Some(running) => {
                        let status = running.child.wait().await;
                        self.died(status);
                        self.state.borrow().exits.last().cloned()
                    }
                    None => None,
                };
                let _ = done.send(exit);
            }
            Order::Terminate(done) => {
                self.ending = self.running.is_some();
                let _ = done.send(self.signal(self.spec.stop_signal));
            }
            Order::Signal(signal, done) => {
                let _ = done.send(self.signal(signal));
            }
            Order::SetRestart(restart, done) => {
                self.spec.restart = restart;
                if !restart {
                    self.plan(None);
                }
                let _ = done.send(());
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        self.again_at = None;
        self.ending = false;
        self.killed = false;
        let command = self.spec.command(&self.guard)?;
        let child = tokio::process::Command::from(command).spawn().doing(|| format!("run {}", self.spec.program.display()))?;
        // A child that was not waited for has its id.
        let pid = child.id().unwrap_or_default();
        self.running = Some(Running { child, pid, since: Instant::now() });
        self.state.send_modify(|state| {
            // In one step: nobody is to see it neither running nor coming back.
            state.pid = Some(pid);
            state.comes_back = false;
            state.starts += 1;
        });
        Ok(())
    }

    fn start_again(&mut self) {
        match self.start() {
            Ok(()) => {
                let pid = self.running.as_ref().map(|running| running.pid).unwrap_or_default();
                let _ = self.events.send(Event::Restarted { name: self.spec.name.clone(), pid });
            }
            // The sandbox is being taken down: there is no guard to start it under.
            Err(_) => self.plan(None),
        }
    }

    /// When to start it again, known to who waits for it.
    fn plan(&mut self, again_in: Option<Duration>) {
        self.again_at = again_in.map(|pause| tokio::time::Instant::now() + pause);
        self.state.send_modify(|state| {
            state.comes_back = again_in.is_some();
            state.in_a_row = self.in_a_row;
        });
    }

    async fn stop(&mut self, deadline: Duration) -> Option<Exit> {
        self.plan(None);
        self.ending = true;
        self.signal(self.spec.stop_signal);
        // What was paused can't end before it goes on.
        self.signal(Signal::SIGCONT);
        let running = self.running.as_mut()?;
        let ended = tokio::time::timeout(deadline, running.child.wait()).await;
        let status = if let Ok(status) = ended {
            status
        } else {
            self.signal(Signal::SIGKILL);
            self.running.as_mut()?.child.wait().await
        };
        self.died(status);
        self.state.borrow().exits.last().cloned()
    }

    /// Sends a signal to the child, and where it has a family to all of it. False when it does not run.
    fn signal(&self, signal: Signal) -> bool {
        let Some(running) = &self.running else {
            return false;
        };
        let Ok(raw) = i32::try_from(running.pid) else {
            return false;
        };
        let pid = Pid::from_raw(raw);
        // An orderly end is the parent's to arrange; everything else must reach the children as well.
        if self.spec.family && signal != self.spec.stop_signal {
            for member in tree::family(pid) {
                // A member that has just ended needs no signal.
                let _ = kill(member, signal);
            }
            true
        } else {
            kill(pid, signal).is_ok()
        }
    }

    fn died(&mut self, status: std::io::Result<ExitStatus>) {
        let Some(running) = self.running.take() else {
            return;
        };
        self.guard.forget(running.pid);
        let status = status.ok();
        let exit = Exit {
            pid: running.pid,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            lived: running.since.elapsed(),
        };
        let asked = std::mem::take(&mut self.ending);
        let killed = std::mem::take(&mut self.killed);
        let soon = exit.lived < WELL_AFTER && !killed && !asked;
        self.in_a_row = if soon { self.in_a_row.saturating_add(1) } else { 1 };
        let again_in = (self.spec.restart && !asked).then(|| {
            let doublings = self.in_a_row.saturating_sub(1).min(10);
            BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_LONGEST)
        });
        // Planned first: nobody is to see it down for good that comes back.
        self.plan(again_in);
        self.state.send_modify(|state| {
            state.pid = None;
            state.exited += 1;
            if state.exits.len() == EXITS_KEPT {
                state.exits.remove(0);
            }
            state.exits.push(exit.clone());
        });
        if asked {
            return;
        }
        // Nobody has to listen.
        let _ = self.events.send(Event::Died {
            name: self.spec.name.clone(),
            exit,
            in_a_row: self.in_a_row,
            again_in,
            tail: log::tail(&self.spec.log, TAIL_LINES),
        });
    }
}
