//! Calls of models: the product's keys.

use std::{collections::BTreeMap, fmt};

use secrecy::SecretString;

use super::variables::Reader;
use crate::tenant::AI_VARIABLE;

/// What the client of models needs.
#[derive(Clone, Default)]
pub struct Ai {
    /// Keys by the variable that holds them (`OFFSTAGE_AI_…`), which manifests refer to.
    pub keys: BTreeMap<String, SecretString>,
}

impl fmt::Debug for Ai {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl Ai {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut keys = BTreeMap::new();
        for (name, value) in reader.beginning_with(AI_VARIABLE).collect::<Vec<_>>() {
            // It goes into a header, where nothing else can stand (RFC 9110, section 5.5).
            if value.len() <= 1_000 && value.bytes().all(|byte| byte.is_ascii_graphic()) {
                keys.insert(name.to_owned(), SecretString::from(value));
            } else {
                reader.problem(name, "is not a provider's key: at most 1000 visible ASCII characters, without spaces");
            }
        }
        Self { keys }
    }
}
