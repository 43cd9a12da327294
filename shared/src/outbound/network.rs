//! A range of addresses, as operators and registries write it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A network: its first address, and how many leading bits its addresses share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

impl Network {
    /// This machine itself.
    pub const LOOPBACK: [Self; 2] = [Self::v4(Ipv4Addr::new(127, 0, 0, 0), 8), Self::v6(Ipv6Addr::LOCALHOST, 128)];

    /// A network of IPv4; bits behind the prefix must be zero.
    #[must_use]
    pub const fn v4(first: Ipv4Addr, prefix: u8) -> Self {
        Self { first: IpAddr::V4(first), prefix }
    }

    /// A network of IPv6; bits behind the prefix must be zero.
    #[must_use]
    pub const fn v6(first: Ipv6Addr, prefix: u8) -> Self {
        Self { first: IpAddr::V6(first), prefix }
    }

    /// How many leading bits are shared.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it. One family's addresses lie in no network of the other's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => (first.to_bits() ^ address.to_bits()).leading_zeros(),
            (IpAddr::V6(first), IpAddr::V6(address)) => (first.to_bits() ^ address.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.prefix.into()
    }
}

impl FromStr for Network {
    type Err = ();

    /// `10.2.0.0/16`, or an address alone. Bits behind the prefix are refused: they are a slip of the hand.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let first: IpAddr = address.parse().map_err(|_| ())?;
        let bits: u8 = if first.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or(())?,
        };
        let trailing = match first {
            IpAddr::V4(first) => first.to_bits().trailing_zeros(),
            IpAddr::V6(first) => first.to_bits().trailing_zeros(),
        };
        if u32::from(bits - prefix) > trailing { Err(()) } else { Ok(Self { first, prefix }) }
    }
}
