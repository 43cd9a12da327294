//! The product's programs as they run in one sandbox: `api-1`, `api-2`, `worker-1` …

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::Host;
use crate::process::{Process, Spec};
use crate::programs::{Launch, Programs};

/// From the start of a program to its `/health/ready`.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Every command of `api` but `migrate`.
const COMMAND_WITHIN: Duration = Duration::from_mins(1);

/// Starts programs and knows those it started.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) programs: Programs,
    logs: PathBuf,
    started: Mutex<Vec<Process>>,
}

/// Settings by name, `OFFSTAGE_*`.
pub(crate) type Environment = BTreeMap<String, String>;

impl Fleet {
    pub(crate) fn new(programs: Programs, logs: PathBuf) -> Self {
        Self { programs, logs, started: Mutex::default() }
    }

    pub(crate) async fn start_api(&self, host: &Host, environment: Environment, launch: Launch) -> Result<Process> {
        let program = self.programs.api()?;
        let environment = without(environment, &["OFFSTAGE_DATABASE_URL", "OFFSTAGE_ENGINE_DATABASE_URL"]);
        self.start("api", program, "OFFSTAGE_LISTEN", host, environment, launch.first("serve")).await
    }

    pub(crate) async fn start_worker(&self, host: &Host, environment: Environment, launch: Launch) -> Result<Process> {
        let program = self.programs.worker()?;
        let environment = without(environment, &["OFFSTAGE_DATABASE_URL", "OFFSTAGE_API_DATABASE_URL"]);
        self.start("worker", program, "OFFSTAGE_WORKER_LISTEN", host, environment, launch).await
    }

    async fn start(
        &self,
        kind: &str,
        program: PathBuf,
        listen: &str,
        host: &Host,
        environment: Environment,
        launch: Launch,
    ) -> Result<Process> {
        let process = {
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            let number = started.iter().filter(|process| process.name().starts_with(kind)).count() + 1;
            let name = format!("{kind}-{number}");
            let log = self.logs.join(format!("{name}.log"));
            let process = host.supervise(launch.spec(&name, program, listen, environment, log)?)?;
            started.push(process.clone());
            process
        };
        process.start().await?;
        process.wait_ready(READY_WITHIN).await?;
        Ok(process)
    }

    /// `api ARGUMENTS`, to its end.
    pub(crate) async fn run_api(&self, host: &Host, environment: Environment, arguments: Vec<OsString>) -> Result<Output> {
        host.run(self.command(environment, arguments)?, COMMAND_WITHIN).await
    }

    /// `api key create`: the key it prints.
    pub(crate) async fn create_key(&self, host: &Host, environment: Environment, tenant: &str, name: &str, scopes: &str) -> Result<String> {
        let arguments = ["key", "create", "--tenant", tenant, "--name", name, "--scopes", scopes, "--json"];
        let mut command = self.command(environment, arguments.map(OsString::from).into())?;
        command.confidential = true;
        let output = host.run(command, COMMAND_WITHIN).await?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::Invalid(format!("`api key create --json` did not print JSON: {error}")))?;
        let key = answer.get("key").and_then(serde_json::Value::as_str);
        key.map(str::to_owned).ok_or_else(|| Error::Invalid("`api key create --json` printed no \"key\"".to_owned()))
    }

    fn command(&self, environment: Environment, arguments: Vec<OsString>) -> Result<Spec> {
        self.programs.api_command(arguments, environment, self.logs.join("commands.log"))
    }

    /// All that were started so far.
    pub(crate) fn processes(&self) -> Vec<Process> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends all of them in order, at the same time.
    pub(crate) async fn stop(&self) {
        futures_util::future::join_all(self.processes().iter().map(Process::stop)).await;
    }
}

/// Each program gets its own role's database and no other: what works by the owner's would fail in a real installation.
fn without(mut environment: Environment, names: &[&str]) -> Environment {
    environment.retain(|name, _| !names.contains(&name.as_str()));
    environment
}
