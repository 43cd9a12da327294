//! The demonstration's key and `demo.env`, by which scripts find everything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;

use crate::directory::{Directory, write_secret};
use crate::error::{Error, Result};
use crate::fleet::{Environment, Fleet};
use crate::host::Host;
use crate::http;
use crate::process::Process;

/// The variables of `demo.env`, in this order.
const SHOWN: [&str; 23] = [
    "OFFSTAGE_URL",
    "OFFSTAGE_KEY",
    "OFFSTAGE_CONTROL_URL",
    "OFFSTAGE_WEB_URL",
    "OFFSTAGE_MAIL_PAGE_URL",
    "OFFSTAGE_PUSH_SERVICE_URL",
    "OFFSTAGE_VENDORS_URL",
    "OFFSTAGE_MODELS_URL",
    "OFFSTAGE_MODELS_KEY",
    "OFFSTAGE_DATABASE_URL",
    "OFFSTAGE_API_DATABASE_URL",
    "OFFSTAGE_ENGINE_DATABASE_URL",
    "OFFSTAGE_SOURCE_PROMPTLOCKR_URL",
    "OFFSTAGE_REDIS_URL",
    "OFFSTAGE_REDIS_PREFIX",
    "OFFSTAGE_S3_ENDPOINT",
    "OFFSTAGE_S3_PUBLIC_ENDPOINT",
    "OFFSTAGE_S3_REGION",
    "OFFSTAGE_S3_BUCKET",
    "OFFSTAGE_S3_ACCESS_KEY_ID",
    "OFFSTAGE_S3_SECRET_ACCESS_KEY",
    "OFFSTAGE_S3_SESSION_TOKEN",
    "OFFSTAGE_S3_PATH_STYLE",
];

/// What the terminal shows. `Debug` leaves the key out.
pub(super) struct Demo {
    pub(super) url: String,
    pub(super) key: String,
    pub(super) file: PathBuf,
}

impl std::fmt::Debug for Demo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Demo").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Where a directory's `demo.env` is.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("demo.env")
}

impl Demo {
    /// Uses the key of an earlier run while the API takes it, else makes one, and writes `demo.env`.
    pub(super) async fn open(
        directory: &Directory,
        api: &Process,
        fleet: &Fleet,
        host: &Host,
        mut environment: Environment,
    ) -> Result<Self> {
        let file = path(directory.path());
        let earlier = read(&file).remove("OFFSTAGE_KEY");
        let key = match earlier {
            Some(key) if is_valid(api, &key).await? => key,
            _ => fleet.create_key(host, environment.clone(), "promptlockr", "demo", "*").await?,
        };
        let demo = Self { url: api.url(), key, file };
        environment.insert("OFFSTAGE_URL".to_owned(), demo.url.clone());
        environment.insert("OFFSTAGE_KEY".to_owned(), demo.key.clone());
        demo.write(&environment)?;
        Ok(demo)
    }

    /// Adds one variable to the file.
    pub(super) fn add(&self, name: &str, value: &str) -> Result<()> {
        let mut all = read(&self.file);
        all.insert(name.to_owned(), value.to_owned());
        self.write(&all)
    }

    fn write(&self, environment: &Environment) -> Result<()> {
        let mut text =
            String::from("# Written by `make run`: `. .local/demo.env` in a shell, then $OFFSTAGE_URL and $OFFSTAGE_KEY are set.\n");
        for (name, value) in SHOWN.iter().filter_map(|name| Some((name, environment.get(*name)?))) {
            // Single quotes keep everything but a single quote from the shell.
            let _ = writeln!(text, "{name}='{}'", value.replace('\'', "'\\''"));
        }
        write_secret(&self.file, &text)
    }
}

/// Whether the API takes the key.
async fn is_valid(api: &Process, key: &str) -> Result<bool> {
    let Some(address) = api.address() else {
        return Ok(false);
    };
    let caller = http::Caller { key: Some(key), acting: None };
    let asked = http::ask(address, Method::GET, "/v1/jobs?limit=1", caller, String::new(), Duration::from_secs(10)).await;
    match asked {
        Ok(answer) => Ok(answer.status == 200),
        Err(source) => Err(Error::Io { action: "ask the API whether the demonstration's key is still valid".to_owned(), source }),
    }
}

/// The variables of a `demo.env`; none when there is no such file.
pub(super) fn read(file: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
        Some((name.to_owned(), value.replace("'\\''", "'")))
    };
    text.lines().filter_map(variable).collect()
}

/// Adds to "the directory is in use" who uses it.
pub(super) fn who_runs(error: Error) -> Error {
    let Error::Busy { directory, .. } = error else {
        return error;
    };
    let mut details = String::new();
    if let Some(pid) = crate::directory::owner(&directory) {
        let _ = write!(details, ", process {pid}");
    }
    if let Some(url) = read(&path(&directory)).get("OFFSTAGE_URL") {
        let _ = write!(details, ", most likely with the API at {url}");
    }
    Error::Busy { directory, details }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_file_as_we_do() {
        let directory = std::env::temp_dir().join(format!("offstage-demo-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let demo = Demo { url: String::new(), key: String::new(), file: path(&directory) };
        let odd = "a'b \"c\" $HOME `id` \\";
        demo.write(&Environment::from([("OFFSTAGE_URL".to_owned(), odd.to_owned()), ("OTHER".to_owned(), "x".to_owned())])).unwrap();
        demo.add("OFFSTAGE_KEY", "key").unwrap();
        assert_eq!(read(&demo.file).get("OFFSTAGE_URL").unwrap(), odd);
        let script = format!(". '{}'; printf '%s|%s|%s' \"$OFFSTAGE_URL\" \"$OFFSTAGE_KEY\" \"$OTHER\"", demo.file.display());
        let output = std::process::Command::new("/bin/sh").args(["-c", &script]).env_remove("OTHER").output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{odd}|key|"));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
