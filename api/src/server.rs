//! Accepts connections and ends them well.
//!
//! Not `axum::serve`: that bounds neither the number of connections nor the time a client takes over its headers.

use std::{
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use shared::shutdown::{Exit, Shutdown};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// The most connections at once, besides those that the installation allows for streams of events. Further ones wait in the
/// operating system's queue. R6 asks for 900 users; some of them hold several.
pub const MOST_CONNECTIONS: usize = 4_096;

/// How long a connection may take to send a request's headers, and may idle between requests. Longer than the 60 s for
/// which load balancers keep idle connections, so that they close first and never send into one that is closing.
const HEADER_DEADLINE: Duration = Duration::from_secs(75);

/// How often is looked whether connections are left while leave is taken.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The most bytes of a request's line and headers; twice what proxies usually let through.
const HEADER_BYTES: usize = 16 * 1024;

/// How long what was sent may stay unacknowledged, in milliseconds; above what a phone needs to change its network.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// The pause after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a program that was asked to stop goes on accepting connections, at most. Each answer tells its client to close
/// (`crate::edge`), so that connections in use end between two requests and not under one.
const LEAVE_TAKING: Duration = Duration::from_millis(500);

/// How long those that got through last may take to send their request, at most. What is still open afterwards idles, and is
/// closed.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Serves until stopping is asked for and leave was taken; then accepts nothing, lets requests under way finish for `grace`, and
/// tells how it ended. `streams`: how many connections may be taken up by streams of events.
pub async fn run(listener: TcpListener, router: Router, shutdown: &Shutdown, grace: Duration, streams: usize) -> Exit {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS + streams));
    let connections = TaskTracker::new();
    // Set when leave was taken: connections that idle are closed.
    let closing = CancellationToken::new();
    let mut leaving = pin!(async {
        shutdown.asked().cancelled().await;
        take_leave(&connections, LEAVE_TAKING, shutdown).await;
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut leaving => break,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok(accepted) => {
                connections.spawn(serve(accepted, router.clone(), closing.clone()));
            }
            Err(error) => {
                // A client that gave up before it was accepted is no news; a want of descriptors passes.
                tracing::warn!(error = %error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    for accepted in last_ones(listener, &room) {
        connections.spawn(serve(accepted, router.clone(), closing.clone()));
    }
    take_leave(&connections, LAST_REQUESTS, shutdown).await;
    closing.cancel();
    connections.close();
    tokio::select! {
        ended = timeout(grace, connections.wait()) => {
            if ended.is_ok() {
                return Exit::Finished;
            }
            tracing::warn!(open = connections.len(), "the grace time ran out before all requests were answered");
            Exit::HandedBack
        }
        () = shutdown.forced().cancelled() => Exit::Forced,
    }
}

/// Closes the listener. Those who have got through to it by then are served: a socket that closes resets whom it has not
/// accepted.
fn last_ones(listener: TcpListener, room: &Arc<Semaphore>) -> Vec<(TcpStream, Place)> {
    let mut accepted = Vec::new();
    // The socket itself is asked: the runtime would answer by what it last heard of it.
    let Ok(listener) = listener.into_std() else { return accepted };
    while let Ok(place) = Arc::clone(room).try_acquire_owned()
        && let Ok((stream, _)) = listener.accept()
        && let Ok(()) = stream.set_nonblocking(true)
        && let Ok(stream) = TcpStream::from_std(stream)
    {
        accepted.push((stream, place));
    }
    accepted
}

/// Returns when no connection is left, or after so long.
async fn take_leave(connections: &TaskTracker, longest: Duration, shutdown: &Shutdown) {
    let until = Instant::now() + longest;
    while !connections.is_empty() && Instant::now() < until && !shutdown.is_forced() {
        sleep(LOOK_EVERY).await;
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> io::Result<(TcpStream, Place)> {
    let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are small and complete: waiting for more to send would only delay them.
    stream.set_nodelay(true)?;
    give_up_on_the_deaf(&stream);
    Ok((stream, place))
}

/// A client that is gone without a word, or that takes nothing any more, must not keep a stream's place for the quarter of an hour that
/// the operating system would give it.
fn give_up_on_the_deaf(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS) {
        tracing::debug!(error = %error, "a connection's patience could not be set");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// Lets this process open as many files as it may: a stream of events is a connection, and each is one. Tells how many.
#[must_use]
pub fn open_all_files() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).ok().map(|()| most)
}

async fn serve((stream, place): (TcpStream, Place), router: Router, closing: CancellationToken) {
    metrics::gauge!("offstage_http_connections").increment(1.0);
    let service = TowerToHyperService::new(router.map_request(|request: Request<Incoming>| request.map(Body::new)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_header_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, send nonsense or nothing: none of it is ours to mend.
        tracing::debug!(error = %error, "a connection ended early");
    }
    metrics::gauge!("offstage_http_connections").decrement(1.0);
    drop(place);
}
