//! Which local address stands for which name.
//!
//! A workload keeps addresses for as long as it likes, so one that has been
//! given to a name is never given to another: the table only grows, and refuses
//! when it is full.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::Name;

/// Addresses of one network, given out one after the other.
#[derive(Debug)]
pub struct Names {
    first: u32,
    capacity: usize,
    by_name: HashMap<Name, Ipv4Addr>,
    in_order: Vec<Name>,
}

/// Every address of the network stands for some other name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} addresses are given to other names")]
pub struct Full {
    /// How many there are.
    pub capacity: usize,
}

impl Names {
    /// An empty table of `capacity` addresses from `first` on.
    pub fn new(first: Ipv4Addr, capacity: usize) -> Names {
        let room = usize::try_from(u32::MAX - first.to_bits()).unwrap_or(usize::MAX);
        Names {
            first: first.to_bits(),
            capacity: capacity.min(room),
            by_name: HashMap::new(),
            in_order: Vec::new(),
        }
    }

    /// The address of `name`: the one that it has, or the next.
    pub fn address(&mut self, name: &Name) -> Result<Ipv4Addr, Full> {
        if let Some(address) = self.by_name.get(name) {
            return Ok(*address);
        }
        let next = u32::try_from(self.in_order.len()).ok().filter(|_| self.in_order.len() < self.capacity);
        let Some(next) = next else { return Err(Full { capacity: self.capacity }) };
        let address = Ipv4Addr::from_bits(self.first + next);
        self.in_order.push(name.clone());
        self.by_name.insert(name.clone(), address);
        Ok(address)
    }

    /// The name that `address` stands for.
    pub fn name(&self, address: Ipv4Addr) -> Option<&Name> {
        let index = address.to_bits().checked_sub(self.first)?;
        self.in_order.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_and_a_full_table_refuses_new_ones_only() {
        let mut names = Names::new(Ipv4Addr::new(198, 18, 0, 1), 2);
        let first = names.address(&name("a.example")).unwrap();
        assert_eq!(first, Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(names.address(&name("b.example")).unwrap(), Ipv4Addr::new(198, 18, 0, 2));
        assert_eq!(names.address(&name("c.example")), Err(Full { capacity: 2 }));
        assert_eq!(names.address(&name("A.example.")), Ok(first));
        assert_eq!(names.name(first), Some(&name("a.example")));
        assert_eq!(names.name(Ipv4Addr::new(198, 18, 0, 3)), None);
        assert_eq!(names.name(Ipv4Addr::new(198, 18, 0, 0)), None);
    }

    #[test]
    fn a_network_at_the_end_of_all_addresses_is_just_small() {
        let mut names = Names::new(Ipv4Addr::new(255, 255, 255, 254), 100);
        assert!(names.address(&name("a.example")).is_ok());
        assert!(names.address(&name("b.example")).is_err());
    }

    proptest! {
        #[test]
        fn no_address_ever_stands_for_two_names(asked in proptest::collection::vec(0u8..20, 0..200)) {
            let mut names = Names::new(Ipv4Addr::new(198, 18, 0, 0), 10);
            let mut seen: HashMap<Ipv4Addr, u8> = HashMap::new();
            for number in asked {
                let asked = name(&format!("n{number}.example"));
                if let Ok(address) = names.address(&asked) {
                    prop_assert_eq!(*seen.entry(address).or_insert(number), number);
                    prop_assert_eq!(names.name(address), Some(&asked));
                }
            }
        }
    }
}
