//! `[web]` of a manifest: from which pages browsers may call the API with a user's token (CORS).
//!
//! What must stay true: an origin is listed as browsers write it in the header `Origin` (RFC 6454, section 6.1), or it would never match.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The most origins.
const MOST_ORIGINS: usize = 50;

/// Where a product's pages are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Web {
    /// Origins: `https://app.example.com`, with a port where it is not https' own; by http this machine alone.
    pub origins: Vec<String>,
}

impl Web {
    /// What is wrong with it, by its field.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.origins.len() > MOST_ORIGINS {
            faults.push(("origins", format!("has {} origins; {MOST_ORIGINS} are the most", self.origins.len())));
        }
        for origin in self.origins.iter().filter(|origin| !is_origin(origin)) {
            faults.push((
                "origins",
                format!(
                    "`{origin}` is not an origin; write for example \"https://app.example.com\", without a path; http is for localhost"
                ),
            ));
        }
        faults
    }

    /// Whether an origin is listed. Exactly: there are no patterns.
    #[must_use]
    pub fn lists(&self, origin: &str) -> bool {
        self.origins.iter().any(|listed| listed == origin)
    }
}

fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    // A pattern would match nothing, and look as if it did.
    if text.contains('*') {
        return false;
    }
    let is_local = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    // Its own serialisation: lower case, no port that goes without saying, nothing behind the host.
    url.origin().ascii_serialization() == text && (url.scheme() == "https" || (url.scheme() == "http" && is_local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_write_them() {
        let good =
            ["https://app.example.com", "https://app.example.com:8443", "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]"];
        let web = Web { origins: good.map(str::to_owned).to_vec() };
        assert_eq!(web.faults(), []);
        assert!(web.lists("https://app.example.com") && !web.lists("https://app.example.com.evil.example") && !web.lists("null"));
        for wrong in [
            "",
            "*",
            "null",
            "https://*.example.com",
            "https://app.example.com/",
            "https://app.example.com:443",
            "https://APP.example.com",
            "http://app.example.com",
            "app.example.com",
            "https://user@app.example.com",
            "ftp://app.example.com",
            "https://",
            "file:///",
        ] {
            assert_eq!(Web { origins: vec![wrong.into()] }.faults().len(), 1, "{wrong}");
        }
        assert_eq!(Web { origins: vec!["https://a.example".into(); 51] }.faults().len(), 1);
    }
}
