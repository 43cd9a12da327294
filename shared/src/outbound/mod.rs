//! Where calls may go that somebody else named the address of: push endpoints, completions, webhooks, a model's server.
//!
//! What must stay true: one place decides, by the numeric address that is connected to, and by the URL before that. A user's URL reaches
//! the public internet and what the operator lists (`OFFSTAGE_OUTBOUND_ALLOW`), nothing else: not this machine, not the network it stands
//! in, not a cloud's metadata, in whatever way the address is written or embedded.
//!
//! The worker's client asks before each call and for each address that a name leads to.

mod network;
mod registry;

use std::{net::IpAddr, sync::Arc};

use url::{Host, Url};

pub use network::Network;
pub use registry::Special;

/// The most networks on the operator's list.
const MOST_NETWORKS: usize = 100;

/// Who named an address, and so where it may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// A user: the public internet, and the operator's list.
    Public,
    /// The operator, for a product (`private_hosts` of a manifest): private networks and this machine besides. Link-local addresses stay
    /// out of it, a cloud's metadata among them.
    Inside,
    /// This machine and nothing else.
    Loopback,
}

/// Why an address may not be called. Names no address: who asked may not be told what a name leads to in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Another scheme than `https`, or `http` where that is not enough.
    #[error("must be an https:// address")]
    Scheme,
    /// User or password in the URL: they would be sent.
    #[error("must not hold a user or password")]
    Credentials,
    /// No host.
    #[error("has no host")]
    Host,
    /// The address is not a public one.
    #[error("leads to an address that is not public: {0}")]
    Special(Special),
    /// The address is not this machine's own.
    #[error("must lead to this machine itself (127.0.0.1, [::1] or `localhost`)")]
    Elsewhere,
}

/// The guard: the operator's list, and the registries of IANA. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allowed: Arc<[Network]>,
}

impl Guard {
    /// With the networks that users' addresses may lead to although they are not public.
    #[must_use]
    pub fn allowing(networks: impl IntoIterator<Item = Network>) -> Self {
        Self { allowed: networks.into_iter().collect() }
    }

    /// Reads the operator's list: networks (`10.2.0.0/16`, `fd00:1::/64`), addresses, or the word `loopback`, parted by commas.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead.
    pub fn read(list: &str) -> Result<Self, String> {
        let mut networks = Vec::new();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if entry == "loopback" {
                networks.extend(Network::LOOPBACK);
                continue;
            }
            let network = entry.parse().map_err(|()| {
                format!("`{entry}` is not a network; write for example 10.2.0.0/16, fd00:1::/64, 192.168.1.7 or loopback, parted by commas")
            })?;
            networks.push(network);
        }
        if networks.len() > MOST_NETWORKS {
            return Err(format!("names {} networks; {MOST_NETWORKS} are the most", networks.len()));
        }
        Ok(Self::allowing(networks))
    }

    /// Whether a URL may be called, as far as its text tells: a name's addresses are judged by [`Self::address`] once they are known.
    ///
    /// # Errors
    /// Why not, to be put behind the field's name.
    pub fn url(&self, url: &Url, reach: Reach) -> Result<(), NotAllowed> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(NotAllowed::Credentials);
        }
        let (literal, is_localhost) = match url.host().ok_or(NotAllowed::Host)? {
            Host::Ipv4(address) => (Some(IpAddr::V4(address)), false),
            Host::Ipv6(address) => (Some(IpAddr::V6(address)), false),
            Host::Domain("") => return Err(NotAllowed::Host),
            // By RFC 6761, section 6.3, what ends with it too; those are judged when they are resolved.
            Host::Domain(name) => (None, name.trim_end_matches('.').eq_ignore_ascii_case("localhost")),
        };
        if let Some(address) = literal {
            self.address(address, reach)?;
        }
        if reach == Reach::Loopback && literal.is_none() && !is_localhost {
            return Err(NotAllowed::Elsewhere);
        }
        match url.scheme() {
            "https" => Ok(()),
            // In the clear only where nobody listens on the way: within this machine, and where the operator put it on the list.
            "http" => {
                let is_near = literal.map_or(is_localhost, |address| is_loopback(address) || self.is_listed(address));
                let listed = reach != Reach::Public || !is_localhost || Network::LOOPBACK.iter().any(|own| self.allowed.contains(own));
                if is_near && listed { Ok(()) } else { Err(NotAllowed::Scheme) }
            }
            _ => Err(NotAllowed::Scheme),
        }
    }

    /// Whether a connection may be made to an address.
    ///
    /// # Errors
    /// Why not.
    pub fn address(&self, address: IpAddr, reach: Reach) -> Result<(), NotAllowed> {
        match reach {
            Reach::Loopback if is_loopback(address) => Ok(()),
            Reach::Loopback => Err(NotAllowed::Elsewhere),
            Reach::Public | Reach::Inside if self.is_listed(address) => Ok(()),
            Reach::Public | Reach::Inside => match registry::special(address) {
                None => Ok(()),
                Some(special) if reach == Reach::Inside && special.is_private => Ok(()),
                Some(special) => Err(NotAllowed::Special(special)),
            },
        }
    }

    fn is_listed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(address))
    }
}

fn is_loopback(address: IpAddr) -> bool {
    Network::LOOPBACK.iter().any(|network| network.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_users_url_is_https_to_the_public_in_every_way_of_writing() {
        let guard = Guard::default();
        for allowed in ["https://push.example.com/a?b", "https://push.example.com:8443/", "https://8.8.8.8/", "https://[2606:4700::1]/"] {
            assert_eq!(guard.url(&url(allowed), Reach::Public), Ok(()), "{allowed}");
        }
        for (refused, why) in [
            ("http://push.example.com/", "https"),
            ("http://8.8.8.8/", "https"),
            ("ftp://push.example.com/", "https"),
            ("file:///etc/passwd", "host"),
            ("data:text/plain,x", "host"),
            ("https://user@push.example.com/", "user"),
            ("https://:secret@push.example.com/", "user"),
            ("https://127.0.0.1/", "Loopback"),
            ("https://2130706433/", "Loopback"),
            ("https://0x7f.1/", "Loopback"),
            ("https://0177.0.0.1/", "Loopback"),
            ("https://127.1/", "Loopback"),
            ("https://１２７.0.0.1/", "Loopback"),
            ("https://0/", "This"),
            ("https://169.254.169.254/latest/meta-data/", "Link Local"),
            ("https://[::1]/", "Loopback"),
            ("https://[::ffff:127.0.0.1]/", "IPv4-mapped"),
            ("https://[::127.0.0.1]/", "IPv4-compatible"),
            ("https://[64:ff9b::10.0.0.1]/", "Private-Use"),
            ("http://localhost/", "https"),
        ] {
            let found = guard.url(&url(refused), Reach::Public).expect_err(refused).to_string();
            assert!(found.contains(why), "{refused}: {found}");
        }
        // Not known before it is resolved.
        assert_eq!(guard.url(&url("https://localhost/"), Reach::Public), Ok(()));
    }

    #[test]
    fn the_operators_list_opens_what_it_names_and_no_more() {
        let guard = Guard::read(" 10.2.0.0/16, loopback,fd00:1::/64 , 169.254.1.1").unwrap();
        for allowed in ["10.2.255.255", "127.9.9.9", "::1", "fd00:1::7", "169.254.1.1"] {
            assert_eq!(guard.address(allowed.parse().unwrap(), Reach::Public), Ok(()), "{allowed}");
        }
        for refused in ["10.3.0.0", "10.1.255.255", "::2", "fd00:1:0:1::7", "169.254.1.2", "::ffff:10.2.0.1", "64:ff9b::10.2.0.1"] {
            assert!(guard.address(refused.parse().unwrap(), Reach::Public).is_err(), "{refused}");
        }
        for url_text in ["http://127.0.0.1:1/", "http://localhost:1/", "http://[::1]/", "http://10.2.0.1/"] {
            assert_eq!(guard.url(&url(url_text), Reach::Public), Ok(()), "{url_text}");
        }
        assert_eq!(guard.url(&url("http://push.example.com/"), Reach::Public), Err(NotAllowed::Scheme));
        assert!(Guard::read("").unwrap().address("127.0.0.1".parse().unwrap(), Reach::Public).is_err());
        for wrong in ["10.0.0.0/33", "10.0.0.1/8", "::/129", "example.com", "10.0.0/8", "10.0.0.0/", "/8", "all"] {
            assert!(Guard::read(wrong).is_err_and(|error| error.contains(wrong)), "{wrong}");
        }
        assert!(Guard::read(&"10.0.0.0/8,".repeat(MOST_NETWORKS + 1)).is_err());
    }

    #[test]
    fn a_products_private_hosts_are_private_and_no_metadata() {
        let guard = Guard::default();
        for allowed in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "::1", "fd00::1", "8.8.8.8"] {
            assert_eq!(guard.address(allowed.parse().unwrap(), Reach::Inside), Ok(()), "{allowed}");
        }
        for refused in ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "::ffff:10.0.0.1", "2002:a00:1::"] {
            assert!(guard.address(refused.parse().unwrap(), Reach::Inside).is_err(), "{refused}");
        }
        assert_eq!(guard.url(&url("http://127.0.0.1:9000/"), Reach::Inside), Ok(()));
        assert_eq!(guard.url(&url("http://10.0.0.1/"), Reach::Inside), Err(NotAllowed::Scheme));
        assert_eq!(guard.url(&url("https://intranet.example.com/"), Reach::Inside), Ok(()));
    }

    #[test]
    fn loopback_is_this_machine_alone_whatever_is_listed() {
        let guard = Guard::read("10.0.0.0/8").unwrap();
        for allowed in ["http://127.0.0.1:1/x", "https://[::1]:1/", "http://localhost:1", "http://LOCALHOST.", "http://2130706433/"] {
            assert_eq!(guard.url(&url(allowed), Reach::Loopback), Ok(()), "{allowed}");
        }
        for refused in
            ["http://10.0.0.1/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/", "http://localhost.example.com/", "https://8.8.8.8/"]
        {
            assert_eq!(guard.url(&url(refused), Reach::Loopback), Err(NotAllowed::Elsewhere), "{refused}");
        }
        assert!(guard.address("10.0.0.1".parse().unwrap(), Reach::Loopback).is_err());
    }
}
