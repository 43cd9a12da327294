//! A Postgres data directory: made, and served.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Installation, Postgres, account};
use crate::directory::{give, write_secret};
use crate::error::{Doing, Error, Result};
use crate::guard::Orphan;
use crate::host::Host;
use crate::ports::Port;
use crate::process::{Account, Spec};
use crate::secrets::Secrets;

/// initdb takes about a second; a machine at work on builds may need many.
const INITDB_WITHIN: Duration = Duration::from_mins(2);
/// A fast shutdown writes what is dirty.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What a crash of the machine may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: Postgres syncs each commit, Redis appends to a file each second.
    Lasting,
    /// Everything; a crash of the *process* costs nothing in Postgres either way. Small and quick, for tests.
    Fast,
}

/// How this machine runs Postgres in a given place.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) installation: Installation,
    pub(super) account: Option<Account>,
}

impl Cluster {
    /// `place` is where data directories will lie; `data` is one that exists and asks for the version that made it.
    pub(super) fn find(place: &Path, data: Option<&Path>) -> Result<Self> {
        let major = match data.map(|data| std::fs::read_to_string(data.join("PG_VERSION"))) {
            Some(Ok(version)) => version.trim().parse().ok(),
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(|| "read which Postgres made the data".to_owned());
            }
            _ => None,
        };
        Ok(Self { installation: Installation::find(major)?, account: account::for_directory(place)? })
    }

    /// Runs initdb. An interrupted one leaves nothing that looks finished.
    pub(super) async fn initialise(&self, data: &Path, secrets: &Secrets, durability: Durability, host: &Host, log: &Path) -> Result<()> {
        let owner = self.account.map(|account| (account.uid, account.gid));
        let partial = data.with_added_extension("partial");
        let _ = std::fs::remove_dir_all(&partial);
        let password = data.with_added_extension("password");
        write_secret(&password, &secrets.superuser)?;
        let prepare = || {
            give(&password, owner)?;
            std::fs::create_dir(&partial)?;
            give(&partial, owner)
        };
        prepare().doing(|| format!("make the data directory {}", partial.display()))?;

        let mut spec = self.spec("initdb", log);
        spec.arguments = ["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions"]
            .map(OsString::from)
            .into();
        spec.arguments.push(joined("--pgdata=", &partial));
        spec.arguments.push(joined("--pwfile=", &password));
        if durability == Durability::Fast {
            spec.arguments.extend(["--no-sync", "--wal-segsize=4"].map(OsString::from));
        }
        let result = host.run(spec, INITDB_WITHIN).await;
        let _ = std::fs::remove_file(&password);
        result?;
        std::fs::rename(&partial, data).doing(|| format!("finish the data directory {}", data.display()))
    }

    /// Lets go of the log of a server that was shut down in order, all but one segment.
    pub(super) async fn drop_log(&self, data: &Path, host: &Host, log: &Path) -> Result<()> {
        let mut spec = self.spec("pg_resetwal", log);
        spec.arguments = vec![joined("--pgdata=", data)];
        host.run(spec, INITDB_WITHIN).await.map(drop)
    }

    /// The server of a data directory, not started yet.
    pub(super) fn serve(&self, data: PathBuf, secrets: Secrets, durability: Durability, host: &Host, log: &Path) -> Result<Postgres> {
        let port = Port::reserve()?;
        let mut spec = self.spec("postgres", log);
        spec.arguments = vec!["-D".into(), data.clone().into()];
        let common = [
            format!("port={}", port.number()),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "max_connections=100".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "log_line_prefix=%m [%p] %u@%d ".to_owned(),
            "log_checkpoints=off".to_owned(),
        ];
        let chosen: &[&str] = match durability {
            Durability::Lasting => &["shared_buffers=128MB"],
            Durability::Fast => &[
                "shared_buffers=32MB",
                "fsync=off",
                "full_page_writes=off",
                "wal_level=minimal",
                "max_wal_senders=0",
                "min_wal_size=16MB",
                "max_wal_size=512MB",
                "jit=off",
            ],
        };
        for setting in common.iter().map(String::as_str).chain(chosen.iter().copied()) {
            spec.arguments.push("-c".into());
            spec.arguments.push(setting.into());
        }
        spec.port = Some(Arc::new(port));
        spec.stop_signal = Signal::SIGINT; // a "fast" shutdown: ends sessions, writes a checkpoint
        spec.stop_within = STOP_WITHIN;
        spec.orphan = Orphan::Quit;
        spec.family = true;
        Ok(Postgres::new(host.supervise(spec)?, data, secrets, self.installation.clone()))
    }

    fn spec(&self, program: &str, log: &Path) -> Spec {
        let mut spec = Spec::new(program, self.installation.program(program), log.to_owned());
        spec.account = self.account;
        spec.environment.insert("LC_ALL".to_owned(), "C".to_owned());
        spec
    }
}

/// Clears away what a crash left, so that a server can start: the server itself, when its guard was killed too, and a
/// pid file whose number now names a stranger, as happens after a restart of a container.
pub(super) async fn clear_leftovers(data: &Path) -> Result<()> {
    let path = data.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()).map(Pid::from_raw) else {
        return Ok(());
    };
    if serves(pid, data).await {
        let _ = kill(pid, Signal::SIGQUIT);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while serves(pid, data).await {
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Invalid(format!("a Postgres of an earlier run, process {pid}, still holds {}: end it", data.display())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).doing(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Whether the process is a Postgres on this data directory.
async fn serves(pid: Pid, data: &Path) -> bool {
    let command = match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(bytes) => bytes,
        // No /proc on macOS, where ps is always there.
        Err(_) => match tokio::process::Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]).output().await {
            Ok(output) => output.stdout,
            Err(_) => return false,
        },
    };
    let command = String::from_utf8_lossy(&command).into_owned();
    command.contains("postgres") && command.contains(&*data.to_string_lossy())
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut whole = OsString::from(option);
    whole.push(path);
    whole
}
