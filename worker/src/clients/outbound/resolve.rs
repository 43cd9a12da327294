//! Names to addresses that may be called, or to none at all.

use std::{net::SocketAddr, sync::Arc};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use shared::outbound::{Guard, NotAllowed, Reach};
use tokio::sync::Semaphore;

/// Lookups at a time: each holds a thread for as long as the name server lets it wait, also when the call has long been given up.
const LOOKUPS: usize = 32;

/// Addresses of a name that are tried.
const ADDRESSES: usize = 8;

/// A name none of whose addresses may be called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(pub(super) NotAllowed);

/// The machine's own resolver, its answers gone through by the guard.
pub(super) struct Resolver {
    guard: Guard,
    reach: Reach,
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(guard: Guard, reach: Reach) -> Self {
        Self { guard, reach, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// Those that may be called; an error when there are none but others.
    pub(super) fn allowed(guard: &Guard, reach: Reach, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in found {
            match guard.address(address.ip(), reach) {
                Ok(()) if allowed.len() < ADDRESSES => allowed.push(address),
                Ok(()) => {}
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if allowed.is_empty() => Err(Refused(why)),
            _ => Ok(allowed),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, reach, lookups) = (self.guard.clone(), self.reach, Arc::clone(&self.lookups));
        Box::pin(async move {
            let place = lookups.acquire_owned().await?;
            // In a task of its own, so that a lookup keeps its place until its thread is free.
            let found = tokio::spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await.map(Iterator::collect::<Vec<_>>);
                drop(place);
                found
            });
            let allowed = Self::allowed(&guard, reach, found.await??.into_iter())?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}
