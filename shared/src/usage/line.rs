//! Which counters a charge counts in, and what their limits are: by the manifest and by the plans of the user. No I/O.

use chrono::{DateTime, Utc};

use super::{Charge, PRODUCT, Span};
use crate::tenant::{Manifest, Period};

/// Where a user stands: what the ledger knows of their plans.
#[derive(Debug, Clone, Copy, Default)]
pub struct Standing<'a> {
    /// Whose it is; `None`: the backend's own, which no plan limits.
    pub owner: Option<&'a str>,
    /// The plan that they were put on.
    pub plan: Option<&'a str>,
    /// Plans that were added to it.
    pub add_ons: &'a [String],
}

/// One counter that a charge counts in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The metric.
    pub metric: String,
    /// Whose counter: a user's, or [`PRODUCT`].
    pub scope: String,
    /// How much.
    pub amount: u64,
    /// See [`Charge::incurred`].
    pub incurred: bool,
    /// The period.
    pub period: Period,
    /// Which one of them.
    pub span: Span,
    /// The most that the counter may come to; `None`: no limit.
    pub limit: Option<u64>,
}

impl Standing<'_> {
    /// The limit of a metric for this user over a period, where there is one.
    ///
    /// An add-on that says something of a metric says it in the place of the plan; of several the most generous counts. What the product
    /// allows each user bounds all of them.
    #[must_use]
    pub fn limit(&self, manifest: &Manifest, metric: &str, period: Period) -> Option<u64> {
        // The backend's own work is limited for the product as a whole, and not as a user's.
        self.owner?;
        let add_ons = self.add_ons.iter().filter_map(|name| manifest.plans.get(name)).filter(|plan| plan.limits.contains_key(metric));
        let of_add_ons: Vec<Option<u64>> = add_ons.map(|plan| plan.limit(metric, period)).collect();
        let of_plans = match of_add_ons.as_slice() {
            [] => manifest.plan_of(self.plan).and_then(|(_, plan)| plan.limit(metric, period)),
            // No limit in one of them is none in all.
            several => several.iter().copied().collect::<Option<Vec<u64>>>().and_then(|limits| limits.into_iter().max()),
        };
        let of_each_user = manifest.usage.of_each_user(metric, period);
        of_plans.into_iter().chain(of_each_user).min()
    }
}

/// The counters of some charges, a user's before the product's and the shortest period first, so that whoever is refused learns what is
/// free again soonest.
///
/// A user's metric is counted over each period that any plan limits, so that who changes plans has used what they have used.
#[must_use]
pub fn lines(manifest: &Manifest, standing: &Standing<'_>, charges: &[Charge], now: DateTime<Utc>) -> Vec<Line> {
    let zone = manifest.usage.zone();
    let mut lines = Vec::new();
    for charge in charges {
        let line = |scope: &str, period, limit| Line {
            metric: charge.metric.clone(),
            scope: scope.to_owned(),
            amount: charge.amount,
            incurred: charge.incurred,
            period,
            span: Span::of(period, &zone, now),
            limit,
        };
        if let Some(owner) = standing.owner {
            let periods = manifest.periods_of(&charge.metric);
            lines.extend(periods.into_iter().map(|period| line(owner, period, standing.limit(manifest, &charge.metric, period))));
        }
        lines.extend(manifest.usage.of_product(&charge.metric).map(|(period, limit)| line(PRODUCT, period, limit)));
    }
    lines
}

/// When what is counted now may be forgotten: when the month is over.
pub(super) fn until(manifest: &Manifest, now: DateTime<Utc>) -> DateTime<Utc> {
    Span::of(Period::Month, &manifest.usage.zone(), now).ends_at.unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [tenant]
        name = "shop"
        [plans.free]
        limits.calls = { hour = 10, month = 50 }
        [plans.pro]
        limits.calls = { month = 1_000 }
        limits.ai_cost = { day = 500 }
        [plans.all]
        limits.calls = { month = "unlimited" }
        [plans.small_pack]
        limits.calls = { month = 50 }
        [plans.large_pack]
        limits.calls = { month = 200 }
        [usage]
        default_plan = "free"
        product.ai_cost = { month = 10_000 }
        each_user.ai_cost = { day = 400, month = 900 }
    "#;

    fn limits(plan: Option<&str>, add_ons: &[&str], owner: Option<&str>, metric: &str) -> Vec<(String, &'static str, Option<u64>)> {
        let manifest = Manifest::from_toml(MANIFEST).unwrap();
        let add_ons: Vec<String> = add_ons.iter().map(|name| (*name).to_owned()).collect();
        let standing = Standing { owner, plan, add_ons: &add_ons };
        let lines = lines(&manifest, &standing, &[Charge::of(metric, 1)], DateTime::UNIX_EPOCH);
        lines.into_iter().map(|line| (line.scope, line.period.word(), line.limit)).collect()
    }

    fn of_ada(limits: &[(&'static str, Option<u64>)]) -> Vec<(String, &'static str, Option<u64>)> {
        limits.iter().map(|(period, limit)| ("ada".to_owned(), *period, *limit)).collect()
    }

    #[test]
    fn a_plan_limits_and_every_period_that_some_plan_limits_is_counted() {
        assert_eq!(limits(None, &[], Some("ada"), "calls"), of_ada(&[("hour", Some(10)), ("month", Some(50))]));
        assert_eq!(limits(Some("pro"), &[], Some("ada"), "calls"), of_ada(&[("hour", None), ("month", Some(1_000))]));
        assert_eq!(limits(Some("all"), &[], Some("ada"), "calls"), of_ada(&[("hour", None), ("month", None)]));
        // A plan that is not in the manifest any more is none.
        assert_eq!(limits(Some("gone"), &[], Some("ada"), "calls"), limits(None, &[], Some("ada"), "calls"));
        // Nobody limits it; it is counted all the same.
        assert_eq!(limits(None, &[], Some("ada"), "other"), of_ada(&[("month", None)]));
    }

    #[test]
    fn an_add_on_takes_the_place_of_the_plan_in_what_it_names() {
        assert_eq!(limits(None, &["small_pack"], Some("ada"), "calls"), of_ada(&[("hour", None), ("month", Some(50))]));
        let both = limits(None, &["small_pack", "large_pack"], Some("ada"), "calls");
        assert_eq!(both, of_ada(&[("hour", None), ("month", Some(200))]));
        assert_eq!(limits(None, &["large_pack", "all"], Some("ada"), "calls"), of_ada(&[("hour", None), ("month", None)]));
        assert_eq!(limits(None, &["gone"], Some("ada"), "calls"), limits(None, &[], Some("ada"), "calls"));
    }

    #[test]
    fn budgets_bound_each_user_and_the_product() {
        let product = |period, limit| (PRODUCT.to_owned(), period, limit);
        let mut of_pro = of_ada(&[("day", Some(400)), ("month", Some(900))]);
        of_pro.push(product("month", Some(10_000)));
        assert_eq!(limits(Some("pro"), &[], Some("ada"), "ai_cost"), of_pro);
        // The backend's own work is no user's.
        assert_eq!(limits(None, &[], None, "ai_cost"), [product("month", Some(10_000))]);
        assert_eq!(limits(None, &[], None, "calls"), []);
    }
}
