//! The log and the metrics of a process.
//!
//! Log lines are for people who ask why; figures are for machines that watch. Neither ever carries a body, a payload or a
//! secret. Metric names begin with `offstage_`, end with their unit (`_seconds`, `_bytes`, `_total` for counts), and
//! their labels have few values: never an id, an owner or a path that a caller can make up.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Log, LogFormat};

/// The log or the metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be read; settings are checked before, so this is a mistake of ours.
    #[error("OFFSTAGE_LOG is not a filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A log was set up already in this process.
    #[error("the log runs already")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    /// Metrics were set up already in this process.
    #[error("the metrics could not be set up")]
    Metrics(#[from] BuildError),
}

/// Starts the process' log on standard error, which leaves standard output to what a command was asked for.
///
/// # Errors
/// Where a log was started before, or the filter can't be read.
pub fn start_log(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&log.filter)?;
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
            registry.with(lines.with_writer(std::io::stderr)).try_init()?;
        }
        LogFormat::Text => {
            let lines = tracing_subscriber::fmt::layer().with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            registry.with(lines.with_writer(std::io::stderr)).try_init()?;
        }
    }
    Ok(())
}

/// Bounds of histograms in seconds: from a database's answer to an hour's export, three steps a decade (near 1, 2, 5).
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 900.0, 3_600.0];

/// Bounds of histograms in bytes, fourfold steps from 256 B to 4 GiB.
const BYTES: &[f64] = &[
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
    4_294_967_296.0,
];

/// Bounds of histograms of anything else: batch sizes, counts.
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0];

/// How often histograms fold what they buffered. Without it they would grow for as long as nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// The process' figures.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Starts recording for the `metrics` macros of the whole process. Needs a Tokio runtime, for the upkeep.
    ///
    /// # Errors
    /// Where a recorder was installed before.
    pub fn start(program: &'static str) -> Result<Self, TelemetryError> {
        let handle = PrometheusBuilder::new()
            .set_buckets(COUNTS)?
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), BYTES)?
            .install_recorder()?;
        metrics::gauge!("offstage_build_info", "program" => program, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let upkeep = handle.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self { handle })
    }

    /// The `Content-Type` of [`Metrics::render`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// All figures in Prometheus' text format
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn figures_are_rendered_with_their_bounds() {
        let metrics = Metrics::start("test").unwrap();
        metrics::histogram!("offstage_test_duration_seconds", "route" => "/v1/jobs").record(0.003);
        metrics::counter!("offstage_test_total").increment(2);
        let text = metrics.render();
        assert!(text.contains("offstage_build_info{program=\"test\",version=\"0.1.0\"} 1"), "{text}");
        assert!(text.contains("offstage_test_duration_seconds_bucket{route=\"/v1/jobs\",le=\"0.002\"} 0"), "{text}");
        assert!(text.contains("offstage_test_duration_seconds_bucket{route=\"/v1/jobs\",le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("offstage_test_total 2"), "{text}");
        assert!(Metrics::start("test").is_err(), "one recorder a process");
    }
}
