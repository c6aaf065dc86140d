//! How many connections there are, and of whom.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::attestation::Client;

/// Connections at a time.
const ALL: usize = 512;
/// Of one client: a load balancer or a scraper keeps a few, nobody needs a hundred.
const EACH: usize = 64;
/// Beyond [`ALL`], one each, for clients that hold none: a few addresses that take
/// everything do not keep the kubelet's probe out.
const RESERVE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<Client, usize>>,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    client: Client,
    places: Arc<Places>,
}

impl Places {
    /// A place for one more connection of the client at `address`, if there is one.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let client = Client::from(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&client).copied().unwrap_or(0);
        let all = if own == 0 { ALL + RESERVE } else { ALL };
        if own >= EACH || taken.values().sum::<usize>() >= all {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Place { client, places: Arc::clone(self) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_the_places_of_the_others() {
        let places = Arc::new(Places::default());
        let address = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(number));
        let mut flood: Vec<_> = (0..EACH).map(|_| places.take(address(1)).unwrap()).collect();
        assert!(places.take(address(1)).is_none());
        let other = places.take(address(2)).unwrap();
        flood.pop();
        flood.push(places.take(address(1)).unwrap());
        let more: Vec<_> = (3..).map_while(|number| places.take(address(number))).collect();
        assert_eq!(flood.len() + 1 + more.len(), ALL + RESERVE);
        drop((flood, other, more));
        assert!(places.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn a_client_that_holds_no_place_gets_one_when_a_few_others_have_them_all() {
        let places = Arc::new(Places::default());
        let address = |number: usize| IpAddr::from([10, 0, 0, number as u8]);
        let crowd = (0..ALL).map(|number| places.take(address(number / EACH)).unwrap());
        let mut crowd: Vec<_> = crowd.collect();
        let probe = places.take(address(100)).expect("a place of the reserve");
        assert!(places.take(address(100)).is_none(), "one each");
        let others: Vec<_> = (101..).map_while(|number| places.take(address(number))).collect();
        assert_eq!(others.len(), RESERVE - 1);
        // Who holds many gets no more until the reserve is whole again.
        crowd.pop();
        assert!(places.take(address(ALL / EACH - 1)).is_none());
        drop((probe, others));
        assert!(places.take(address(ALL / EACH - 1)).is_some());
    }
}
