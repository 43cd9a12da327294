//! How an export goes on where an earlier attempt stopped, instead of beginning anew.
//!
//! For CSV and JSON lines of one dataset whose manifest names a keyset: there rows follow one another, and the keys of the last
//! one say which come next. While parts arrive in object storage, the [`Trail`] saves up to where they did: the upload, the row, its
//! keys. The next attempt reads the rows behind those keys, from a snapshot of its own, and sends the parts that follow. The result
//! names each snapshot with its rows, since the file shows more than one moment then; a manifest that wants one moment names no keyset.
//!
//! What must stay true: nothing is saved that is not in the store for certain; nothing is gone on with that is not exactly what
//! was saved (the statement, its columns, the store's parts), else the file begins anew; two runs never write one upload unnoticed
//! ([`upload`](crate::clients::upload)).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{self, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    job::Failure,
    kinds::{ExportCreate, ExportFormat, Selected, Wanted},
    ledger::checkpoint::CHECKPOINT_LIMIT,
};

use super::{JobContext, draft::Draft};
use crate::clients::{
    source::{Column, Row},
    upload::Stop,
};

/// How often an attempt saves, at most.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Written into the checkpoint; another number is another program's.
const VERSION: u32 = 2;

/// What an attempt saves.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// The SHA-256 of the statement and its values: what was asked, to the letter.
    question: String,
    /// The SHA-256 of the columns' names and types: a thousand of them would not fit.
    columns: String,
    /// The keys' types, as a cast takes them.
    types: Vec<String>,
    place: Place,
    /// The moments whose rows the file has, with their rows.
    moments: Vec<Moment>,
}

/// The end of a part.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    stop: Stop,
    /// Rows up to there.
    rows: u64,
    /// The last row's keys.
    keys: Vec<String>,
}

/// Rows of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    pub(super) read_at: String,
    /// Rows of the file before this snapshot's.
    after_rows: u64,
}

/// Where an export is, and where an earlier attempt stopped.
pub(super) struct Trail {
    keyset: Vec<String>,
    question: String,
    earlier: Option<Saved>,
    /// The keys' places among the columns, once those are known.
    keys: Vec<usize>,
    columns: String,
    types: Vec<String>,
    /// The keys of the row before; none before the first.
    last: Vec<String>,
    moments: Vec<Moment>,
    /// Ends of parts that are not saved yet.
    ahead: VecDeque<Place>,
    saved: Option<Instant>,
}

impl Trail {
    /// The trail of an export that can be gone on with; looks for an earlier attempt's.
    pub(super) async fn find(payload: &ExportCreate, selected: &Selected<'_>, context: &JobContext) -> Result<Option<Self>, Failure> {
        let rows_follow = matches!(payload.format, ExportFormat::Csv | ExportFormat::Jsonl);
        if !rows_follow || selected.dataset.keyset.is_empty() || !matches!(payload.wanted(), Some(Wanted::Dataset(_))) {
            return Ok(None);
        }
        let question = json!([selected.dataset.sql_after(None), selected.values, payload]).to_string();
        let question = sha256(&question);
        let earlier = match context.saved().await? {
            Some(saved) => serde_json::from_value::<Saved>(saved).ok(),
            None => None,
        };
        let earlier = earlier.filter(|saved| saved.version == VERSION && saved.question == question);
        Ok(Some(Self {
            keyset: selected.dataset.keyset.clone(),
            question,
            earlier,
            keys: Vec::new(),
            columns: String::new(),
            types: Vec::new(),
            last: Vec::new(),
            moments: Vec::new(),
            ahead: VecDeque::new(),
            saved: None,
        }))
    }

    /// Where the earlier attempt's upload stopped.
    pub(super) fn stop(&self) -> Option<&Stop> {
        self.earlier.as_ref().map(|saved| &saved.place.stop)
    }

    /// The upload can't be gone on with: the file begins anew.
    pub(super) fn begin_anew(&mut self) {
        self.earlier = None;
    }

    /// Rows that the file has already.
    pub(super) fn rows(&self) -> u64 {
        self.earlier.as_ref().map_or(0, |saved| saved.place.rows)
    }

    /// The statement for the rows that are still to come, and its values.
    pub(super) fn statement(&self, selected: &Selected<'_>) -> (String, Vec<Option<String>>) {
        let Some(saved) = &self.earlier else { return (selected.dataset.sql_after(None), selected.values.clone()) };
        (selected.dataset.sql_after(Some(&saved.types)), Self::values(selected, saved))
    }

    /// A statement that tells how many rows have the keys where the earlier attempt stopped, up to two, and its values. Whether two
    /// keys are the same is Postgres' to say: `1.0` is `1.00`, and for some types `ab` is `AB`.
    pub(super) fn twins(&self, selected: &Selected<'_>) -> Option<(String, Vec<Option<String>>)> {
        let saved = self.earlier.as_ref()?;
        Some((selected.dataset.sql_at(&saved.types), Self::values(selected, saved)))
    }

    fn values(selected: &Selected<'_>, saved: &Saved) -> Vec<Option<String>> {
        selected.values.iter().cloned().chain(saved.place.keys.iter().cloned().map(Some)).collect()
    }

    /// Takes note of the columns and the moment.
    pub(super) fn open(&mut self, dataset: &str, columns: &[Column], read_at: &str) -> Result<(), Failure> {
        self.columns = sha256(&json!(columns.iter().map(|column| (&column.name, &column.type_name)).collect::<Vec<_>>()).to_string());
        let place = |key: &String| {
            columns.iter().position(|column| column.name == *key).ok_or_else(|| {
                let message = format!("the dataset `{dataset}` names `{key}` in its keyset and has no such column; correct its manifest");
                Failure::permanent("keyset_unknown", message)
            })
        };
        self.keys = self.keyset.iter().map(place).collect::<Result<_, _>>()?;
        self.types = self.keys.iter().filter_map(|place| columns.get(*place)).map(|column| without_length(&column.type_name)).collect();
        if let Some(saved) = &self.earlier {
            if saved.columns != self.columns {
                let message = format!("the columns of the dataset `{dataset}` changed since the attempt before; the file begins anew");
                return Err(Failure::transient(BEGIN_ANEW, message));
            }
            self.moments.clone_from(&saved.moments);
            self.last.clone_from(&saved.place.keys);
        }
        self.moments.push(Moment { read_at: read_at.to_owned(), after_rows: self.rows() });
        Ok(())
    }

    /// Takes note of a row. A keyset that does not tell rows apart would lose some of them at a stop, so it is refused at once.
    pub(super) fn pass(&mut self, dataset: &str, number: u64, row: &Row) -> Result<(), Failure> {
        let mut same = self.last.len() == self.keys.len();
        self.last.resize(self.keys.len(), String::new());
        for (place, last) in self.keys.iter().zip(&mut self.last) {
            let Some(value) = row.cell(*place).ok().flatten() else {
                let message = format!(
                    "row {number} of the dataset `{dataset}` has NULL in a column of its keyset; leave such rows out, or name other columns in its manifest"
                );
                return Err(Failure::permanent("keyset_null", message));
            };
            if value != last.as_str() {
                same = false;
                last.clear();
                last.push_str(value);
            }
        }
        if same {
            let message = format!(
                "rows {} and {number} of the dataset `{dataset}` have the same keyset; name columns in its manifest that tell each row from all others",
                number - 1
            );
            return Err(Failure::permanent("keyset_not_unique", message));
        }
        Ok(())
    }

    /// A part was sent after so many rows: saves what has arrived meanwhile.
    pub(super) async fn sent(&mut self, draft: &mut Draft, rows: u64) -> Result<(), Failure> {
        if let Some(stop) = draft.stop() {
            self.ahead.push_back(Place { stop, rows, keys: self.last.clone() });
        }
        let confirmed = draft.confirmed()?;
        let arrived = self.ahead.iter().take_while(|place| place.stop.part <= confirmed).count();
        if arrived == 0 || self.saved.is_some_and(|saved| saved.elapsed() < SAVE_EVERY) {
            return Ok(());
        }
        let Some(place) = self.ahead.drain(..arrived).next_back() else { return Ok(()) };
        let saved = Saved {
            version: VERSION,
            question: self.question.clone(),
            columns: self.columns.clone(),
            types: self.types.clone(),
            moments: self.moments.clone(),
            place,
        };
        let state = serde_json::to_value(&saved).unwrap_or(Value::Null);
        // Keys of many kilobytes: then it can't be gone on with from here, which is no reason to fail.
        if state.to_string().len() <= CHECKPOINT_LIMIT {
            draft.save(&state, &saved.place.stop.key).await?;
        }
        self.saved = Some(Instant::now());
        Ok(())
    }

    /// The snapshots that the file of so many rows shows, with their rows.
    pub(super) fn snapshots(&self, rows: u64) -> Vec<Value> {
        let ends = self.moments.iter().skip(1).map(|moment| moment.after_rows).chain([rows]);
        let moments = self.moments.iter().zip(ends);
        moments.map(|(moment, end)| json!({"read_at": moment.read_at, "rows": end.saturating_sub(moment.after_rows)})).collect()
    }
}

/// The failure of an export whose keys don't tell its rows apart, found where it would go on.
pub(super) fn twins_found(dataset: &str) -> Failure {
    let message = format!(
        "more than one row of the dataset `{dataset}` has the same keyset, as Postgres compares them; name columns in its manifest that tell each row from all others"
    );
    Failure::permanent("keyset_not_unique", message)
}

fn sha256(text: &str) -> String {
    hex::encode(digest::digest(&SHA256, text.as_bytes()).as_ref())
}

/// A type as a cast takes it without cutting the value: alone, `character` and `bit` are of length 1.
fn without_length(kind: &str) -> String {
    let (element, array) = kind.strip_suffix("[]").map_or((kind, ""), |element| (element, "[]"));
    let element = match element {
        "character" => "bpchar",
        "bit" => "bit varying",
        other => other,
    };
    format!("{element}{array}")
}

/// The code of a failure after which the file begins anew.
pub(super) const BEGIN_ANEW: &str = "dataset_changed";
