//! What people read: lines, columns and a bar. Programs read JSON as the API wrote it.

use serde_json::Value;

/// The width of a bar, in characters.
const WIDTH: u64 = 30;

/// A field's text; nothing where there is none.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Whether nothing more happens to a job by itself.
pub fn has_ended(job: &Value) -> bool {
    matches!(text(job, "state"), "succeeded" | "failed" | "cancelled" | "expired")
}

/// What terminals take for commands is left out of what others wrote.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// One line on how a job stands.
pub fn job(job: &Value) -> String {
    let mut line = format!("{}  {}  {}", text(job, "id"), text(job, "state"), plain(text(job, "kind")));
    if let Some(reason) = job.get("reason").and_then(Value::as_str) {
        line = format!("{line}  ({reason})");
    }
    if let Some(error) = job.get("error").filter(|error| error.is_object()) {
        line = format!("{line}  {}: {}", plain(text(error, "code")), plain(text(error, "message")));
    }
    line
}

/// How far a job is, in one line.
pub fn bar(job: &Value) -> String {
    let state = text(job, "state");
    let number = |field: &str| job.get("progress").and_then(|progress| progress.get(field)).and_then(Value::as_u64);
    match (number("done"), number("total")) {
        _ if has_ended(job) => self::job(job),
        (Some(done), Some(total)) if total > 0 => {
            let filled = (done.min(total) * WIDTH / total).min(WIDTH);
            let bar: String = (0..WIDTH).map(|place| if place < filled { '#' } else { '-' }).collect();
            format!("{state} [{bar}] {}% {done}/{total}", done.min(total) * 100 / total)
        }
        (Some(done), _) => format!("{state} {done}"),
        _ => match job.get("reason").and_then(Value::as_str) {
            Some(reason) => format!("{state} ({reason})"),
            None => state.to_owned(),
        },
    }
}

/// One line on a schedule.
pub fn schedule(schedule: &Value) -> String {
    let paused = if schedule.get("paused").is_some_and(Value::is_object) { "paused" } else { "on" };
    let next = schedule.get("next_due_at").and_then(Value::as_str).unwrap_or("-");
    format!("{}  {}  {paused}  next {next}  {}", text(schedule, "id"), plain(text(schedule, "name")), plain(text(schedule, "kind")))
}

/// One line on a queue.
pub fn queue(queue: &Value) -> String {
    let number = |field: &str| queue.get(field).and_then(Value::as_i64).unwrap_or_default();
    let mut line = format!("{}  {} workers  {} waiting", text(queue, "queue"), number("workers"), number("waiting"));
    for pause in queue.get("pauses").and_then(Value::as_array).into_iter().flatten() {
        let what = pause.get("kind").and_then(Value::as_str).map(|kind| format!(" of {kind}")).unwrap_or_default();
        line = format!("{line}  paused{what} by {}: {}", plain(text(pause, "by")), plain(text(pause, "reason")));
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bars_tell_how_far_it_is() {
        let running = |done: u64, total: Option<u64>| json!({"state": "running", "progress": {"done": done, "total": total}});
        assert_eq!(bar(&running(5, Some(10))), "running [###############---------------] 50% 5/10");
        assert_eq!(bar(&running(50, Some(10))), "running [##############################] 100% 50/10");
        assert_eq!((bar(&running(5, None)), bar(&running(0, Some(0)))), ("running 5".to_owned(), "running 0".to_owned()));
        assert_eq!(bar(&json!({"state": "waiting", "reason": "not_due"})), "waiting (not_due)");
        let failed = json!({"id": "1", "state": "failed", "kind": "a.b", "error": {"code": "c", "message": "no\u{1b}[2J"}});
        assert_eq!(bar(&failed), "1  failed  a.b  c: no [2J");
    }
}
