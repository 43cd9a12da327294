//! Which addresses are public: what the special-purpose registries of IANA do not set aside
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>),
//! with multicast, and with the ways in which an address of IPv4 is put into one of IPv6.
//!
//! Rows that the registries call globally reachable are refused all the same: anycast of the nearest router (PCP, TURN), relays (AMT, 6to4)
//! and sinks (AS112). Nobody's endpoint lives there, and some lead inside.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::Network;

/// A row of the registries, or a rule that stands beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// The registry's name for it.
    pub name: &'static str,
    /// Where it is laid down.
    pub source: &'static str,
    /// Whether it is a network of somebody's own, in which a product's own hosts may stand.
    pub is_private: bool,
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.source)
    }
}

const fn row(network: Network, name: &'static str, source: &'static str) -> (Network, Special) {
    (network, Special { name, source, is_private: false })
}

const fn private(network: Network, name: &'static str, source: &'static str) -> (Network, Special) {
    (network, Special { name, source, is_private: true })
}

/// IPv4.
const V4: &[(Network, Special)] = &[
    row(Network::v4(Ipv4Addr::UNSPECIFIED, 8), "\"This network\"", "RFC 791"),
    row(Network::v4(Ipv4Addr::UNSPECIFIED, 32), "\"This host on this network\"", "RFC 1122"),
    private(Network::v4(Ipv4Addr::new(10, 0, 0, 0), 8), "Private-Use", "RFC 1918"),
    private(Network::v4(Ipv4Addr::new(100, 64, 0, 0), 10), "Shared Address Space", "RFC 6598"),
    private(Network::v4(Ipv4Addr::new(127, 0, 0, 0), 8), "Loopback", "RFC 1122"),
    row(Network::v4(Ipv4Addr::new(169, 254, 0, 0), 16), "Link Local", "RFC 3927"),
    private(Network::v4(Ipv4Addr::new(172, 16, 0, 0), 12), "Private-Use", "RFC 1918"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 0), 24), "IETF Protocol Assignments", "RFC 6890"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 0), 29), "IPv4 Service Continuity Prefix", "RFC 7335"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 8), 32), "IPv4 dummy address", "RFC 7600"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 9), 32), "Port Control Protocol Anycast", "RFC 7723"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 10), 32), "Traversal Using Relays around NAT Anycast", "RFC 8155"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 170), 32), "NAT64/DNS64 Discovery", "RFC 8880"),
    row(Network::v4(Ipv4Addr::new(192, 0, 0, 171), 32), "NAT64/DNS64 Discovery", "RFC 8880"),
    row(Network::v4(Ipv4Addr::new(192, 0, 2, 0), 24), "Documentation (TEST-NET-1)", "RFC 5737"),
    row(Network::v4(Ipv4Addr::new(192, 31, 196, 0), 24), "AS112-v4", "RFC 7535"),
    row(Network::v4(Ipv4Addr::new(192, 52, 193, 0), 24), "AMT", "RFC 7450"),
    row(Network::v4(Ipv4Addr::new(192, 88, 99, 0), 24), "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
    row(Network::v4(Ipv4Addr::new(192, 88, 99, 2), 32), "6a44-relay anycast address", "RFC 6751"),
    private(Network::v4(Ipv4Addr::new(192, 168, 0, 0), 16), "Private-Use", "RFC 1918"),
    row(Network::v4(Ipv4Addr::new(192, 175, 48, 0), 24), "Direct Delegation AS112 Service", "RFC 7534"),
    row(Network::v4(Ipv4Addr::new(198, 18, 0, 0), 15), "Benchmarking", "RFC 2544"),
    row(Network::v4(Ipv4Addr::new(198, 51, 100, 0), 24), "Documentation (TEST-NET-2)", "RFC 5737"),
    row(Network::v4(Ipv4Addr::new(203, 0, 113, 0), 24), "Documentation (TEST-NET-3)", "RFC 5737"),
    row(Network::v4(Ipv4Addr::new(224, 0, 0, 0), 4), "Multicast", "RFC 5771"),
    row(Network::v4(Ipv4Addr::new(240, 0, 0, 0), 4), "Reserved", "RFC 1112"),
    row(Network::v4(Ipv4Addr::BROADCAST, 32), "Limited Broadcast", "RFC 919"),
];

/// IPv6.
const V6: &[(Network, Special)] = &[
    row(Network::v6(Ipv6Addr::UNSPECIFIED, 96), "IPv4-compatible Address (deprecated)", "RFC 4291"),
    row(Network::v6(Ipv6Addr::UNSPECIFIED, 128), "Unspecified Address", "RFC 4291"),
    private(Network::v6(Ipv6Addr::LOCALHOST, 128), "Loopback Address", "RFC 4291"),
    row(Network::v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96), "IPv4-mapped Address", "RFC 4291"),
    row(Network::v6(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96), "IPv4-translated Address", "RFC 2765"),
    row(Network::v6(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48), "IPv4-IPv6 Translation, local use", "RFC 8215"),
    row(Network::v6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64), "Discard-Only Address Block", "RFC 6666"),
    row(Network::v6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 0), 64), "Dummy IPv6 Prefix", "RFC 9780"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), "IETF Protocol Assignments", "RFC 2928"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32), "TEREDO", "RFC 4380"),
    row(Network::v6(Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), 128), "Port Control Protocol Anycast", "RFC 7723"),
    row(Network::v6(Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 2), 128), "Traversal Using Relays around NAT Anycast", "RFC 8155"),
    row(Network::v6(Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 3), 128), "DNS-SD Service Registration Protocol Anycast", "RFC 9665"),
    row(Network::v6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48), "Benchmarking", "RFC 5180"),
    row(Network::v6(Ipv6Addr::new(0x2001, 3, 0, 0, 0, 0, 0, 0), 32), "AMT", "RFC 7450"),
    row(Network::v6(Ipv6Addr::new(0x2001, 4, 0x112, 0, 0, 0, 0, 0), 48), "AS112-v6", "RFC 7535"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0x10, 0, 0, 0, 0, 0, 0), 28), "Deprecated (ORCHID)", "RFC 4843"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0x20, 0, 0, 0, 0, 0, 0), 28), "ORCHIDv2", "RFC 7343"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0x30, 0, 0, 0, 0, 0, 0), 28), "Drone Remote ID Protocol Entity Tags", "RFC 9374"),
    row(Network::v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), "Documentation", "RFC 3849"),
    row(Network::v6(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), "6to4", "RFC 3056"),
    row(Network::v6(Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), "Direct Delegation AS112 Service", "RFC 7534"),
    row(Network::v6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), "Documentation", "RFC 9637"),
    row(Network::v6(Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16), "Segment Routing (SRv6) SIDs", "RFC 9602"),
    private(Network::v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7), "Unique-Local", "RFC 4193"),
    row(Network::v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "Link-Local Unicast", "RFC 4291"),
    row(Network::v6(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10), "Site-Local (deprecated)", "RFC 3879"),
    row(Network::v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "Multicast", "RFC 4291"),
];

/// IPv4-IPv6 translation (RFC 6052): how networks without IPv4 write its addresses; as public as the one inside.
const NAT64: Network = Network::v6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Global unicast, the only part of IPv6 that addresses are given out of (RFC 4291, section 2.4, and IANA's address space registry).
const GLOBAL: Network = Network::v6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What lies outside of [`GLOBAL`] and has no row of its own.
const UNALLOCATED: Special = Special { name: "Not global unicast", source: "RFC 4291", is_private: false };

/// An address of IPv4 as the interface of one of IPv6, in whatever network.
const ISATAP: Special = Special { name: "ISATAP", source: "RFC 5214", is_private: false };

/// What an address is set aside for; `None` for one of the public internet. Of several rows the narrowest.
pub(super) fn special(address: IpAddr) -> Option<Special> {
    match address {
        IpAddr::V4(_) => narrowest(V4, address),
        IpAddr::V6(six) => {
            if NAT64.contains(address) {
                let [.., a, b, c, d] = six.octets();
                return narrowest(V4, Ipv4Addr::new(a, b, c, d).into()).map(|inside| Special { is_private: false, ..inside });
            }
            narrowest(V6, address)
                .or_else(|| (!GLOBAL.contains(address)).then_some(UNALLOCATED))
                .or_else(|| is_isatap(six).then_some(ISATAP))
        }
    }
}

fn narrowest(rows: &[(Network, Special)], address: IpAddr) -> Option<Special> {
    let found = rows.iter().filter(|(network, _)| network.contains(address));
    found.max_by_key(|(network, _)| network.prefix()).map(|(_, special)| *special)
}

/// The interface identifier is `0000:5efe` or `0200:5efe` and then an address (RFC 5214, section 6.1).
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    low == 0x5efe && high & !0x0200 == 0
}

#[cfg(test)]
mod tests;
