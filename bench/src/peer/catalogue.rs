//! Who the peers are, what they leave out, and where their programs lie.

use std::path::{Path, PathBuf};

/// A peer, before anybody looked whether it is installed.
#[derive(Debug)]
pub struct Definition {
    /// What the report calls it.
    pub name: &'static str,
    /// Its folder in `bench/peers`.
    pub folder: &'static str,
    /// How it is started.
    program: Program,
    /// Whether it can add jobs in bulk; where not, jobs are added one by one before a drain.
    pub bulk: bool,
    /// Its runs handle this part of the jobs, because it is slow.
    pub share: usize,
    /// Whether it is measured at full length everywhere; the others get short pick-ups.
    pub rival: bool,
    /// What it does not do that ours does.
    pub note: &'static str,
    /// What must be there.
    needs: &'static str,
}

#[derive(Debug)]
enum Program {
    /// A program of the `PATH` and its script, with what must have been installed in the peer's folder.
    Script(&'static str, &'static str, Option<&'static str>),
    /// A binary that cargo built for the peers.
    Binary(&'static str),
    /// A binary beside this one.
    Beside(&'static str),
}

/// A program and its first arguments, absolute.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    pub script: Option<&'static str>,
}

/// Those who take part with jobs, in the report's order.
pub const PEERS: [Definition; 7] = [
    Definition {
        name: "BullMQ",
        folder: "bullmq",
        program: Program::Script("node", "peer.mjs", Some("node_modules/bullmq")),
        bulk: true,
        share: 1,
        rival: true,
        note: "jobs and results live in Redis only (append-only file, `everysec`: up to a second may be lost)",
        needs: "`npm ci`, with Node.js 20 and npm",
    },
    Definition {
        name: "Sidekiq",
        folder: "sidekiq",
        program: Program::Script("ruby", "peer.rb", None),
        bulk: true,
        share: 1,
        rival: true,
        note: "no claim (a job leaves its list before it runs: a killed process loses what it had), no record of what is finished, Redis only",
        needs: "Debian's `ruby-sidekiq` and `ruby-hiredis`",
    },
    Definition {
        name: "bullmq-official",
        folder: "bullmq-official",
        program: Program::Binary("peer-bullmq-official"),
        bulk: true,
        share: 1,
        rival: false,
        note: "as BullMQ: Redis only",
        needs: "`cargo build --release`",
    },
    Definition {
        name: "rusty-sidekiq",
        folder: "rusty-sidekiq",
        program: Program::Binary("peer-rusty-sidekiq"),
        bulk: false,
        share: 1,
        rival: false,
        note: "as Sidekiq: no claim, no record of what is finished, Redis only; no bulk add",
        needs: "`cargo build --release`",
    },
    Definition {
        name: "apalis-redis",
        folder: "apalis-redis",
        program: Program::Binary("peer-apalis-redis"),
        bulk: true,
        share: 1,
        rival: false,
        note: "Redis only; 300 s until a killed worker's jobs run again; its backlog had to be promoted by hand before the drain (it wedges at \
               8,000 due jobs)",
        needs: "`cargo build --release`",
    },
    Definition {
        name: "Celery",
        folder: "celery",
        program: Program::Script("venv/bin/python", "peer.py", Some("venv")),
        bulk: false,
        share: 10,
        rival: false,
        note: "no claim (acknowledged before it runs, by default), results ignored: no record of what is finished, Redis only; no bulk add; a \
               tenth of the jobs, because it is slow",
        needs: "`python3 -m venv venv && venv/bin/pip install -r requirements.txt`",
    },
    Definition {
        name: "pg-boss",
        folder: "pg-boss",
        program: Program::Script("node", "peer.mjs", Some("node_modules/pg-boss")),
        bulk: true,
        share: 1,
        rival: false,
        note: "durable in Postgres, as ours; no record of a run, and half a second between its looks at the queue",
        needs: "`npm ci`, with Node.js 20 and npm",
    },
];

/// The HTTP door before `BullMQ`.
pub const DOOR: Definition = Definition {
    name: "fastify + BullMQ",
    folder: "fastify-bullmq",
    program: Program::Script("node", "peer.mjs", Some("node_modules/fastify")),
    bulk: false,
    share: 1,
    rival: true,
    note: "answers when Redis has the job: nothing durable behind the 202, no key to authenticate, no check of the payload",
    needs: "`npm ci`, with Node.js 20 and npm",
};

/// Libraries that send, in the order push, mail.
pub const SENDERS: [Definition; 2] = [
    Definition {
        name: "web-push",
        folder: "web-push",
        program: Program::Script("node", "peer.mjs", Some("node_modules/web-push")),
        bulk: false,
        share: 1,
        rival: true,
        note: "a library without a queue: no job, no record before or after a push, no retry",
        needs: "`npm ci`, with Node.js 20 and npm",
    },
    Definition {
        name: "nodemailer",
        folder: "nodemailer",
        program: Program::Script("node", "peer.mjs", Some("node_modules/nodemailer")),
        bulk: false,
        share: 1,
        rival: true,
        note: "a library without a queue: no job, no record before or after a mail, no retry",
        needs: "`npm ci`, with Node.js 20 and npm",
    },
];

/// Our own clients as a contestant, without the engine.
pub const ALONE: Definition = Definition {
    name: "Offstage's clients",
    folder: ".",
    program: Program::Beside("bench-clients"),
    bulk: false,
    share: 1,
    rival: true,
    note: "the worker's clients in a process of their own, as a library is: no job, no record, no retry",
    needs: "`cargo build --package bench --bins`",
};

impl Definition {
    /// How it is started, if what it needs is there; else why it is skipped.
    pub fn launch(&self, peers: &Path, binaries: &Path) -> Result<Launch, String> {
        let directory = peers.join(self.folder);
        let missing = |what: &Path| {
            let (name, needs, directory, what) = (self.name, self.needs, directory.display(), what.display());
            format!("{name}: {what} is not there; it needs {needs} in {directory}")
        };
        match self.program {
            Program::Script(program, script, installed) => {
                if let Some(installed) = installed.map(|installed| directory.join(installed)).filter(|installed| !installed.exists()) {
                    return Err(missing(&installed));
                }
                // A name without a slash is looked for on the PATH.
                let local = program.contains('/');
                let program = if local { absolute(&directory.join(program))? } else { PathBuf::from(program) };
                Ok(Launch { program, script: Some(script) })
            }
            Program::Beside(name) => {
                let us = std::env::current_exe().map_err(|error| format!("{}: where is this program? {error}", self.name))?;
                let program = us.with_file_name(name);
                if program.exists() { Ok(Launch { program, script: None }) } else { Err(missing(&program)) }
            }
            Program::Binary(name) => {
                let program = binaries.join(name);
                if program.exists() { Ok(Launch { program: absolute(&program)?, script: None }) } else { Err(missing(&program)) }
            }
        }
    }
}

/// Links are kept: a virtual environment's Python is one.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("where is {}? {error}", path.display()))
}
