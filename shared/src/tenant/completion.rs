//! `[completion]` of a manifest: where the ends of a product's jobs may be told (`completion_url`), and by which key the telling is
//! signed.
//!
//! What must stay true: a delivery goes to a host that the manifest lists, by https; plain http goes to this machine's own loopback
//! alone, and only where that is listed as private. Asked when a job is accepted, and again before each delivery.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// What the variables of signing keys begin with. A manifest can name no other, or it could have our own secrets used.
pub const KEY_VARIABLE: &str = "OFFSTAGE_COMPLETION_";

/// The longest `completion_url`, in bytes.
pub const LONGEST_URL: usize = 2_000;

/// The most hosts of a sort.
const MOST_HOSTS: usize = 100;

/// Where ends may be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The worker's variable that holds the signing key, `whsec_…`; or several, parted by spaces, while keys change.
    pub secret_env: String,
    /// Hosts of public addresses: `hooks.example.com`, or with another port than https' own, `hooks.example.com:8443`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Hosts that may have private addresses; of this machine itself (`127.0.0.1:9000`) also by http.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_hosts: Vec<String>,
}

/// A place that a delivery may go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub url: Url,
    /// Whether its host may have a private address.
    pub may_be_private: bool,
}

impl Completion {
    /// What is wrong with it, by its field.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let rest = self.secret_env.strip_prefix(KEY_VARIABLE);
        let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        if !rest.is_some_and(|rest| !rest.is_empty() && rest.len() <= 100 && rest.bytes().all(legal)) {
            // Not repeated: it may be the key itself.
            let detail = format!(
                "must name the variable that holds the key, {KEY_VARIABLE} and then capital letters, digits or `_`; write for example \"{KEY_VARIABLE}MAIN\""
            );
            faults.push(("secret_env", detail));
        }
        for (field, hosts) in [("hosts", &self.hosts), ("private_hosts", &self.private_hosts)] {
            if hosts.len() > MOST_HOSTS {
                faults.push((field, format!("has {} hosts; {MOST_HOSTS} are the most", hosts.len())));
            }
            for host in hosts.iter().filter(|host| listed(host).is_none()) {
                faults.push((
                    field,
                    format!("`{host}` is not a host; write for example \"hooks.example.com\" or \"hooks.example.com:8443\""),
                ));
            }
        }
        if self.hosts.is_empty() && self.private_hosts.is_empty() {
            faults.push(("hosts", "names no host, so nothing could be told to anybody; name one, or leave [completion] out".to_owned()));
        }
        faults
    }

    /// The place of a `completion_url`, if a delivery may go there.
    ///
    /// # Errors
    /// What is wrong with it, to be put behind the field's name.
    pub fn destination(&self, url: &str) -> Result<Destination, String> {
        if url.len() > LONGEST_URL {
            return Err(format!("has {} bytes; {LONGEST_URL} are the most", url.len()));
        }
        // The parser of URLs drops or escapes them, and then what is kept is not what is called.
        if url.chars().any(char::is_control) {
            return Err("contains a control character; a URL has them escaped".to_owned());
        }
        let url = Url::parse(url).map_err(|error| format!("is not a URL: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user or password; deliveries are signed".to_owned());
        }
        let Some(host) = url.host() else { return Err("has no host".to_owned()) };
        let loopback = is_loopback(&host);
        let may_be_private = self.private_hosts.iter().any(|entry| matches(entry, &url));
        if !may_be_private && !self.hosts.iter().any(|entry| matches(entry, &url)) {
            return Err(format!("goes to `{}`, which is not on the list of hosts in the product's manifest, [completion]", shown(&url)));
        }
        match url.scheme() {
            "https" => {}
            "http" if loopback && may_be_private => {}
            _ => return Err("must be an https:// address".to_owned()),
        }
        Ok(Destination { url, may_be_private })
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
        Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// An entry as host and port; https' own port where it names none.
fn listed(entry: &str) -> Option<(String, u16)> {
    // Read as URLs are, so that both sides have one form: lower case, punycode, plain numbers.
    let url = Url::parse(&format!("https://{entry}/")).ok()?;
    let plain =
        url.username().is_empty() && url.password().is_none() && url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let host = url.host_str().filter(|_| plain && !entry.contains(['/', '?', '#', '@', '*', ' ']))?;
    Some((host.to_owned(), url.port_or_known_default()?))
}

fn matches(entry: &str, url: &Url) -> bool {
    let Some((host, port)) = listed(entry) else { return false };
    url.host_str() == Some(host.as_str()) && url.port_or_known_default() == Some(port)
}

fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(hosts: &[&str], private_hosts: &[&str]) -> Completion {
        let own = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect();
        Completion { secret_env: "OFFSTAGE_COMPLETION_MAIN".into(), hosts: own(hosts), private_hosts: own(private_hosts) }
    }

    #[test]
    fn only_listed_hosts_by_https() {
        let completion =
            completion(&["hooks.example.com", "other.example.com:8443"], &["intranet.example.com", "127.0.0.1:9000", "[::1]:9000"]);
        assert_eq!(completion.faults(), []);
        for (url, private) in [
            ("https://hooks.example.com/a?b=c", false),
            ("https://HOOKS.example.com:443/", false),
            ("https://other.example.com:8443/", false),
            ("https://intranet.example.com/", true),
            ("http://127.0.0.1:9000/", true),
            ("http://2130706433:9000/", true),
            ("https://127.0.0.1:9000/", true),
            ("http://[::1]:9000/", true),
        ] {
            assert_eq!(completion.destination(url).map(|to| to.may_be_private), Ok(private), "{url}");
        }
        for url in [
            "http://hooks.example.com/",
            "http://intranet.example.com/",
            "https://hooks.example.com:8443/",
            "https://other.example.com/",
            "https://hooks.example.com.evil.example/",
            "https://evil.example/?hooks.example.com",
            "https://hooks.example.com@evil.example/",
            "https://user:password@hooks.example.com/",
            "https://sub.hooks.example.com/",
            "http://127.0.0.1/",
            "http://localhost:9000/",
            "ftp://hooks.example.com/",
            "hooks.example.com",
            "https:///",
            "",
        ] {
            assert!(completion.destination(url).is_err(), "{url}");
        }
        assert!(completion.destination(&format!("https://hooks.example.com/{}", "a".repeat(LONGEST_URL))).is_err());
    }

    #[test]
    fn loopback_by_http_must_be_listed_as_private() {
        assert!(completion(&["127.0.0.1:9000"], &[]).destination("http://127.0.0.1:9000/").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let faults = |completion: Completion| completion.faults().into_iter().map(|(field, _)| field).collect::<Vec<_>>();
        assert_eq!(faults(completion(&[], &[])), ["hosts"]);
        assert_eq!(
            faults(completion(&["https://a.example", "a/b", "*.example.com", ""], &["a b"])),
            ["hosts", "hosts", "hosts", "hosts", "private_hosts"]
        );
        for name in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "OFFSTAGE_DATABASE_URL", "OFFSTAGE_COMPLETION_", "OFFSTAGE_COMPLETION_a"] {
            let wrong = Completion { secret_env: name.into(), ..completion(&["a.example"], &[]) };
            assert_eq!(faults(wrong), ["secret_env"], "{name}");
        }
    }
}
