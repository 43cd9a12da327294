//! What everything that runs in a sandbox hangs on: the guard, a runtime of its own, the stream of events.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use crate::error::{Doing, Error, Result};
use crate::guard::Guard;
use crate::process::{Event, Process, Spec, log};

/// Events that a slow listener may fall behind before it misses some.
const EVENTS: usize = 1024;

/// The ground a sandbox stands on. Dropping it ends every process, then the servers inside this one.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) guard: Arc<Guard>,
    /// Apart from the caller's: supervision and the S3 server go on while a test blocks its own.
    runtime: Option<Runtime>,
    events: broadcast::Sender<Event>,
}

impl Host {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("sandbox")
            .enable_all()
            .build()
            .doing(|| "start the sandbox's runtime".to_owned())?;
        let (events, _) = broadcast::channel(EVENTS);
        Ok(Self { guard: Arc::new(Guard::start()?), runtime: Some(runtime), events })
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn runtime(&self) -> Result<&tokio::runtime::Handle> {
        self.runtime.as_ref().map(Runtime::handle).ok_or(Error::Stopping)
    }

    /// A process that can be started.
    pub(crate) fn supervise(&self, spec: Spec) -> Result<Process> {
        Process::supervise(spec, Arc::clone(&self.guard), self.runtime()?, self.events.clone())
    }

    /// Runs a command to its end. Its log gets what it wrote; so does the error when it fails.
    pub(crate) async fn run(&self, spec: Spec, deadline: Duration) -> Result<Output> {
        let shown = shown(&spec);
        let mut command = tokio::process::Command::from(spec.command(&self.guard)?);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        let guard = Arc::clone(&self.guard);
        let path = spec.log.clone();
        let confidential = spec.confidential;
        let running = self.runtime()?.spawn(async move {
            let child = command.spawn().doing(|| format!("run {}", spec.program.display()))?;
            let pid = child.id();
            let output = tokio::time::timeout(deadline, child.wait_with_output()).await;
            if let Some(pid) = pid {
                guard.forget(pid);
            }
            match output {
                Ok(output) => output.doing(|| format!("wait for {}", spec.program.display())),
                Err(_) => Err(Error::Invalid(format!("`{}` did not end within {} s and was killed", spec.name, deadline.as_secs()))),
            }
        });
        let output = running.await.map_err(|_| Error::Stopping)??;
        let printed: &[u8] = if confidential { b"" } else { &output.stdout };
        log::add(&path, &[printed, &output.stderr])?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::Command {
            command: shown,
            status: output.status.to_string(),
            output: format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// Ends every process now.
    pub(crate) fn close(&self) {
        self.guard.close();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The runtime reaps while the guard kills, so it goes last, and without waiting: a drop may happen in async code.
        self.guard.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The command line for messages. Secrets never stand in arguments here, only in the environment and in files.
fn shown(spec: &Spec) -> String {
    let program = spec.program.file_name().unwrap_or(Path::new("").as_os_str()).to_string_lossy();
    spec.arguments.iter().fold(program.into_owned(), |all, argument| format!("{all} {}", argument.to_string_lossy()))
}
