//! Nothing outlives the process that started it, not even when that process is killed with SIGKILL.
//!
//! A guard is a small shell that reads a pipe whose only writing end is ours. Children enlist themselves by writing their
//! process id into the pipe *before* they become what they are to be, so there is no moment at which one runs unwatched.
//! When the pipe closes, because we dropped it or because we died, the guard kills what is still enlisted. Orderly
//! shutdown uses the same path, so it is exercised by every test.
//!
//! Why not `PR_SET_PDEATHSIG`: it fires when the *thread* that forked ends, is cleared by a change of user, and is Linux only.

use std::ffi::OsStr;
use std::io::{PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::error::{Doing, Error, Result};

/// Reads `+ PID SIGNAL` and `- PID` lines. At the end of the input it sends each process group its signal (Postgres is
/// asked with QUIT, so that it removes its children and shared memory; what is stopped is woken to hear it), waits up to
/// five seconds and kills the rest. It ignores what a terminal or a supervisor sends to everybody.
const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT PIPE
watched=
while read -r word pid signal; do
    case $word in
    +) watched="$watched $pid:$signal" ;;
    -)  rest=
        for one in $watched; do
            [ "${one%%:*}" = "$pid" ] || rest="$rest $one"
        done
        watched=$rest ;;
    esac
done
for one in $watched; do
    kill -s "${one#*:}" -- "-${one%%:*}"
    kill -s CONT -- "-${one%%:*}"
done 2>/dev/null
tries=0
for one in $watched; do
    while kill -s 0 -- "-${one%%:*}" && [ $tries -lt 250 ]; do
        tries=$((tries + 1))
        sleep 0.02
    done
    kill -s KILL -- "-${one%%:*}"
done 2>/dev/null
"#;

/// Enlists, then becomes the real program. The pipe's end arrives as standard input, the only descriptor that std lets us
/// hand down, and is replaced before the program sees it.
const ENLIST: &str = r#"printf '+ %s %s\n' "$$" "$0" >&0 && exec "$@" </dev/null"#;

/// How the guard ends a process whose owner has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphan {
    /// At once.
    Kill,
    /// By SIGQUIT, and by SIGKILL five seconds later: for Postgres.
    Quit,
}

/// The watchdog of one sandbox.
#[derive(Debug)]
pub(crate) struct Guard {
    pipe: Mutex<Option<PipeWriter>>,
    shell: Mutex<Option<Child>>,
}

impl Guard {
    pub(crate) fn start() -> Result<Self> {
        let (reader, writer) = std::io::pipe().doing(|| "make a pipe".to_owned())?;
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // A group of its own: a Ctrl-C in the terminal, or a test runner's kill, is for us and not for the guard.
            .process_group(0)
            .spawn()
            .doing(|| "start the guard, /bin/sh".to_owned())?;
        Ok(Self { pipe: Mutex::new(Some(writer)), shell: Mutex::new(Some(shell)) })
    }

    /// A command whose process is enlisted before `program` runs, in a process group of its own. The caller sets
    /// environment, user, directory and output.
    pub(crate) fn command(&self, orphan: Orphan, program: &OsStr) -> Result<Command> {
        let pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = pipe.as_ref().ok_or(Error::Stopping)?;
        let pipe = pipe.try_clone().doing(|| "copy the guard's pipe".to_owned())?;
        let signal = match orphan {
            Orphan::Kill => "KILL",
            Orphan::Quit => "QUIT",
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ENLIST, signal]).arg(program).stdin(pipe).process_group(0);
        Ok(command)
    }

    /// Forgets a process that has ended. To be called once it was waited for, before its id can name another.
    pub(crate) fn forget(&self, pid: u32) {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = pipe.as_mut() {
            // The guard can only be gone when somebody killed it; then there is nobody to tell.
            let _ = writeln!(pipe, "- {pid}");
        }
    }

    /// Ends all that is enlisted and returns when it has ended (at most a few seconds). Nothing can be started afterwards.
    pub(crate) fn close(&self) {
        drop(self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut shell) = shell {
            let _ = shell.wait();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn closing_ends_what_was_enlisted_and_spares_what_was_forgotten() {
        let guard = Guard::start().unwrap();
        let start = |orphan| {
            let mut command = guard.command(orphan, OsStr::new("/bin/sh")).unwrap();
            let mut child = command.args(["-c", "echo running; exec sleep 60"]).stdout(Stdio::piped()).spawn().unwrap();
            // Whoever says so has enlisted before.
            let mut said = [0; 7];
            child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            child
        };
        let mut watched = start(Orphan::Kill);
        let mut quit = start(Orphan::Quit);
        let mut forgotten = start(Orphan::Kill);
        guard.forget(forgotten.id());
        let reaper = std::thread::spawn(move || [watched.wait().unwrap(), quit.wait().unwrap()]);
        guard.close();
        for status in reaper.join().unwrap() {
            assert!(!status.success());
        }
        assert!(forgotten.try_wait().unwrap().is_none());
        forgotten.kill().unwrap();
        forgotten.wait().unwrap();
        assert!(matches!(guard.command(Orphan::Kill, OsStr::new("sleep")), Err(Error::Stopping)));
    }
}
