//! The product's own programs, as built: where they are and how they are run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::ports::Port;
use crate::process::Spec;

/// Migrations of an empty database take a second; those of a full one may rewrite tables.
const MIGRATE_WITHIN: Duration = Duration::from_mins(10);
/// More than the programs' own grace for a shutdown (25 s): a SIGKILL here hides a program that overstays.
const STOP_WITHIN: Duration = Duration::from_secs(35);

/// The directory of `api` and `worker`.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    directory: PathBuf,
}

impl Programs {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Beside the running program: `target/debug` for the sandbox, a test or a benchmark of the same build.
    pub(crate) fn beside_us() -> Result<Self> {
        let us = std::env::current_exe().doing(|| "find the running program".to_owned())?;
        let directory = us.parent().unwrap_or(Path::new("/"));
        // Tests lie one level deeper, in `deps`; examples in `examples`.
        let inner = directory.ends_with("deps") || directory.ends_with("examples");
        let directory = if inner { directory.parent().unwrap_or(directory) } else { directory };
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where templates and directories of tests lie: `target/sandbox`, or the machine's temporary directory when the
    /// programs do not lie in a build directory.
    pub(crate) fn cache(&self) -> PathBuf {
        match self.directory.parent() {
            Some(target) if target.join("CACHEDIR.TAG").exists() => target.join("sandbox"),
            _ => std::env::temp_dir().join(format!("offstage-sandbox-{}", nix::unistd::geteuid())),
        }
    }

    pub(crate) fn api(&self) -> Result<PathBuf> {
        self.find("api")
    }

    pub(crate) fn worker(&self) -> Result<PathBuf> {
        self.find("worker")
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::Missing {
            program: path.display().to_string(),
            advice: "build the programs first, `cargo build --workspace --bins` (`--release` for release)".to_owned(),
        })
    }

    /// `api migrate` as the owner of the database at `url`.
    pub(crate) async fn migrate(&self, host: &Host, url: &str, log: &Path) -> Result<Output> {
        let environment = BTreeMap::from([("OFFSTAGE_DATABASE_URL".to_owned(), url.to_owned())]);
        let mut spec = Spec::new("api migrate", self.api()?, log.to_owned());
        spec.arguments.push("migrate".into());
        spec.environment = environment;
        host.run(spec, MIGRATE_WITHIN).await
    }

    /// `api` with these arguments, to be run to its end.
    pub(crate) fn api_command(&self, arguments: Vec<OsString>, environment: BTreeMap<String, String>, log: PathBuf) -> Result<Spec> {
        let mut spec = Spec::new("api", self.api()?, log);
        spec.arguments = arguments;
        spec.environment = environment;
        // Manifests are named relative to where the caller stands.
        spec.directory = std::env::current_dir().doing(|| "find the current directory".to_owned())?;
        Ok(spec)
    }
}

/// How a program is to be started; everything has a default.
#[derive(Debug, Clone)]
pub struct Launch {
    environment: BTreeMap<String, String>,
    arguments: Vec<OsString>,
    restart: bool,
    port: Option<u16>,
    memory: Option<u64>,
}

impl Default for Launch {
    fn default() -> Self {
        Self { environment: BTreeMap::new(), arguments: Vec::new(), restart: true, port: None, memory: None }
    }
}

impl Launch {
    /// As the sandbox would start it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a variable on top of the sandbox's.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Sets variables on top of the sandbox's.
    #[must_use]
    pub fn envs(mut self, variables: BTreeMap<String, String>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Gives it so much address space, in bytes, and no more (`RLIMIT_AS`); an allocation beyond it fails.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Adds an argument to the command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Puts an argument before the others.
    #[must_use]
    pub(crate) fn first(mut self, argument: &str) -> Self {
        self.arguments.insert(0, argument.into());
        self
    }

    /// Leaves it down when it dies.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.restart = false;
        self
    }

    /// Listens on this port if nobody else does, else on a free one.
    #[must_use]
    pub fn prefer_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The process of `api serve` or `worker`, whose address stands in the variable `listen`.
    pub(crate) fn spec(
        self,
        name: &str,
        program: PathBuf,
        listen: &str,
        environment: BTreeMap<String, String>,
        log: PathBuf,
    ) -> Result<Spec> {
        let port = match self.port {
            Some(port) => Port::prefer(port)?,
            None => Port::reserve()?,
        };
        let mut spec = Spec::new(name, program, log);
        spec.environment = environment;
        spec.environment.insert(listen.to_owned(), port.address().to_string());
        spec.environment.entry("RUST_BACKTRACE".to_owned()).or_insert_with(|| "1".to_owned());
        spec.environment.extend(self.environment);
        spec.arguments = self.arguments;
        if let Some(bytes) = self.memory {
            // The shell becomes the program, so the process is the one that was started.
            let limited = ["-c".into(), format!("ulimit -v {} && exec \"$0\" \"$@\"", bytes / 1024).into(), spec.program.into_os_string()];
            spec.arguments.splice(0..0, limited);
            spec.program = PathBuf::from("/bin/sh");
        }
        spec.port = Some(Arc::new(port));
        spec.stop_within = STOP_WITHIN;
        spec.restart = self.restart;
        Ok(spec)
    }
}
