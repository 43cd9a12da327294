//! What the servers inside this process have in common: a port of their own, connections in bounds, and the verbs of a service.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Doing, Error, Result};
use crate::faults::Body;
use crate::ports::Port;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS: usize = 1_000;
/// The longest that a request is held back by a pause or a hang.
pub(super) const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// How long a port of ours may be held by a socket's copy.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);

/// The verbs of a service behind one door, its field `door`, but for `start`, which is each one's own.
macro_rules! verbs {
    () => {
        /// Stops listening and cuts every connection. What it knows is still there when it has started again.
        pub fn stop(&self) {
            self.door.shut();
        }

        /// The same: nobody outside could tell the difference.
        pub fn kill9(&self) {
            self.door.shut();
        }

        /// Requests that come now wait; connections stay open.
        pub fn pause(&self) {
            self.door.pause();
        }

        /// Goes on after a pause.
        pub fn resume(&self) {
            self.door.resume();
        }
    };
}
pub(super) use verbs;

/// A server's port, and whether it is open.
#[derive(Debug)]
pub(super) struct Door {
    port: Port,
    paused: watch::Sender<bool>,
    /// Cancelled to stop the server that runs now.
    running: Mutex<Option<CancellationToken>>,
    runtime: tokio::runtime::Handle,
}

impl Door {
    pub(super) fn new(port: Port, runtime: tokio::runtime::Handle) -> Self {
        Self { port, paused: watch::Sender::new(false), running: Mutex::new(None), runtime }
    }

    /// Listens, at the same address as before; nothing when it does already. Each connection gets a task, and a token that is cancelled
    /// when the door is shut.
    pub(super) async fn open<F>(&self, serve: impl Fn(TcpStream, CancellationToken) -> F + Send + Sync + 'static) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.running().is_some() {
            return Ok(());
        }
        let address = self.port.address();
        let listening = self.runtime.spawn(listen(address));
        let listener = listening.await.map_err(|_| Error::Stopping)?.doing(|| format!("listen on {address}"))?;
        let token = CancellationToken::new();
        *self.running() = Some(token.clone());
        self.runtime.spawn(accept(listener, token, serve));
        Ok(())
    }

    /// Stops listening and cuts every connection.
    pub(super) fn shut(&self) {
        if let Some(token) = self.running().take() {
            token.cancel();
        }
    }

    pub(super) fn pause(&self) {
        self.paused.send_replace(true);
    }

    pub(super) fn resume(&self) {
        self.paused.send_replace(false);
    }

    pub(super) fn paused(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut();
    }
}

/// The port is ours, so whoever still holds it is about to let go: a process forked by another thread holds a copy of a
/// socket that we closed until it becomes another program.
async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + LISTEN_WITHIN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

/// Takes connections until `stop` is cancelled, then cuts what is open.
async fn accept<F>(listener: TcpListener, stop: CancellationToken, serve: impl Fn(TcpStream, CancellationToken) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small answers must not wait for the client's acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                let (cut, serving) = (stop.child_token(), serve(stream, stop.child_token()));
                tokio::spawn(async move {
                    tokio::select! {
                        // First, so that nothing is answered on a connection that was cut.
                        biased;
                        () = cut.cancelled() => {}
                        () = serving => {}
                    }
                    drop(slot);
                });
            }
            // Out of descriptors, most likely: others may end meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Speaks HTTP on a connection. An error of `answer` cuts it; so does `token`.
pub(super) async fn http<F>(stream: TcpStream, token: CancellationToken, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = std::io::Result<Response<Body>>>,
{
    let serving =
        hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer));
    tokio::select! {
        biased;
        () = token.cancelled() => {}
        // A connection's error is its client's affair.
        _ = serving => {}
    }
}
