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
//! What must stay true: a model without a price costs nobody knows what, which is not nothing; a price holds for calls of its time, so that what was
//! charged stays as it was when prices change.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Serialize};

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
    /// What so many tokens cost, in millionths of the currency, rounded up.
    #[must_use]
    pub fn of(&self, input_tokens: u64, output_tokens: u64) -> u64 {
        let cost = u128::from(input_tokens) * u128::from(self.input) + u128::from(output_tokens) * u128::from(self.output);
        u64::try_from(cost.div_ceil(PER)).unwrap_or(u64::MAX)
    }
}

/// The price of a model at a time: the latest that holds, one that names the provider before one that names none.
pub(super) fn find<'a>(prices: &'a [Price], provider: &str, model: &str, at: DateTime<Utc>) -> Option<&'a Price> {
    let of_model = prices.iter().filter(|price| price.model == model && price.valid_from <= at);
    of_model
        .filter(|price| price.provider.as_deref().is_none_or(|named| named == provider))
        .max_by_key(|price| (price.provider.is_some(), price.valid_from))
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
    }

    #[test]
    fn costs_are_rounded_up_and_never_overflow() {
        let price = Price { provider: None, model: "m".into(), valid_from: DateTime::UNIX_EPOCH, input: 250_000, output: 2_000_000 };
        assert_eq!((price.of(0, 0), price.of(1, 0), price.of(1_000, 500), price.of(1_000_000, 1_000_000)), (0, 1, 1_250, 2_250_000));
        let dear = Price { input: HIGHEST, output: HIGHEST, ..price };
        assert_eq!(dear.of(u64::MAX, u64::MAX), u64::MAX);
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
