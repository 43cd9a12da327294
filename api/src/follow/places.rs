//! How many may stream at a time: in all, and of one tenant, so that its clients leave room for other tenants'.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The places of streams.
#[derive(Debug)]
pub struct Places {
    most: usize,
    most_of_tenant: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Tenants without any are not in it.
    by_tenant: HashMap<i32, usize>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    tenant: i32,
}

impl Places {
    pub(super) fn new(most: usize, most_of_tenant: usize) -> Self {
        Self { most, most_of_tenant, taken: Mutex::default() }
    }

    /// A place; `None` when all are taken, or all of the tenant's.
    pub(super) fn enter(self: &Arc<Self>, tenant: i32) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = taken.by_tenant.get(&tenant).copied().unwrap_or_default();
        if taken.all >= self.most || of_tenant >= self.most_of_tenant {
            metrics::counter!("offstage_streams_refused_total").increment(1);
            return None;
        }
        taken.all += 1;
        taken.by_tenant.insert(tenant, of_tenant + 1);
        metrics::gauge!("offstage_streams").set(taken.all as f64);
        Some(Place { places: Arc::clone(self), tenant })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_tenant) = taken.by_tenant.get_mut(&self.tenant) {
            *of_tenant = of_tenant.saturating_sub(1);
            if *of_tenant == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
        metrics::gauge!("offstage_streams").set(taken.all as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_by_tenant_and_come_back() {
        let places = Arc::new(Places::new(3, 2));
        let (one, two) = (places.enter(1).unwrap(), places.enter(1).unwrap());
        assert!(places.enter(1).is_none(), "its places are taken");
        let other = places.enter(2).unwrap();
        assert!(places.enter(2).is_none(), "all are taken");
        drop(one);
        let again = places.enter(1).unwrap();
        drop((two, other, again));
        let taken = places.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.by_tenant.is_empty(), "nobody is remembered who does not stream");
    }
}
