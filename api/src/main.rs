//! `api`: the HTTP door, and the operator's commands. See `api --help`.

use std::process::ExitCode;

use api::commands;

fn main() -> ExitCode {
    commands::main().into()
}
