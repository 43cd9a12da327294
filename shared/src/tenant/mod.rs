//! Tenants: the products that share an installation. Each is data, not code: a manifest, applied by the operator, read by
//! the API (may this be asked for?) and by workers (how is it done?).
//!
//! What must stay true: a manifest in the database was checked when it was applied and is checked again when it is read;
//! it holds no secret; and a statement of the API sees one tenant's rows, because it runs in [`transaction`].

mod admission;
mod ai;
mod breaker;
mod completion;
mod dataset;
mod mail;
mod manifest;
mod metric;
mod notification;
mod plan;
mod retention;
mod statistic;
mod store;
mod summary;
mod usage;
mod user;
mod web;

pub use admission::NotEnabled;
#[cfg(test)]
pub(crate) use ai::longest_run as ai_longest_run;
pub use ai::{AI_VARIABLE, Ai, Cache, Gate, Level, Levels, ModelChoice, Price as AiPrice, Provider, ProviderKind, Rule, Schema, Task};
pub use breaker::BreakerSettings;
pub use completion::{Completion, Destination, KEY_VARIABLE};
pub use dataset::{Audience, Dataset, OWN_SOURCE, Origin, Parameter, ParameterType, Source};
pub use mail::{DkimDeclaration, MailDeclaration, Sender};
pub use manifest::{Manifest, ManifestError, ManifestProblem};
pub use metric::{EventsDeclaration, MOST_METRICS, MOST_TOP, Metric, Panel, TOP, View};
pub use notification::{Digest, EXPORT_FAILED, EXPORT_READY, NotificationType, Texts, Throttle, Way, text_for};
pub use plan::{Limit, Period, Plan, Price, Unlimited};
pub use retention::{Keep, Retention};
pub use statistic::{About, CREDENTIAL_VARIABLE, MOST_STATISTICS, StatisticSource, Vendor};
pub use store::{
    Applied, Change, Tenant, TenantError, Tenants, apply, find_by_name, has_provider, lookup, names, provider_names, transaction,
};
pub use summary::{LONGEST_TIMEOUT, Refreshed, Summary};
pub use usage::Usage;
pub use user::check_user;
pub use web::Web;
