//! One test a row, each with addresses written down from the registries and not from the table: the row's first and last address, and its
//! neighbours outside, which are public or belong to another row.

use std::net::IpAddr;

use super::special;

/// `name: "row" in [addresses]` and what lies beside: `public [addresses]`.
macro_rules! rows {
    ($($test:ident: $name:literal in [$($inside:literal),+] $(, public [$($outside:literal),+])?;)+) => {
        $(
            #[test]
            fn $test() {
                for address in [$($inside),+] {
                    let found = special(address.parse().unwrap()).unwrap_or_else(|| panic!("{address} is taken for public"));
                    assert_eq!(found.name, $name, "{address}");
                }
                $(for address in [$($outside),+] {
                    assert_eq!(special(address.parse().unwrap()), None, "{address} is public");
                })?
            }
        )+

        /// A row of the table without a test of its own fails here: names repeat, so each needs an address that it decides on.
        #[test]
        fn every_row_has_a_test() {
            let tested: Vec<IpAddr> = [$($($inside),+),+].iter().map(|address| address.parse().unwrap()).collect();
            for rows in [super::V4, super::V6] {
                let decides = |address: IpAddr| rows.iter().filter(|row| row.0.contains(address)).max_by_key(|row| row.0.prefix());
                for row in rows {
                    let has_one = tested.iter().any(|address| decides(*address).is_some_and(|found| std::ptr::eq(found, row)));
                    assert!(has_one, "{} {:?} has no test", row.1, row.0);
                }
            }
        }
    };
}

rows! {
    v4_this_network: "\"This network\"" in ["0.0.0.1", "0.1.2.3", "0.255.255.255"], public ["1.0.0.0"];
    v4_this_host: "\"This host on this network\"" in ["0.0.0.0"];
    v4_private_10: "Private-Use" in ["10.0.0.0", "10.255.255.255"], public ["9.255.255.255", "11.0.0.0"];
    v4_shared: "Shared Address Space" in ["100.64.0.0", "100.127.255.255"], public ["100.63.255.255", "100.128.0.0"];
    v4_loopback: "Loopback" in ["127.0.0.0", "127.0.0.1", "127.255.255.255"], public ["126.255.255.255", "128.0.0.0"];
    v4_link_local: "Link Local" in ["169.254.0.0", "169.254.169.254", "169.254.255.255"], public ["169.253.255.255", "169.255.0.0"];
    v4_private_172: "Private-Use" in ["172.16.0.0", "172.31.255.255"], public ["172.15.255.255", "172.32.0.0"];
    v4_protocols: "IETF Protocol Assignments" in ["192.0.0.11", "192.0.0.169", "192.0.0.172", "192.0.0.255"], public ["191.255.255.255", "192.0.1.0"];
    v4_continuity: "IPv4 Service Continuity Prefix" in ["192.0.0.0", "192.0.0.7"];
    v4_dummy: "IPv4 dummy address" in ["192.0.0.8"];
    v4_pcp: "Port Control Protocol Anycast" in ["192.0.0.9"];
    v4_turn: "Traversal Using Relays around NAT Anycast" in ["192.0.0.10"];
    v4_nat64_discovery_170: "NAT64/DNS64 Discovery" in ["192.0.0.170"];
    v4_nat64_discovery_171: "NAT64/DNS64 Discovery" in ["192.0.0.171"];
    v4_test_net_1: "Documentation (TEST-NET-1)" in ["192.0.2.0", "192.0.2.255"], public ["192.0.1.255", "192.0.3.0"];
    v4_as112: "AS112-v4" in ["192.31.196.0", "192.31.196.255"], public ["192.31.195.255", "192.31.197.0"];
    v4_amt: "AMT" in ["192.52.193.0", "192.52.193.255"], public ["192.52.192.255", "192.52.194.0"];
    v4_6to4_relay: "Deprecated (6to4 Relay Anycast)" in ["192.88.99.0", "192.88.99.1", "192.88.99.255"], public ["192.88.98.255", "192.88.100.0"];
    v4_6a44_relay: "6a44-relay anycast address" in ["192.88.99.2"];
    v4_private_192: "Private-Use" in ["192.168.0.0", "192.168.255.255"], public ["192.167.255.255", "192.169.0.0"];
    v4_as112_direct: "Direct Delegation AS112 Service" in ["192.175.48.0", "192.175.48.255"], public ["192.175.47.255", "192.175.49.0"];
    v4_benchmarking: "Benchmarking" in ["198.18.0.0", "198.19.255.255"], public ["198.17.255.255", "198.20.0.0"];
    v4_test_net_2: "Documentation (TEST-NET-2)" in ["198.51.100.0", "198.51.100.255"], public ["198.51.99.255", "198.51.101.0"];
    v4_test_net_3: "Documentation (TEST-NET-3)" in ["203.0.113.0", "203.0.113.255"], public ["203.0.112.255", "203.0.114.0"];
    v4_multicast: "Multicast" in ["224.0.0.0", "239.255.255.255"], public ["223.255.255.255"];
    v4_reserved: "Reserved" in ["240.0.0.0", "255.255.255.254"];
    v4_broadcast: "Limited Broadcast" in ["255.255.255.255"];

    v6_unspecified: "Unspecified Address" in ["::"];
    v6_loopback: "Loopback Address" in ["::1"];
    v6_compatible: "IPv4-compatible Address (deprecated)" in ["::2", "::8.8.8.8", "::127.0.0.1", "::255.255.255.255"];
    v6_mapped: "IPv4-mapped Address" in ["::ffff:0.0.0.0", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::ffff:255.255.255.255"];
    v6_translated: "IPv4-translated Address" in ["::ffff:0:0.0.0.0", "::ffff:0:169.254.169.254", "::ffff:0:255.255.255.255"];
    v6_nat64_public: "Private-Use" in ["64:ff9b::10.0.0.1", "64:ff9b::192.168.0.1"], public ["64:ff9b::8.8.8.8", "64:ff9b::1.1.1.1"];
    v6_nat64_loopback: "Loopback" in ["64:ff9b::127.0.0.1"];
    v6_nat64_metadata: "Link Local" in ["64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe"];
    v6_nat64_local: "IPv4-IPv6 Translation, local use" in ["64:ff9b:1::", "64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"];
    v6_discard: "Discard-Only Address Block" in ["100::", "100::ffff:ffff:ffff:ffff"];
    v6_dummy: "Dummy IPv6 Prefix" in ["100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff"];
    v6_protocols: "IETF Protocol Assignments" in ["2001:1::", "2001:1::4", "2001:5::1", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"], public ["2001:200::", "2000:ffff::1"];
    v6_teredo: "TEREDO" in ["2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::ffff:ffff:ffff:ffff"];
    v6_pcp: "Port Control Protocol Anycast" in ["2001:1::1"];
    v6_turn: "Traversal Using Relays around NAT Anycast" in ["2001:1::2"];
    v6_srp: "DNS-SD Service Registration Protocol Anycast" in ["2001:1::3"];
    v6_benchmarking: "Benchmarking" in ["2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff"];
    v6_amt: "AMT" in ["2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_as112: "AS112-v6" in ["2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff"];
    v6_orchid: "Deprecated (ORCHID)" in ["2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_orchid_2: "ORCHIDv2" in ["2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_drip: "Drone Remote ID Protocol Entity Tags" in ["2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_documentation: "Documentation" in ["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"], public ["2001:db7:ffff::1", "2001:db9::"];
    v6_documentation_2: "Documentation" in ["3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"], public ["3fff:1000::", "3ffe:ffff::1"];
    v6_6to4: "6to4" in ["2002::", "2002:a00:1::1", "2002:808:808::1", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], public ["2003::1"];
    v6_as112_direct: "Direct Delegation AS112 Service" in ["2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff"], public ["2620:4f:7fff::1", "2620:4f:8001::"];
    v6_segments: "Segment Routing (SRv6) SIDs" in ["5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_unique_local: "Unique-Local" in ["fc00::", "fd12:3456::1", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_link_local: "Link-Local Unicast" in ["fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_site_local: "Site-Local (deprecated)" in ["fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_multicast: "Multicast" in ["ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    v6_not_global: "Not global unicast" in ["::1:0:0:0", "64:ff9c::1", "200::1", "1fff::1", "4000::1", "fbff::1", "fe00::1"],
        public ["2000::1", "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00::1", "3ffe::1"];
    v6_isatap: "ISATAP" in ["2a00::5efe:10.0.0.1", "2a00::200:5efe:192.168.0.1"], public ["2a00::1:5efe:a00:1", "2a00::5eff:a00:1"];
}
