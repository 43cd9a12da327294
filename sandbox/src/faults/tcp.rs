//! A TCP proxy that misbehaves on command: between a program and its Redis or Postgres it is the network.
//!
//! What must stay true: in [`Mode::Pass`] it changes nothing, not one byte; a connection that lived through a
//! [`Mode::Blackhole`] stays dead, as one whose packets a firewall forgot; its port is its own for as long as it lives, also
//! while nobody listens there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Doing, Result};
use crate::ports::Port;

/// The piece that one turn moves; also what [`Mode::Delay`] holds up at a time.
const PIECE: usize = 16 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// The longest that connecting to the server behind may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What the proxy does with connections and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// New connections are accepted and no answer ever comes; those that exist hang, and what is sent is swallowed. They never
    /// recover: only new ones work afterwards.
    Blackhole,
    /// Nobody listens: new connections are refused, those that exist go on.
    Refuse,
    /// Every piece of up to 16 KiB waits for so long, each way: a slow and narrow line.
    Delay(Duration),
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Raised by [`Proxy::cut`].
    cuts: u64,
    /// Raised by each blackhole: a connection that was made before it is lost.
    blackholes: u64,
}

/// A proxy before one server. It ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    state: watch::Sender<State>,
    open: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port of its own and passes everything to `server`, in tasks of `runtime`.
    ///
    /// # Errors
    /// When there is no port, or it can't be listened on.
    pub(crate) fn start(server: SocketAddr, runtime: &tokio::runtime::Handle) -> Result<Self> {
        let port = Port::reserve()?;
        let (state, watched) = watch::channel(State { mode: Mode::Pass, cuts: 0, blackholes: 0 });
        let open = Arc::new(AtomicU64::new(0));
        let _entered = runtime.enter();
        let listener = listen(port.address()).doing(|| "listen as a proxy".to_owned())?;
        let task = runtime.spawn(accept(port.address(), listener, server, watched, Arc::clone(&open)));
        Ok(Self { port, state, open, task })
    }

    /// Where to connect instead of to the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// From now on; existing connections follow, as each mode says.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            if mode == Mode::Blackhole {
                state.blackholes += 1;
            }
        });
    }

    /// Resets every connection that exists (RST). New ones are made as the mode says.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Closes the state, at which connections end.
        self.task.abort();
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(address: SocketAddr, listener: TcpListener, server: SocketAddr, mut state: watch::Receiver<State>, open: Arc<AtomicU64>) {
    let mut listener = Some(listener);
    loop {
        let refuse = state.borrow_and_update().mode == Mode::Refuse;
        if refuse {
            // Only a socket that is closed refuses.
            listener = None;
        } else if listener.is_none() {
            listener = listen(address).ok();
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            accepted = accepted => match accepted {
                Ok((client, _)) => {
                    open.fetch_add(1, Ordering::Relaxed);
                    let (state, open) = (state.clone(), Arc::clone(&open));
                    tokio::spawn(async move {
                        let _ = serve(client, server, state).await;
                        open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                // The machine is out of sockets: a moment, then again.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

/// One connection, to its end.
async fn serve(mut client: TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) -> io::Result<()> {
    let born = *state.borrow_and_update();
    let mut cuts = state.clone();
    let ended = tokio::select! {
        // An error says that the proxy has gone, and its connections with it.
        _ = cuts.wait_for(|state| state.cuts > born.cuts) => Err(io::ErrorKind::ConnectionReset.into()),
        ended = pass(&mut client, server, state, born) => ended,
    };
    if ended.is_err() {
        client.set_zero_linger()?;
    }
    ended
}

async fn pass(client: &mut TcpStream, server: SocketAddr, mut state: watch::Receiver<State>, born: State) -> io::Result<()> {
    let mut behind = None;
    if born.mode != Mode::Blackhole {
        let connected = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(server)).await??;
        client.set_nodelay(true)?;
        connected.set_nodelay(true)?;
        let behind = behind.insert(connected);
        let modes = state.clone();
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), behind.split());
        tokio::select! {
            ended = async { tokio::try_join!(carry(from_client, to_server, &modes), carry(from_server, to_client, &modes)) } => {
                return ended.map(drop);
            }
            lost = state.wait_for(|state| state.blackholes > born.blackholes) => {
                if lost.is_err() {
                    return Ok(());
                }
            }
        }
    }
    // The server's side stays open: nobody tells it either.
    let mut piece = vec![0; PIECE];
    while client.read(&mut piece).await? > 0 {}
    drop(behind);
    Ok(())
}

/// One direction, until its sender has ended.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, modes: &watch::Receiver<State>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        let mode = modes.borrow().mode;
        if let Mode::Delay(pause) = mode {
            tokio::time::sleep(pause).await;
        }
        match piece.get(..read) {
            Some(bytes) if !bytes.is_empty() => to.write_all(bytes).await?,
            _ => return to.shutdown().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with the next one.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        let _ = stream.write_u8(byte + 1).await;
                    }
                });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
        stream.write_u8(byte).await?;
        tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await?
    }

    #[tokio::test]
    async fn each_mode_does_what_it_says() {
        let proxy = Proxy::start(server().await, &tokio::runtime::Handle::current()).unwrap();
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut old, 1).await.unwrap(), 2);

        proxy.set(Mode::Blackhole);
        assert_eq!(ask(&mut old, 3).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "what exists hangs");
        let mut lost = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut lost, 3).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "what is new is accepted and hangs");
        proxy.set(Mode::Pass);
        assert_eq!(ask(&mut old, 3).await.unwrap_err().kind(), io::ErrorKind::TimedOut, "and never recovers");
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut new, 5).await.unwrap(), 6);
        assert_eq!(proxy.connections(), 3);

        proxy.cut();
        for stream in [&mut old, &mut lost, &mut new] {
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let mut kept = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut kept, 7).await.unwrap(), 8);

        proxy.set(Mode::Refuse);
        // The proxy's task closes its socket a moment later.
        let refused = async {
            while TcpStream::connect(proxy.address()).await.err().map(|error| error.kind()) != Some(io::ErrorKind::ConnectionRefused) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
        assert_eq!(ask(&mut kept, 9).await.unwrap(), 10, "what exists goes on");

        proxy.set(Mode::Delay(Duration::from_millis(50)));
        let began = std::time::Instant::now();
        assert_eq!(ask(&mut kept, 11).await.unwrap(), 12);
        assert!(began.elapsed() >= Duration::from_millis(100), "there and back");
        let address = proxy.address();
        drop(proxy);
        assert!(kept.read_u8().await.is_err());
        assert!(TcpStream::connect(address).await.is_err());
    }
}
