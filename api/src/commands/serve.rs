//! `api serve`.

use std::time::Duration;

use shared::{
    config::{ApiConfig, Variables},
    ledger,
    shutdown::{Exit, Shutdown},
    telemetry::{self, Metrics},
};
use tokio::{net::TcpListener, time::timeout};

use super::CommandError;
use crate::{app::App, routes, server};

/// The longest that Redis may take at the end to be told of the last jobs.
const TELLING: Duration = Duration::from_secs(3);

/// Files besides clients' connections: those to Postgres and Redis, the log.
const FILES_BESIDE: u64 = 200;

/// Serves until a signal asks to stop.
pub(super) async fn serve(variables: &Variables) -> Result<Exit, CommandError> {
    let config = ApiConfig::read(variables)?;
    telemetry::start_log(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = Metrics::start("api")?;
    let connections = server::MOST_CONNECTIONS + config.streams.most;
    if let Some(files) = server::open_all_files().filter(|files| *files < connections as u64 + FILES_BESIDE) {
        tracing::warn!(
            files,
            connections,
            "this process may open fewer files than connections it would take; raise its limit (ulimit -n), or lower OFFSTAGE_STREAMS"
        );
    }
    let shutdown = Shutdown::on_signals().map_err(|source| CommandError::System { doing: "listen for signals".into(), source })?;
    let (listen, grace, streams) = (config.listen.address, config.shutdown_grace, config.streams.most);
    let clock = config.clock.clone();
    let app = App::new(config, clock, metrics, shutdown.clone())?;
    ledger::warm(&app.pool).await;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|source| CommandError::System { doing: format!("listen on {listen} (OFFSTAGE_LISTEN)"), source })?;
    let address = listener.local_addr().map_err(|source| CommandError::System { doing: "read the listener's address".into(), source })?;
    tracing::info!(address = %address, version = env!("CARGO_PKG_VERSION"), "listening");
    let (pool, accepting) = (app.pool.clone(), app.accepting());
    let exit = server::run(listener, routes::router(app), &shutdown, grace, streams).await;
    if exit == Exit::Finished {
        // The last jobs are stored; without Redis' ear they would wait for recovery.
        if let Some(accepting) = accepting
            && timeout(TELLING, accepting).await.is_err()
        {
            tracing::warn!("Redis was not told of the last jobs in time; workers find them by themselves");
        }
        // Every request was answered, so no connection is in use: this ends the sessions politely and at once.
        pool.close().await;
    }
    tracing::info!(code = exit.code(), "stopped");
    Ok(exit)
}
