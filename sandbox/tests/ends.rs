//! Nothing is left running, however the sandbox ends.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A `sandbox services` in a directory of its own, ready.
struct Services {
    process: Child,
    directory: PathBuf,
    /// Where Postgres, Redis and S3 listen.
    addresses: Vec<String>,
}

impl Services {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("offstage-{name}-{}", std::process::id()));
        Self::start_in(&directory).unwrap()
    }

    fn start_in(directory: &Path) -> Result<Self, String> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_sandbox"))
            .arg("services")
            .arg("--dir")
            .arg(directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut addresses = Vec::new();
        for line in BufReader::new(process.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.starts_with("# Ready") {
                return Ok(Self { process, directory: directory.to_owned(), addresses });
            }
            if ["OFFSTAGE_DATABASE_URL=", "OFFSTAGE_REDIS_URL=", "OFFSTAGE_S3_ENDPOINT="].iter().any(|name| line.starts_with(name)) {
                let address = line.split_once("127.0.0.1:").unwrap().1;
                let port: String = address.chars().take_while(char::is_ascii_digit).collect();
                addresses.push(format!("127.0.0.1:{port}"));
            }
        }
        let output = process.wait_with_output().unwrap();
        Err(String::from_utf8(output.stderr).unwrap())
    }

    fn listening(&self) -> Vec<&str> {
        self.addresses.iter().map(String::as_str).filter(|address| TcpStream::connect(*address).is_ok()).collect()
    }

    /// Processes of this sandbox, by the directory that their command lines name: its Postgres, and for a moment each child
    /// that it has just forked, until the child gives itself a name of its own.
    fn processes(&self) -> Vec<String> {
        let directory = self.directory.canonicalize().unwrap().display().to_string();
        let output =
            Command::new("/bin/sh").args(["-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' || ps -A -o args="]).output().unwrap();
        let all = String::from_utf8_lossy(&output.stdout).into_owned();
        all.split("postgres -D ").skip(1).filter(|rest| rest.starts_with(&directory)).map(str::to_owned).collect()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("/bin/sh").args(["-c", &format!("kill -s {signal} {}", self.process.id())]).status().unwrap();
        assert!(status.success());
    }

    fn gone_within(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        while !self.listening().is_empty() || !self.processes().is_empty() {
            assert!(Instant::now() < end, "still there: {:?} {:?}", self.listening(), self.processes());
            std::thread::yield_now();
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn sigkill_of_the_sandbox_ends_its_services() {
    let mut services = Services::start("killed");
    assert_eq!(services.listening().len(), 3);
    assert!(!services.processes().is_empty(), "a process that can't be seen can't be seen to end");
    services.signal("KILL");
    services.process.wait().unwrap();
    services.gone_within(Duration::from_secs(15));

    // And the next one finds its way.
    let again = Services::start_in(&services.directory).unwrap();
    assert_eq!(again.listening().len(), 3);
}

#[test]
fn an_orderly_end_is_waited_for() {
    let mut services = Services::start("stopped");
    services.signal("TERM");
    let status = services.process.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(services.listening(), Vec::<&str>::new());
    assert_eq!(services.processes(), Vec::<String>::new());
}

#[test]
fn a_second_one_in_the_same_directory_says_so() {
    let services = Services::start("second");
    let refusal = Services::start_in(&services.directory).err().unwrap();
    assert!(refusal.contains("is in use by another sandbox"), "{refusal}");
    assert_eq!(services.listening().len(), 3, "the first goes on");
}
