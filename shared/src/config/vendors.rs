//! Other people's services that statistics come from: by which credentials they are asked, and where.

use std::collections::BTreeMap;

use secrecy::SecretString;
use url::Url;

use super::{stores, variables::Reader};
use crate::tenant::{CREDENTIAL_VARIABLE, Vendor};

/// What those who ask vendors need.
#[derive(Clone, Debug, Default)]
pub struct Vendors {
    /// Credentials by the variable that holds them (`OFFSTAGE_STATS_…`).
    pub credentials: BTreeMap<String, SecretString>,
    /// Where all vendors are played (`OFFSTAGE_VENDORS_URL`), for tests and for staging; they are asked at their own addresses without.
    pub played_at: Option<Url>,
}

impl Vendors {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut vendors = Self::default();
        for (name, value) in reader.beginning_with(CREDENTIAL_VARIABLE).collect::<Vec<_>>() {
            if !Vendor::ALL.iter().any(|vendor| name.starts_with(vendor.credential_prefix())) {
                let known: Vec<_> = Vendor::ALL.iter().map(|vendor| vendor.credential_prefix()).collect();
                reader.problem(name, format!("is no vendor's credential; those begin with {}", known.join(", ")));
                continue;
            }
            // It becomes a header.
            if value.bytes().all(|byte| byte.is_ascii_graphic()) {
                vendors.credentials.insert(name.to_owned(), SecretString::from(value));
            } else {
                reader.problem(name, "is not a credential: it has spaces, line ends or other than ASCII characters");
            }
        }
        vendors.played_at = stores::endpoint(reader, "OFFSTAGE_VENDORS_URL");
        if vendors.played_at.is_some() {
            reader.warn("OFFSTAGE_VENDORS_URL is set: statistics come from there and not from their vendors");
        }
        vendors
    }
}
