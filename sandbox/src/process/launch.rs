//! From a description of a process to a running one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::log;
use crate::error::{Doing, Result};
use crate::guard::{Guard, Orphan};
use crate::ports::Port;

/// The account a process runs under, when it can't be ours: Postgres refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Keep the right to pass directories that are closed to this account, as the path below `/root` is. Needs `setpriv`.
    pub(crate) pass_directories: bool,
}

/// All that is needed to run a process, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// Set on top of ours, of which no `OFFSTAGE_*` is passed on: a process gets its settings from its sandbox alone.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) directory: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) account: Option<Account>,
    /// Where it listens; reserved as long as the process has a handle.
    pub(crate) port: Option<Arc<Port>>,
    /// What asks it to end.
    pub(crate) stop_signal: Signal,
    /// How long it may take to end.
    pub(crate) stop_within: Duration,
    pub(crate) orphan: Orphan,
    /// Signals go to its children too.
    pub(crate) family: bool,
    pub(crate) restart: bool,
    /// What it prints is a secret and stays out of the log; its complaints don't.
    pub(crate) confidential: bool,
}

impl Spec {
    /// A program without needs of its own: runs in `/`, logs to `log`, gets ten seconds to end.
    pub(crate) fn new(name: &str, program: PathBuf, log: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            program,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            directory: PathBuf::from("/"),
            log,
            account: None,
            port: None,
            stop_signal: Signal::SIGTERM,
            stop_within: Duration::from_secs(10),
            orphan: Orphan::Kill,
            family: false,
            restart: false,
            confidential: false,
        }
    }

    /// The command, enlisted with the guard, writing to the log.
    pub(crate) fn command(&self, guard: &Guard) -> Result<Command> {
        let log = log::open(&self.log)?;
        let copy = log.try_clone().doing(|| format!("open the log {} twice", self.log.display()))?;
        let mut command = match self.account {
            Some(Account { uid, gid, pass_directories: true }) => {
                let mut command = guard.command(self.orphan, "setpriv".as_ref())?;
                command
                    .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                    .args(["--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--"])
                    .arg(&self.program);
                command
            }
            Some(Account { uid, gid, pass_directories: false }) => {
                let mut command = guard.command(self.orphan, self.program.as_os_str())?;
                command.uid(uid).gid(gid);
                command
            }
            None => guard.command(self.orphan, self.program.as_os_str())?,
        };
        command.args(&self.arguments).current_dir(&self.directory).stdout(Stdio::from(log)).stderr(Stdio::from(copy));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OFFSTAGE_")) {
            command.env_remove(name);
        }
        command.envs(&self.environment);
        Ok(command)
    }
}
