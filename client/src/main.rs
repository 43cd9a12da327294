//! `offstage`: asks for jobs and follows them, for people, cron and scripts.
//!
//! It knows the HTTP interface and nothing else of the product: `main` reads the [`arguments`], [`commands`] carry them out over a
//! [`connection`], [`follow`] waits for a job's end, and [`show`] writes what came. What must stay true: a request that was not answered is sent
//! again only where that is harmless; the key is never shown; exit codes mean what `docs/client.md` says.

mod arguments;
mod commands;
mod connection;
mod error;
mod follow;
mod show;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;
use connection::Connection;
use error::Error;

fn main() -> ExitCode {
    // clap itself ends with 2 where the command line is wrong.
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("offstage: this machine gives no runtime: {error}");
            return ExitCode::from(Error::UNREACHABLE);
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("offstage: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(arguments: Arguments) -> Result<u8, Error> {
    let connection = Connection::new(&arguments)?;
    commands::run(&connection, &arguments).await
}
