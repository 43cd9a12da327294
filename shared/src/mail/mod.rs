//! Mail, as far as both programs must agree on it: servers that take mail from us, keys that sign it, and recipients as the ledger knows
//! them.
//!
//! What must stay true: a password goes over TLS only; passwords and keys are in no log and no `Debug`.

mod dkim;
mod recipient;
mod server;

pub use dkim::DkimKey;
pub use recipient::{RecipientHash, RecipientKey, Unsubscription, is_category};
pub use server::{Security, SmtpServer};

/// What the variables of servers begin with; manifests name the rest.
pub const SERVER_VARIABLE: &str = "OFFSTAGE_SMTP_";

/// What the variables of DKIM keys begin with; manifests name the rest.
pub const DKIM_VARIABLE: &str = "OFFSTAGE_DKIM_";

/// What the variables of keys begin with that sign hooks of mail providers; manifests name the rest.
pub const HOOK_VARIABLE: &str = "OFFSTAGE_HOOK_";

/// The two sides of an address as every server takes it, the domain in ASCII (IDNA); `None` for anything else: quoted names, several
/// addresses, a name beside the address.
#[must_use]
pub fn address(text: &str) -> Option<(&str, String)> {
    let (user, domain) = text.rsplit_once('@')?;
    // Dot-atoms (RFC 5322, section 3.2.3), as long as RFC 5321, section 4.5.3.1, has them.
    let is_atom = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    if user.len() > 64 || user.split('.').any(|atom| atom.is_empty() || !atom.bytes().all(is_atom)) {
        return None;
    }
    let Ok(url::Host::Domain(domain)) = url::Host::parse(domain) else { return None };
    let is_label = |label: &str| {
        let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(is_inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    (domain.split('.').all(is_label) && user.len() + domain.len() < 254).then_some((user, domain))
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_those_that_mail_can_be_sent_to() {
        for fine in
            ["ada@example.com", "a.b+c=d@x-y.example", "ada@münchen.example", "a@localhost", &format!("{}@a.example", "a".repeat(64))]
        {
            assert!(address(fine).is_some(), "{fine}");
        }
        assert_eq!(address("ada@MÜNCHEN.example"), Some(("ada", "xn--mnchen-3ya.example".to_owned())));
        let long = format!("a@{}.example", std::iter::repeat_n("b".repeat(63), 4).collect::<Vec<_>>().join("."));
        for wrong in [
            "",
            "ada",
            "@example.com",
            "ada@",
            "a b@example.com",
            "a..b@example.com",
            ".a@example.com",
            "a.@example.com",
            "a@x..com",
            "a@-x.com",
            "a@x-.com",
            "a@example.com.",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "Ada <ada@example.com>",
            "\"a\"@example.com",
            "a@b,c@d.e",
            "ä@example.com",
            "a\r\n@example.com",
            &format!("{}@a.example", "a".repeat(65)),
            &format!("a@{}.example", "b".repeat(64)),
            &long,
        ] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
