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
