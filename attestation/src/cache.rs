//! Remembers which chains had good signatures, so that they are not verified
//! again: issuers live for a day, a leaf for three hours, documents for minutes.
//!
//! An entry is the SHA-256 of certificates that verified up to a trusted root;
//! only successes are kept. It stands for signatures, CA flags and path
//! lengths, which no clock changes. Everything else, the trust in the root and
//! the validity of every certificate included, is checked anew at each hit.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

/// A bounded set of chains that verified; the least recently used one gives way.
#[derive(Debug)]
pub(crate) struct Cache {
    capacity: usize,
    entries: Mutex<Entries>,
}

/// Names a sequence of certificates, root first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ChainId([u8; 32]);

#[derive(Debug, Default)]
struct Entries {
    last_use: HashMap<ChainId, u64>,
    clock: u64,
}

impl ChainId {
    /// Lengths are hashed too: certificates cannot trade bytes with their neighbours.
    pub(crate) fn of<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Context::new(&SHA256);
        for certificate in certificates {
            hash.update(&(certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        let mut id = [0; 32];
        id.copy_from_slice(hash.finish().as_ref());
        Self(id)
    }
}

impl Cache {
    pub(crate) fn new(capacity: NonZeroUsize) -> Self {
        Self { capacity: capacity.get(), entries: Mutex::default() }
    }

    pub(crate) fn contains(&self, chain: ChainId) -> bool {
        let mut entries = self.entries();
        entries.clock += 1;
        let now = entries.clock;
        entries.last_use.get_mut(&chain).map(|last_use| *last_use = now).is_some()
    }

    pub(crate) fn insert(&self, chain: ChainId) {
        let mut entries = self.entries();
        entries.clock += 1;
        let now = entries.clock;
        if !entries.last_use.contains_key(&chain) && entries.last_use.len() >= self.capacity {
            let oldest = entries.last_use.iter().min_by_key(|(_, last_use)| **last_use);
            if let Some(oldest) = oldest.map(|(chain, _)| *chain) {
                entries.last_use.remove(&oldest);
            }
        }
        entries.last_use.insert(chain, now);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries().last_use.len()
    }

    /// A panic elsewhere cannot leave an entry half written.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_chain_gives_way() {
        let cache = Cache::new(NonZeroUsize::MIN.saturating_add(1));
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| ChainId::of([name.as_slice()]));
        cache.insert(a);
        cache.insert(b);
        assert!(cache.contains(a));
        cache.insert(c);
        assert_eq!([a, b, c].map(|chain| cache.contains(chain)), [true, false, true]);
        cache.insert(c);
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn certificates_cannot_trade_bytes_with_their_neighbours() {
        let ids = [vec![b"ab".as_slice(), b"c"], vec![b"a", b"bc"], vec![b"abc"], vec![b"abc", b""]]
            .map(ChainId::of);
        for (index, id) in ids.iter().enumerate() {
            assert!(!ids[..index].contains(id));
        }
    }
}
