//! Ports that stay ours while what listens on them is down.
//!
//! "Bind port 0 and let go" hands out ports of the ephemeral range, where any outgoing connection may take the port while
//! a killed Postgres restarts. So ports come from below that range (32768 on Linux, 49152 on macOS), and a lock file keeps
//! sandboxes of other processes, as tests run in parallel, from choosing the same one.

use std::fs::{DirBuilder, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::error::{Doing, Error, Result};

const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

/// A port on 127.0.0.1 that no other sandbox takes before this is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked; the lock ends with the process, however it ends.
    _lock: File,
}

impl Port {
    /// Some free port.
    ///
    /// # Errors
    /// When the lock directory can't be made or every port of the range is taken.
    pub fn reserve() -> Result<Self> {
        // Processes start at different places, so that they seldom meet; within a process the search goes on.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = std::process::id().wrapping_mul(131);
        for _ in 0..COUNT {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let offset = u16::try_from(start.wrapping_add(step) % u32::from(COUNT)).unwrap_or_default();
            if let Some(port) = Self::take(FIRST + offset)? {
                return Ok(port);
            }
        }
        Err(Error::Invalid(format!("no free port between {FIRST} and {}: stop what listens there", FIRST + COUNT)))
    }

    /// `number` when nobody listens there, else some free port.
    ///
    /// # Errors
    /// As [`Port::reserve`].
    pub fn prefer(number: u16) -> Result<Self> {
        match Self::take(number)? {
            Some(port) => Ok(port),
            None => Self::reserve(),
        }
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Where to listen or connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }

    fn take(number: u16) -> Result<Option<Self>> {
        let directory = std::env::temp_dir().join(format!("offstage-ports-{}", nix::unistd::geteuid()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .doing(|| format!("make the directory {} for port locks", directory.display()))?;
        let path = directory.join(number.to_string());
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .doing(|| format!("open the port lock {}", path.display()))?;
        if lock.try_lock().is_err() || !is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, number))) {
            return Ok(None);
        }
        Ok(Some(Self { number, _lock: lock }))
    }
}

/// Whether nobody listens there. Bound and not listened on: a process that another thread forks at this moment holds a copy
/// of the socket until it becomes another program, and a copy of a listening one would keep its owner-to-be out.
fn is_free(address: SocketAddr) -> bool {
    let bind = || {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)
    };
    bind().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_not_handed_out_again_while_nobody_listens() {
        let port = Port::reserve().unwrap();
        assert!(Port::take(port.number()).unwrap().is_none());
        assert_ne!(Port::prefer(port.number()).unwrap().number(), port.number());
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_taken() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = listener.local_addr().unwrap().port();
        assert!(Port::take(number).unwrap().is_none());
        assert_ne!(Port::prefer(number).unwrap().number(), number);
    }
}
