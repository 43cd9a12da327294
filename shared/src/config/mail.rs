//! Mail: over which servers, signed by which keys, and on a staging installation to one address only.

use std::{collections::BTreeMap, sync::Arc};

use super::variables::Reader;
use crate::mail::{DKIM_VARIABLE, DkimKey, RecipientKey, SERVER_VARIABLE, SmtpServer};

/// What the sender of mail needs.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    /// Servers by the variable that names them (`OFFSTAGE_SMTP_…`).
    pub servers: BTreeMap<String, SmtpServer>,
    /// DKIM keys by the variable that holds them (`OFFSTAGE_DKIM_…`).
    pub dkim: BTreeMap<String, Arc<DkimKey>>,
    /// Certificates of the operator's own authorities, in PEM (`OFFSTAGE_MAIL_CA_FILE`).
    pub authorities: Option<String>,
    /// The name that this machine gives itself (`OFFSTAGE_MAIL_HELLO`).
    pub hello: Option<String>,
    /// The address that gets every mail instead of whom it is for (`OFFSTAGE_MAIL_REDIRECT`).
    pub redirect: Option<String>,
    /// By which recipients are known (`OFFSTAGE_RECIPIENT_KEY`); no mail is sent without.
    pub recipient_key: Option<RecipientKey>,
}

/// The key by which recipients are known, the same for both programs.
pub(super) fn recipient_key(reader: &mut Reader<'_>) -> Option<RecipientKey> {
    let text = reader.optional("OFFSTAGE_RECIPIENT_KEY")?;
    let key = RecipientKey::read(text);
    if key.is_none() {
        reader.problem("OFFSTAGE_RECIPIENT_KEY", "is not a key; write 32 to 64 random bytes in base64, as `openssl rand -base64 32` does");
    }
    key
}

impl Mail {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut mail = Self::default();
        for (name, value) in reader.beginning_with(SERVER_VARIABLE).collect::<Vec<_>>() {
            match SmtpServer::read(value) {
                Ok(server) => _ = mail.servers.insert(name.to_owned(), server),
                Err(detail) => reader.problem(name, detail),
            }
        }
        for (name, value) in reader.beginning_with(DKIM_VARIABLE).collect::<Vec<_>>() {
            match DkimKey::read(value) {
                Some(key) => _ = mail.dkim.insert(name.to_owned(), Arc::new(key)),
                None => {
                    reader
                        .problem(name, "is no private key of RSA (2048 bits and up) or Ed25519; write its PEM, or the base64 of it alone");
                }
            }
        }
        if let Some(path) = reader.optional("OFFSTAGE_MAIL_CA_FILE") {
            match std::fs::read_to_string(path) {
                Ok(pem) if pem.contains("-----BEGIN CERTIFICATE-----") => mail.authorities = Some(pem),
                Ok(_) => reader.problem("OFFSTAGE_MAIL_CA_FILE", format!("{path} holds no certificate in PEM")),
                Err(error) => reader.problem("OFFSTAGE_MAIL_CA_FILE", format!("{path} can't be read: {error}")),
            }
        }
        mail.hello = reader.optional("OFFSTAGE_MAIL_HELLO").map(str::to_owned);
        if mail.hello.as_ref().is_some_and(|name| !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-[]:".contains(&byte))) {
            reader.problem("OFFSTAGE_MAIL_HELLO", "is not the name of a machine; write for example worker.example.com");
        }
        mail.redirect = reader.optional("OFFSTAGE_MAIL_REDIRECT").map(str::to_owned);
        if let Some(address) = &mail.redirect {
            if crate::mail::address(address).is_some() {
                reader.warn(format!("OFFSTAGE_MAIL_REDIRECT: every mail goes to {address}, none to whom it is for"));
            } else {
                reader.problem("OFFSTAGE_MAIL_REDIRECT", "is not one plain address; write for example staging@example.com");
            }
        }
        mail.recipient_key = recipient_key(reader);
        if mail.recipient_key.is_none() && !mail.servers.is_empty() {
            reader.warn("OFFSTAGE_RECIPIENT_KEY is not set: no mail is sent, since nobody can tell who wants none");
        }
        mail
    }
}
