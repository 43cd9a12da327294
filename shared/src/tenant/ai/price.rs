//! `[[ai.prices]]`: what models cost, by date. Data: a product writes down what its contracts say.
//!
//! ```toml
//! [[ai.prices]]
//! provider = "main"                     # as in [ai.providers.NAME]; all of them when absent
//! model = "gpt-5-mini"
//! valid_from = "2026-01-01"             # UTC; since ever when absent
//! input = 250_000                       # millionths of the currency for a million tokens of questions
//! output = 2_000_000                    # and of answers
//! ```
//!
//! What must stay true: a model without a price costs nobody knows what, which is not nothing, so a manifest that limits cost has a price for
//! each model that its tasks ask; a price holds for calls of its time, so that what was
//! charged stays as it was when prices change.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Serialize};

use crate::usage;

/// The most prices of a product.
pub(super) const MOST: usize = 1_000;

/// The highest price: a million of the currency for a million tokens.
const HIGHEST: u64 = 1_000_000_000_000;

/// Tokens that a price is for.
const PER: u128 = 1_000_000;

/// A price, as it is written and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PriceDeclaration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_from: Option<String>,
    input: u64,
    output: u64,
}

impl PriceDeclaration {
    pub(super) fn check(&self, is_provider: impl Fn(&str) -> bool) -> Result<Price, String> {
        if let Some(provider) = self.provider.as_ref().filter(|provider| !is_provider(provider)) {
            return Err(format!("there is no provider `{provider}`; declare it as [ai.providers.{provider}], or leave `provider` out"));
        }
        if self.model.is_empty() || self.model.len() > 200 {
            return Err("`model` must have 1 to 200 characters".to_owned());
        }
        if self.input > HIGHEST || self.output > HIGHEST {
            return Err(format!("is more than {HIGHEST}; prices are millionths of the currency for a million tokens"));
        }
        let valid_from = match self.valid_from.as_deref().map(str::parse::<NaiveDate>) {
            None => DateTime::<Utc>::MIN_UTC,
            Some(Ok(date)) => date.and_time(NaiveTime::MIN).and_utc(),
            Some(Err(_)) => return Err("`valid_from` must be a date; write for example \"2026-01-01\"".to_owned()),
        };
        Ok(Price { provider: self.provider.clone(), model: self.model.clone(), valid_from, input: self.input, output: self.output })
    }
}

/// A price from some time on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The provider's name in the manifest; any when absent.
    pub provider: Option<String>,
    /// The model.
    pub model: String,
    /// From when on it holds.
    pub valid_from: DateTime<Utc>,
    /// Millionths of the currency for a million tokens of questions.
    pub input: u64,
    /// And of answers.
    pub output: u64,
}

impl Price {
    /// What so many tokens cost, in millionths of the currency, rounded up; [`usage::MOST`] at the most.
    #[must_use]
    pub fn of(&self, input_tokens: u64, output_tokens: u64) -> u64 {
        let cost = u128::from(input_tokens) * u128::from(self.input) + u128::from(output_tokens) * u128::from(self.output);
        u64::try_from(cost.div_ceil(PER)).unwrap_or(u64::MAX).min(usage::MOST)
    }
}

/// The price of a model at a time: the latest that holds, one that names the provider before one that names none. Before the first date the
/// first one holds, so that a model has either always a price or never.
pub(super) fn find<'a>(prices: &'a [Price], provider: &str, model: &str, at: DateTime<Utc>) -> Option<&'a Price> {
    let is_of = |price: &&Price| price.model == model && price.provider.as_deref().is_none_or(|named| named == provider);
    let held = prices.iter().filter(is_of).filter(|price| price.valid_from <= at);
    held.max_by_key(|price| (price.provider.is_some(), price.valid_from))
        .or_else(|| prices.iter().filter(is_of).min_by_key(|price| (price.valid_from, price.provider.is_none())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::Manifest;

    const MANIFEST: &str = r#"
        [tenant]
        name = "a"
        [ai.providers.main]
        kind = "openai"
        [[ai.prices]]
        model = "small"
        input = 100_000
        output = 400_000
        [[ai.prices]]
        model = "small"
        valid_from = "2026-07-01"
        input = 50_000
        output = 200_000
        [[ai.prices]]
        provider = "main"
        model = "small"
        valid_from = "2026-03-01"
        input = 90_000
        output = 300_000
    "#;

    #[test]
    fn a_price_holds_from_its_date_on_and_the_providers_own_goes_first() {
        let ai = Manifest::from_toml(MANIFEST).unwrap().ai;
        let of = |provider: &str, model: &str, date: &str| ai.price(provider, model, date.parse().unwrap()).map(|price| price.input);
        assert_eq!(of("other", "small", "2020-01-01T00:00:00Z"), Some(100_000));
        assert_eq!(of("other", "small", "2026-06-30T23:59:59Z"), Some(100_000));
        assert_eq!(of("other", "small", "2026-07-01T00:00:00Z"), Some(50_000));
        assert_eq!(of("main", "small", "2026-02-28T00:00:00Z"), Some(100_000));
        assert_eq!(of("main", "small", "2026-08-01T00:00:00Z"), Some(90_000));
        assert_eq!(of("main", "large", "2026-08-01T00:00:00Z"), None);
        let later = MANIFEST.replacen(
            "input = 100_000\n        output = 400_000",
            "valid_from = \"2026-02-01\"\n        input = 1\n        output = 1",
            1,
        );
        let ai = Manifest::from_toml(&later).unwrap().ai;
        assert_eq!(ai.price("other", "small", "2020-01-01T00:00:00Z".parse().unwrap()).unwrap().input, 1, "before the first date");
    }

    #[test]
    fn costs_are_rounded_up_and_never_overflow() {
        let price = Price { provider: None, model: "m".into(), valid_from: DateTime::UNIX_EPOCH, input: 250_000, output: 2_000_000 };
        assert_eq!((price.of(0, 0), price.of(1, 0), price.of(1_000, 500), price.of(1_000_000, 1_000_000)), (0, 1, 1_250, 2_250_000));
        let dear = Price { input: HIGHEST, output: HIGHEST, ..price };
        assert_eq!(dear.of(u64::MAX, u64::MAX), usage::MOST);
    }

    /// A budget can't bound what nobody knows.
    #[test]
    fn where_cost_is_limited_each_model_has_a_price() {
        let task = "[ai.tasks.ask]\nmodels = [{ provider = \"main\", model = \"small\" }, { provider = \"main\", model = \"large\" }]\n\
                    prompt = \"x\"\ninput = { type = \"object\" }\n";
        let declared = |more: &str| Manifest::from_toml(&format!("{MANIFEST}\n{task}{more}"));
        for unbounded in ["", "[plans.free]\nlimits.ai_cost = { month = \"unlimited\" }\n"] {
            declared(unbounded).unwrap();
        }
        for budget in [
            "[usage]\nproduct.ai_cost = { month = 5 }\n",
            "[usage]\neach_user.ai_cost = { day = 5 }\n",
            "[plans.free]\nlimits.ai_cost = { month = 5 }\n",
        ] {
            let error = declared(budget).unwrap_err();
            let told: Vec<_> = error.problems.iter().map(|problem| (problem.path.as_str(), problem.detail.contains("`large`"))).collect();
            assert_eq!(told, [("ai.tasks.ask.models", true)], "{error}");
            let priced = format!("{budget}[[ai.prices]]\nmodel = \"large\"\nvalid_from = \"2999-01-01\"\ninput = 1\noutput = 1\n");
            declared(&priced).unwrap();
            // What was applied before goes on as it was.
            let stored = declared("").unwrap().to_stored();
            assert!(Manifest::from_stored(stored).is_ok());
        }
    }

    #[test]
    fn what_is_no_price_is_refused_by_its_line() {
        for (from, to) in [
            ("provider = \"main\"", "provider = \"other\""),
            ("valid_from = \"2026-03-01\"", "valid_from = \"March\""),
            ("input = 90_000", "input = 1_000_000_000_001"),
        ] {
            let error = Manifest::from_toml(&MANIFEST.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.problems.len(), 1, "{error}");
            assert!(error.problems[0].path.starts_with("ai.prices"), "{error}");
        }
    }
}
