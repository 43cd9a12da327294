//! Mail, as far as settings describe it: servers that take mail from us, and keys that sign it.
//!
//! What must stay true: a password goes over TLS only; passwords and keys are in no log and no `Debug`.

mod dkim;
mod server;

pub use dkim::DkimKey;
pub use server::{Security, SmtpServer};

/// What the variables of servers begin with; manifests name the rest.
pub const SERVER_VARIABLE: &str = "OFFSTAGE_SMTP_";

/// What the variables of DKIM keys begin with; manifests name the rest.
pub const DKIM_VARIABLE: &str = "OFFSTAGE_DKIM_";

/// The two sides of an address as every server takes it, the domain in ASCII (IDNA); `None` for anything else: quoted names, several
/// addresses, a name beside the address.
#[must_use]
pub fn address(text: &str) -> Option<(&str, String)> {
    let (user, domain) = text.rsplit_once('@')?;
    if user.is_empty() || !user.bytes().all(|byte| byte.is_ascii_graphic()) || user.contains(['<', '>', '"', '\\', ',', ';', '@']) {
        return None;
    }
    let Ok(url::Host::Domain(domain)) = url::Host::parse(domain) else { return None };
    Some((user, domain))
}
