//! Datasets that every product has, of what Offstage itself keeps for it. One that a manifest declares under the same name goes before.
//!
//! What must stay true: each reads the rows of one product alone, by `current_tenant()`, which whoever opens the source sets and no caller
//! can; of a user's it reads that user's.

use std::{collections::BTreeMap, sync::LazyLock};

use super::{Audience, Dataset, Origin, Parameter, ParameterType};

/// The source of these: Offstage's own database. No manifest can give a source this name.
pub const OWN_SOURCE: &str = "(offstage)";

/// By day and model (R15, R46), in the order of the days.
const AI_USAGE: &str = "
SELECT day, provider, model, credential, calls, answered, estimated AS estimated_calls, input_tokens, output_tokens,
       unpriced AS unpriced_calls, CASE WHEN unpriced < calls THEN (cost / 1000000.0)::numeric(20, 6) END AS cost
FROM ai_usage_day
WHERE tenant_id = current_tenant() AND scope = :owner AND day >= :since AND day <= :until
ORDER BY day, provider, model, credential";

static BUILT_IN: LazyLock<BTreeMap<&'static str, Dataset>> = LazyLock::new(|| {
    let days = |with_owner: bool| {
        let day = |first: &str| Parameter { kind: ParameterType::Date, origin: Origin::Default(first.to_owned()) };
        let owner = with_owner.then(|| ("owner".to_owned(), Parameter { kind: ParameterType::Text, origin: Origin::Owner }));
        let days = [("since".to_owned(), day("1970-01-01")), ("until".to_owned(), day("9999-12-31"))];
        days.into_iter().chain(owner).collect::<BTreeMap<_, _>>()
    };
    let of = |description: &str, audience, with_owner, sql: &str| {
        Dataset::new(OWN_SOURCE.to_owned(), description.to_owned(), audience, days(with_owner), sql).ok()
    };
    let own = of("What models were used for, by day: a user's.", Audience::Users, true, AI_USAGE);
    let all = AI_USAGE.replace(":owner", "''");
    let all = of("What models were used for, by day: the product's as a whole.", Audience::Backend, false, &all);
    [("ai_usage", own), ("all_ai_usage", all)].into_iter().filter_map(|(name, dataset)| Some((name, dataset?))).collect()
});

/// A dataset that every product has.
#[must_use]
pub fn built_in(name: &str) -> Option<(&'static str, &'static Dataset)> {
    BUILT_IN.get_key_value(name).map(|(name, dataset)| (*name, dataset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_can_be_read() {
        assert_eq!(BUILT_IN.len(), 2);
        let (_, own) = built_in("ai_usage").unwrap();
        assert!(own.is_open_to(Some("ada")) && own.bind(&serde_json::Map::new(), None).is_err());
        assert_eq!(own.bind(&serde_json::Map::new(), Some("ada")).unwrap().len(), 3);
        let (_, all) = built_in("all_ai_usage").unwrap();
        assert!(!all.is_open_to(Some("ada")) && all.bind(&serde_json::Map::new(), None).unwrap().len() == 2);
    }
}
