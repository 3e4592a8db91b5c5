//! Who is in: the connections that were let in, in all and of each address, counted once for all loops. A connection carries its
//! [`Pass`], and counts for as long as that lives, wherever it goes. The counts are touched when one comes and when one goes,
//! never on the way of a request.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bits of an IPv6 address that one household has.
const HOUSEHOLD: u32 = 64;

/// How many may be in.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// In all.
    pub all: usize,
    /// Of one address.
    pub of_address: usize,
    /// Beyond these, to be told so.
    pub surplus: usize,
}

/// Why one is too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are as many as there may be.
    All,
    /// Its address has as many as one may have.
    Address,
}

/// All who are in.
#[derive(Debug)]
pub struct Guests {
    most: Most,
    all: AtomicUsize,
    surplus: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

impl Guests {
    /// Nobody yet.
    pub fn new(most: Most) -> Guests {
        Guests { most, all: AtomicUsize::new(0), surplus: AtomicUsize::new(0), addresses: Mutex::new(HashMap::new()) }
    }

    /// Lets one in. Without an address it only counts in all.
    ///
    /// # Errors
    /// When it would be one too many.
    pub fn enter(self: &Arc<Self>, address: Option<IpAddr>) -> Result<Pass, Full> {
        let address = address.map(household);
        if let Some(address) = address {
            let mut addresses = self.addresses();
            let count = addresses.entry(address).or_insert(0);
            if *count >= self.most.of_address {
                return Err(Full::Address);
            }
            *count += 1;
        }
        // From here on what is dropped is taken off again.
        let pass = Pass { guests: Arc::clone(self), kind: Kind::Guest(address) };
        if self.all.fetch_add(1, Ordering::Relaxed) >= self.most.all {
            return Err(Full::All);
        }
        Ok(pass)
    }

    /// Lets one in that is too many, to be told so. `None` when there are too many of those.
    pub fn enter_surplus(self: &Arc<Self>) -> Option<Pass> {
        let pass = Pass { guests: Arc::clone(self), kind: Kind::Surplus };
        (self.surplus.fetch_add(1, Ordering::Relaxed) < self.most.surplus).then_some(pass)
    }

    /// How many are in.
    pub fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nobody panics in here; and if somebody did, the counts are still counts.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That one was let in. It counts until this is dropped.
#[derive(Debug)]
pub struct Pass {
    guests: Arc<Guests>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Guest(Option<IpAddr>),
    Surplus,
}

impl Pass {
    /// Whether it is one too many.
    pub fn is_surplus(&self) -> bool {
        self.kind == Kind::Surplus
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        match self.kind {
            Kind::Surplus => {
                self.guests.surplus.fetch_sub(1, Ordering::Relaxed);
            }
            Kind::Guest(address) => {
                self.guests.all.fetch_sub(1, Ordering::Relaxed);
                let Some(address) = address else { return };
                let mut addresses = self.guests.addresses();
                if let Some(count) = addresses.get_mut(&address) {
                    *count -= 1;
                    if *count == 0 {
                        addresses.remove(&address);
                    }
                }
            }
        }
    }
}

/// What counts as one address.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX << (u128::BITS - HOUSEHOLD)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(all: usize, of_address: usize, surplus: usize) -> Arc<Guests> {
        Arc::new(Guests::new(Most { all, of_address, surplus }))
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn who_goes_makes_room() {
        let guests = guests(3, 2, 1);
        let here = [guests.enter(ip("192.0.2.1")).unwrap(), guests.enter(ip("192.0.2.1")).unwrap()];
        assert_eq!(guests.enter(ip("192.0.2.1")).unwrap_err(), Full::Address);
        let other = guests.enter(ip("192.0.2.2")).unwrap();
        assert_eq!(guests.enter(ip("192.0.2.3")).unwrap_err(), Full::All);
        let surplus = guests.enter_surplus().unwrap();
        assert!(surplus.is_surplus() && guests.enter_surplus().is_none());
        drop(surplus);
        assert!(guests.enter_surplus().is_some());
        assert_eq!(guests.count(), 3);
        drop((here, other));
        assert_eq!(guests.count(), 0);
        assert!(guests.addresses().is_empty());
    }

    #[test]
    fn one_that_is_one_too_many_in_all_does_not_count_for_its_address() {
        let guests = guests(1, 1, 0);
        let first = guests.enter(None).unwrap();
        assert_eq!(guests.enter(ip("192.0.2.1")).unwrap_err(), Full::All);
        drop(first);
        guests.enter(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn addresses_of_one_household_are_one() {
        let guests = guests(10, 1, 0);
        let _here = [guests.enter(ip("2001:db8::1")).unwrap(), guests.enter(ip("192.0.2.1")).unwrap()];
        for address in ["2001:db8::ffff:1", "::ffff:192.0.2.1"] {
            assert_eq!(guests.enter(ip(address)).unwrap_err(), Full::Address, "{address}");
        }
        guests.enter(ip("2001:db8:0:1::1")).unwrap();
    }
}
