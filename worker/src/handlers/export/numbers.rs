//! Tables of metrics: a row a period and group, of the numbers that the reading doors show.
//!
//! What must stay true: all tables of a file are of one snapshot; what is held is what one answer may be made of (32 MiB read, 51 groups of
//! 2,000 periods), a table at a time.

use std::{sync::atomic::Ordering, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use shared::{
    analytics::{Period, Span, State, range::Group, state::Aggregate},
    job::Failure,
    kinds::{Numbers, NumbersTable, Violation},
    ledger::{
        LedgerError,
        rollups::{
            ask::{Asked, look},
            read::ReadError,
        },
    },
};

use super::{Document, Draft, JobContext, format::Cells, progress::Progress, unwritable};
use crate::clients::source::{Column, NotText, Shape};

/// For how long it waits while others compute.
const TURN_WITHIN: Duration = Duration::from_secs(60);

/// Columns that each table begins with; dimensions follow, then what the events come to.
const WHEN: [&str; 2] = ["at", "local"];
const AFTER: [&str; 3] = ["other", "value", "count"];

/// Writes the tables. Answers whether events from before their metrics were declared are all counted.
pub(super) async fn write(
    numbers: &Numbers<'_>,
    context: &JobContext,
    document: &mut Document,
    draft: &mut Draft,
    progress: &Progress,
) -> Result<bool, Failure> {
    let now = context.services.clock.now();
    let span = numbers.span(now).map_err(|violation| refused("span", &[violation]))?;
    let mut transaction =
        context.services.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(LedgerError::from)?;
    let mut is_whole = true;
    for table in &numbers.tables {
        let asked = Asked {
            tenant: context.job.tenant,
            metric: table.metric,
            group_by: &table.group_by,
            top: table.top,
            span: &span,
            user: context.job.owner.as_deref(),
        };
        let of_read = |error| of_read(&table.name, error);
        let turn = context.services.turns.take(TURN_WITHIN).await.map_err(of_read)?;
        let found = look(&mut transaction, &asked).await.map_err(of_read)?.found(turn, |found| found).await.map_err(of_read)?;
        is_whole &= found.is_whole;
        rows(table, &span, &found.groups, now, document, draft, progress).await?;
    }
    Ok(is_whole)
}

async fn rows(
    table: &NumbersTable<'_>,
    span: &Span,
    groups: &[Group],
    read_at: DateTime<Utc>,
    document: &mut Document,
    draft: &mut Draft,
    progress: &Progress,
) -> Result<(), Failure> {
    let name = table.name.as_str();
    let failed = |row: u64| move |error| unwritable(name, row, &error);
    let columns = columns(table);
    let read_at = read_at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    document.begin(name, &columns, &read_at, draft.buffer()).map_err(failed(0))?;
    let mut written = 0;
    for group in groups {
        for (period, state) in span.periods.iter().zip(&group.periods) {
            written += 1;
            document.row(&row(table, span, group, period, state), draft.buffer()).map_err(failed(written))?;
            progress.done.fetch_add(1, Ordering::Relaxed);
        }
        draft.send_if_full().await?;
    }
    document.end(draft.buffer()).map_err(failed(written))
}

fn columns(table: &NumbersTable<'_>) -> Vec<Column> {
    let column = |name: &str, type_name: &str, shape: Shape| Column { name: name.to_owned(), type_name: type_name.to_owned(), shape };
    let mut columns = vec![column("at", "timestamptz", Shape::TimestampWithZone), column("local", "timestamp", Shape::Timestamp)];
    for dimension in &table.group_by {
        let is_ours = WHEN.iter().chain(&AFTER).any(|own| own == dimension) || percentile_names(table).any(|own| own == dimension);
        let name = if is_ours { format!("dimension_{dimension}") } else { dimension.clone() };
        columns.push(column(&name, "text", Shape::Text));
    }
    if !table.group_by.is_empty() {
        columns.push(column("other", "bool", Shape::Boolean));
    }
    columns.push(column("value", "float8", Shape::Float));
    columns.push(column("count", "int8", Shape::Integer));
    columns.extend(percentile_names(table).map(|name| column(name, "float8", Shape::Float)));
    columns
}

/// The columns that percentiles have beside their median.
fn percentile_names(table: &NumbersTable<'_>) -> impl Iterator<Item = &'static str> {
    let is_of_percentiles = table.metric.aggregate() == Aggregate::Percentiles;
    shared::analytics::state::percentile_names().filter(move |_| is_of_percentiles)
}

/// The cells of a row, in Postgres' text form.
struct Texts(Vec<Option<String>>);

impl Cells for Texts {
    fn cell(&self, index: usize) -> Result<Option<&str>, NotText> {
        self.0.get(index).map(Option::as_deref).ok_or(NotText)
    }
}

fn row(table: &NumbersTable<'_>, span: &Span, group: &Group, period: &Period, state: &State) -> Texts {
    let local = span.zone.local(period.start).naive_local();
    let mut cells = vec![Some(period.start.format("%F %T+00").to_string()), Some(local.format("%F %T").to_string())];
    if !table.group_by.is_empty() {
        let labels = group.labels.as_ref().map(|labels| labels.0.as_slice()).unwrap_or_default();
        cells.extend((0..table.group_by.len()).map(|place| labels.get(place).cloned().flatten()));
        cells.push(Some(if group.labels.is_none() { "t" } else { "f" }.to_owned()));
    }
    cells.push(state.value(table.metric.aggregate()).map(|value| value.to_string()));
    cells.push(Some(state.count().to_string()));
    let percentiles = state.percentiles();
    cells.extend(percentile_names(table).map(|name| percentiles.as_ref()?.get(name).map(f64::to_string)));
    Texts(cells)
}

/// What was asked for can't be read any more, or not at this time.
pub(super) fn refused(name: &str, violations: &[Violation]) -> Failure {
    let details: Vec<_> = violations.iter().map(|violation| format!("{} {}", violation.pointer, violation.detail)).collect();
    Failure::permanent("params_invalid", format!("`{name}` can't be read like this (any more): {}", details.join("; ")))
}

fn of_read(name: &str, error: ReadError) -> Failure {
    match error {
        ReadError::Ledger(error) => error.into(),
        ReadError::Behind | ReadError::Busy => Failure::transient(
            "metric_behind",
            format!("`{name}` can't be read now, since more is added than is put together; it is tried again"),
        )
        .caused_by(&error),
        ReadError::TooMuch => Failure::permanent(
            "metric_too_large",
            format!("`{name}` has more groups in this span than can be added up; ask for a shorter one, or for fewer dimensions"),
        ),
    }
}
