//! Web push: by which keys, and who answers for it.

use std::sync::Arc;

use super::variables::Reader;
use crate::push::VapidKeys;

/// What the sender of pushes needs.
#[derive(Clone, Debug, Default)]
pub struct Push {
    /// The keys (`OFFSTAGE_PUSH_KEYS`); nothing is pushed without.
    pub keys: Option<Arc<VapidKeys>>,
    /// By which address push services reach whoever runs this (`OFFSTAGE_PUSH_CONTACT`).
    pub contact: Option<String>,
}

impl Push {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut push = Self::default();
        if let Some(text) = reader.optional("OFFSTAGE_PUSH_KEYS") {
            push.keys = VapidKeys::read(text).map(Arc::new);
            if push.keys.is_none() {
                // Not repeated: most of it may be right.
                reader.problem(
                    "OFFSTAGE_PUSH_KEYS",
                    "is not a list of VAPID private keys: 32 bytes each in base64url, parted by spaces, the current one first, 8 at most",
                );
            }
        }
        if let Some(contact) = reader.optional("OFFSTAGE_PUSH_CONTACT") {
            if is_contact(contact) {
                push.contact = Some(contact.to_owned());
            } else {
                reader.problem(
                    "OFFSTAGE_PUSH_CONTACT",
                    format!("`{contact}` is no mailto: or https: address; write for example mailto:ops@example.com"),
                );
            }
        } else if push.keys.is_some() {
            reader.warn("OFFSTAGE_PUSH_CONTACT is not set: push services can't reach you, and some (Apple's) refuse pushes without it");
        }
        push
    }
}

/// RFC 8292, section 2.1. Some services refuse addresses that lead nowhere (`localhost`, `.local`).
fn is_contact(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else { return false };
    match url.scheme() {
        "mailto" => url.path().split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.')),
        "https" => url.host_str().is_some_and(|host| host.contains('.')),
        _ => false,
    }
}
