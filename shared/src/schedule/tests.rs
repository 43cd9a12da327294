use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{kinds::Registry, tenant::Manifest};

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn definition(says: Value) -> Definition {
    serde_json::from_value(says).unwrap()
}

fn cron(expression: &str, zone: &str) -> Timing {
    definition(json!({"kind": "probe.run", "cron": expression, "time_zone": zone})).timing(at("2026-01-01T00:00:00Z")).unwrap()
}

fn wrong(expression: &str) -> String {
    definition(json!({"kind": "probe.run", "cron": expression})).timing(at("2026-01-01T00:00:00Z")).unwrap_err().remove(0).detail
}

/// The due times in (from, until], as UTC.
fn between(timing: &Timing, from: &str, until: &str) -> Vec<DateTime<Utc>> {
    let mut all = Vec::new();
    let mut after = at(from);
    while let Some(next) = timing.next(after).filter(|next| *next <= at(until)) {
        assert!(next > after, "{next} after {after}");
        all.push(next);
        after = next;
    }
    all
}

/// As `between`, as the zone's clock shows them.
fn shown(expression: &str, zone: &str, from: &str, until: &str) -> Vec<String> {
    let timing = cron(expression, zone);
    between(&timing, from, until).into_iter().map(|due| timing.local(due).format("%d %H:%M%:z").to_string()).collect()
}

const BERLIN: &str = "Europe/Berlin";
const NEW_YORK: &str = "America/New_York";
const LORD_HOWE: &str = "Australia/Lord_Howe";

#[test]
fn a_time_of_day_that_the_clock_skips_comes_just_after_the_gap() {
    // Berlin goes from 02:00 to 03:00 on 29 March 2026 at 01:00Z.
    let night = ("2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z");
    assert_eq!(shown("30 2 * * *", BERLIN, night.0, night.1), ["28 02:30+01:00", "29 03:00+02:00", "30 02:30+02:00"]);
    assert_eq!(
        shown("15,45 2 * * *", BERLIN, night.0, night.1),
        ["28 02:15+01:00", "28 02:45+01:00", "29 03:00+02:00", "30 02:15+02:00", "30 02:45+02:00"]
    );
    // Where it comes at that moment anyhow, it comes once.
    assert_eq!(shown("0 2,3 29 3 *", BERLIN, night.0, night.1), ["29 03:00+02:00"]);
    // Lord Howe goes from 02:00 to 02:30 on 4 October 2026 at 15:30Z of the third.
    let night = ("2026-10-02T14:00:00Z", "2026-10-05T12:00:00Z");
    assert_eq!(shown("10 2 * * *", LORD_HOWE, night.0, night.1), ["03 02:10+10:30", "04 02:30+11:00", "05 02:10+11:00"]);
    assert_eq!(shown("40 2 * * *", LORD_HOWE, night.0, night.1), ["03 02:40+10:30", "04 02:40+11:00", "05 02:40+11:00"]);
    // Samoa left 30 December 2011 out.
    assert_eq!(
        shown("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", "2011-12-31T12:00:00Z"),
        ["29 12:00-10:00", "31 00:00+14:00", "31 12:00+14:00"]
    );
}

#[test]
fn a_time_of_day_that_the_clock_shows_twice_comes_once_at_the_first() {
    // Berlin goes from 03:00 back to 02:00 on 25 October 2026 at 01:00Z.
    let night = ("2026-10-23T22:00:00Z", "2026-10-26T22:00:00Z");
    assert_eq!(shown("30 2 * * *", BERLIN, night.0, night.1), ["24 02:30+02:00", "25 02:30+02:00", "26 02:30+01:00"]);
    assert_eq!(
        shown("0,30 2,3 25 * *", BERLIN, night.0, night.1),
        ["25 02:00+02:00", "25 02:30+02:00", "25 03:00+01:00", "25 03:30+01:00"]
    );
    // From any moment of the second time round, the next one is the next day's.
    for minute in ["00", "10", "30", "59"] {
        let timing = cron("30 2 * * *", BERLIN);
        assert_eq!(timing.next(at(&format!("2026-10-25T01:{minute}:00Z"))), Some(at("2026-10-26T01:30:00Z")));
    }
    // Lord Howe goes from 02:00 back to 01:30 on 5 April 2026 at 15:00Z of the fourth.
    let night = ("2026-04-03T13:00:00Z", "2026-04-06T12:00:00Z");
    assert_eq!(shown("45 1 * * *", LORD_HOWE, night.0, night.1), ["04 01:45+11:00", "05 01:45+11:00", "06 01:45+10:30"]);
}

#[test]
fn what_follows_the_clock_runs_in_each_hour_that_passes() {
    let hours = |zone: &str, from: &str, until: &str| {
        let timing = cron("0 * * * *", zone);
        let due = between(&timing, from, until);
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::hours(1)), "{zone}: {due:?}");
        due.len()
    };
    for day in ["2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z", "2026-03-07T12:00:00Z", "2026-10-31T12:00:00Z"] {
        let until = (at(day) + TimeDelta::days(2)).to_rfc3339();
        assert_eq!((hours(BERLIN, day, &until), hours(NEW_YORK, day, &until)), (48, 48), "{day}");
    }
    // New York goes from 02:00 back to 01:00 on 1 November 2026 at 06:00Z: half past one comes twice.
    assert_eq!(
        shown("30 * * * *", NEW_YORK, "2026-11-01T05:00:00Z", "2026-11-01T08:00:00Z"),
        ["01 01:30-04:00", "01 01:30-05:00", "01 02:30-05:00"]
    );
    assert_eq!(shown("*/20 1 * * *", NEW_YORK, "2026-11-01T04:00:00Z", "2026-11-01T09:00:00Z").len(), 6);
    // On 8 March half past two does not come at all.
    assert_eq!(
        shown("30 * * * *", NEW_YORK, "2026-03-08T06:00:00Z", "2026-03-08T09:00:00Z"),
        ["08 01:30-05:00", "08 03:30-04:00", "08 04:30-04:00"]
    );
    assert_eq!(shown("*/20 2 * * *", NEW_YORK, "2026-03-08T00:00:00Z", "2026-03-09T00:00:00Z"), Vec::<String>::new());
    // Half an hour is put back, so a quarter to two comes twice and two o'clock once.
    assert_eq!(
        shown("*/15 1 * * *", LORD_HOWE, "2026-04-04T14:00:00Z", "2026-04-04T17:00:00Z"),
        ["05 01:15+11:00", "05 01:30+11:00", "05 01:45+11:00", "05 01:30+10:30", "05 01:45+10:30"]
    );
}

/// What the rules say, looked up minute by minute rather than searched.
fn by_the_rules(expression: &str, zone: &str, from: DateTime<Utc>, minutes: i64) -> Vec<DateTime<Utc>> {
    let zone = Zone::find(zone).unwrap();
    let pattern: croner::Cron = expression.parse().unwrap();
    let follows = expression.split(' ').take(2).any(|field| field.contains('*'));
    let names = |time: chrono::NaiveDateTime| {
        let time: jiff::civil::DateTime = time.format("%Y-%m-%dT%H:%M:%S").to_string().parse().unwrap();
        pattern.is_time_matching(&time).unwrap()
    };
    let mut due = Vec::new();
    let mut latest = zone.local(from - TimeDelta::days(2)).naive_local();
    for minute in -2 * 24 * 60..=minutes {
        let at = from + TimeDelta::minutes(minute);
        let now = zone.local(at).naive_local();
        // What this minute of the real world brings: the time that it shows; and, for times of day, all that were skipped before it, but
        // none that was shown before.
        let comes = if follows {
            names(now)
        } else {
            let mut skipped = latest + TimeDelta::minutes(1);
            let mut comes = false;
            while skipped <= now {
                comes |= names(skipped);
                skipped += TimeDelta::minutes(1);
            }
            comes
        };
        latest = latest.max(now);
        if comes && minute > 0 {
            due.push(at);
        }
    }
    due
}

#[test]
fn searched_and_looked_up_are_the_same_in_every_zone_around_every_change() {
    let expressions = [
        "* * * * *",
        "*/7 * * * *",
        "0 * * * *",
        "30 */2 * * *",
        "*/15 1-3 * * *",
        "* 2 * * *",
        "30 2 * * *",
        "0 2 * * *",
        "59 1 * * *",
        "0 3 * * *",
        "0,15,30,45 0,1,2,3 * * *",
        "10-50 2 * * *",
        "0 0 * * *",
        "5 0-23 * * *",
        "45 1 * * SUN",
        "30 2 L * *",
        "0 2 * * SUN#1",
    ];
    let changes = [
        (BERLIN, "2026-03-29T01:00:00Z"),
        (BERLIN, "2026-10-25T01:00:00Z"),
        (NEW_YORK, "2026-03-08T07:00:00Z"),
        (NEW_YORK, "2026-11-01T06:00:00Z"),
        (LORD_HOWE, "2026-04-04T15:00:00Z"),
        (LORD_HOWE, "2026-10-03T15:30:00Z"),
        // A gap at midnight, a change of a quarter past, none at all, and one of three hours.
        ("America/Santiago", "2026-09-06T04:00:00Z"),
        ("Asia/Kathmandu", "2026-03-29T01:00:00Z"),
        ("Antarctica/Troll", "2026-03-29T01:00:00Z"),
        ("Antarctica/Troll", "2026-10-25T01:00:00Z"),
        ("Africa/Casablanca", "2026-02-15T02:00:00Z"),
    ];
    let (mut state, mut compared) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for (zone, change) in changes {
        for expression in expressions {
            // From somewhere before, within or after the change: the search must not depend on where it begins.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let from = at(change) - TimeDelta::minutes(i64::try_from(state >> 33).unwrap() % 400 - 100);
            let timing = cron(expression, zone);
            let (from_text, until) = (from.to_rfc3339(), (from + TimeDelta::minutes(700)).to_rfc3339());
            assert_eq!(
                between(&timing, &from_text, &until),
                by_the_rules(expression, zone, from, 700),
                "{expression} in {zone} from {from}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, expressions.len() * changes.len());
}

#[test]
fn the_dialect() {
    let next = |expression: &str| cron(expression, "UTC").next(at("2026-11-21T12:00:00Z")).unwrap().to_rfc3339();
    for (expression, due) in [
        ("@daily", "2026-11-22T00:00:00+00:00"),
        ("@HOURLY", "2026-11-21T13:00:00+00:00"),
        ("0 9 * * mon-fri", "2026-11-23T09:00:00+00:00"),
        ("0 9 * * 7", "2026-11-22T09:00:00+00:00"),
        ("0 0 L * *", "2026-11-30T00:00:00+00:00"),
        ("0 0 * * FRI#L", "2026-11-27T00:00:00+00:00"),
        ("0 0 * * 2#1", "2026-12-01T00:00:00+00:00"),
        ("0 0 1 JAN,JUL *", "2027-01-01T00:00:00+00:00"),
        ("0 0 15W * *", "2026-12-15T00:00:00+00:00"),
        ("0 0 13 * +FRI", "2027-08-13T00:00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+00:00"),
        // Day of the month and day of the week: either, as in Vixie cron.
        ("0 0 1 * SAT", "2026-11-28T00:00:00+00:00"),
    ] {
        assert_eq!(next(expression), due, "{expression}");
    }
    for expression in [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "*/0 * * * *",
        "a b c d e",
        "@midday",
        "5-1 * * * *",
        "é * * * *",
        "\u{0}",
        "1 1 1 1 1 1 1",
    ] {
        let said = wrong(expression);
        assert!(said.contains("is not a cron expression"), "{expression}: {said}");
    }
    for never in ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *"] {
        assert!(wrong(never).contains("never comes round"), "{never}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    let letters: Vec<char> = "0123456789*/,-?LW#+@ABCMONJANSUN  ".chars().collect();
    let mut state = 88_172_645_463_325_252_u64;
    let mut read = 0;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..state % 16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push(letters[usize::try_from(state % letters.len() as u64).unwrap()]);
        }
        state = state.wrapping_add(0x9e37_79b9);
        for text in [text.clone(), format!("{text} * * * *"), format!("0 0 {text} * *"), format!("0 0 * * {text}")] {
            read += usize::from(cron::Cron::parse(&text).is_ok());
        }
    }
    assert!(read > 500, "{read} of them were expressions");
}

#[test]
fn an_interval_is_even_and_counts_from_its_start() {
    let of = |says: Value| definition(says).timing(at("2026-03-28T12:00:00.7Z")).unwrap();
    let timing = of(json!({"kind": "a.b", "every_seconds": 5_400}));
    let due = between(&timing, "2026-03-28T12:00:00.7Z", "2026-03-29T12:00:00Z");
    assert_eq!(due[0], at("2026-03-28T13:30:00Z"), "whole seconds, one interval from its creation");
    assert!(due.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(5_400)));
    let timing = of(json!({"kind": "a.b", "every_seconds": 3_600, "starts_at": "2026-04-01T00:15:00+02:00"}));
    assert_eq!(timing.next(at("2026-03-28T12:00:00Z")), Some(at("2026-03-31T22:15:00Z")), "the start is its first tick");
    assert_eq!(timing.next(at("2026-03-31T22:15:00Z")), Some(at("2026-03-31T23:15:00Z")));
    let timing = of(json!({"kind": "a.b", "every_seconds": 3_600, "starts_at": "1970-01-01T00:00:00Z"}));
    assert_eq!(timing.next(at("2026-03-28T12:00:00.5Z")), Some(at("2026-03-28T13:00:00Z")));
    assert_eq!(timing.next(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(cron("* * * * *", "UTC").next(DateTime::<Utc>::MAX_UTC), None);
}

#[test]
fn what_is_wrong_is_named() {
    let (kinds, tenant) = (Registry::new(true), Manifest::default());
    let pointers = |says: Value| {
        let mut base = json!({"kind": "probe.run"});
        base.as_object_mut().unwrap().extend(says.as_object().unwrap().clone());
        definition(base).violations(&kinds, &tenant).into_iter().map(|violation| violation.pointer).collect::<Vec<_>>()
    };
    assert_eq!(
        pointers(json!({"cron": "0 2 * * *", "time_zone": "europe/berlin", "jitter_seconds": 86_400, "owner": "ada"})),
        Vec::<String>::new()
    );
    for (says, expected) in [
        (json!({}), "/cron"),
        (json!({"cron": "0 2 * * *", "every_seconds": 60}), "/every_seconds"),
        (json!({"cron": "0 2 * *"}), "/cron"),
        (json!({"cron": "0 2 * * *", "time_zone": "Mars/Olympus"}), "/time_zone"),
        (json!({"cron": "0 2 * * *", "starts_at": "2026-01-01T00:00:00Z"}), "/starts_at"),
        (json!({"every_seconds": 0}), "/every_seconds"),
        (json!({"every_seconds": 31_622_401}), "/every_seconds"),
        (json!({"every_seconds": 60, "time_zone": "UTC"}), "/time_zone"),
        (json!({"every_seconds": 60, "starts_at": "9000-01-01T00:00:00Z"}), "/starts_at"),
        (json!({"every_seconds": 60, "jitter_seconds": 60}), "/jitter_seconds"),
        (json!({"cron": "@daily", "jitter_seconds": 86_401}), "/jitter_seconds"),
        (json!({"cron": "@daily", "start_by_seconds": 0}), "/start_by_seconds"),
        (json!({"cron": "@daily", "notify_after_failures": 1_001}), "/notify_after_failures"),
        (json!({"cron": "@daily", "owner": "a b"}), "/owner"),
        (json!({"cron": "@daily", "kind": "no.kind"}), "/kind"),
        (json!({"cron": "@daily", "payload": {"sleep_ms": "long"}}), "/payload/sleep_ms"),
        (json!({"cron": "@daily", "payload": {"pad": "x".repeat(300_000)}}), "/payload"),
    ] {
        assert_eq!(pointers(says.clone()), [expected], "{says:.100}");
    }
    assert_eq!(Zone::find("europe/berlin").unwrap().name(), BERLIN);
}

#[test]
fn ticks_that_are_in_time_run_under_every_policy() {
    let timing = cron("* * * * *", "UTC");
    let (next, now) = (at("2026-01-01T00:01:00Z"), at("2026-01-01T00:02:00Z"));
    for policy in [Missed::Skip, Missed::Latest, Missed::All] {
        let found = round(&timing, policy, next, now);
        assert_eq!((found.run, found.skipped, found.missed), (vec![next, now], None, false), "{policy:?}");
        assert_eq!(found.next, Some(at("2026-01-01T00:03:00Z")));
    }
}

#[test]
fn missed_ticks_go_by_policy() {
    let timing = cron("0 * * * *", "UTC");
    let (next, now) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T05:30:00Z"));
    let hours = |run: &[DateTime<Utc>]| run.iter().map(|due| due.format("%H").to_string()).collect::<Vec<_>>();
    for (policy, ran, skipped) in
        [(Missed::Skip, vec![], 5), (Missed::Latest, vec!["05"], 4), (Missed::All, vec!["01", "02", "03", "04", "05"], 0)]
    {
        let found = round(&timing, policy, next, now);
        assert_eq!(
            (hours(&found.run), found.skipped.map_or(0, |skipped| skipped.count), found.missed),
            (ran.iter().map(ToString::to_string).collect(), skipped, true),
            "{policy:?}"
        );
        assert_eq!(found.next, Some(at("2026-01-01T06:00:00Z")));
    }
    // The one that is in time runs, and `latest` needs none beside it.
    let now = at("2026-01-01T05:00:30Z");
    for (policy, ran) in [(Missed::Skip, 1), (Missed::Latest, 1), (Missed::All, 5)] {
        assert_eq!(round(&timing, policy, next, now).run.len(), ran, "{policy:?}");
    }
}

#[test]
fn a_long_absence_is_caught_up_in_rounds_and_within_the_bound() {
    let timing = cron("* * * * *", "UTC");
    let (first, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:30Z"));
    let (mut next, mut skipped, mut ran, mut rounds) = (first, Vec::new(), Vec::new(), 0);
    loop {
        let found = round(&timing, Missed::All, next, now);
        assert!(found.missed);
        skipped.extend(found.skipped);
        ran.extend(found.run);
        rounds += 1;
        next = found.next.unwrap();
        if next > now {
            break;
        }
    }
    assert_eq!(ran.len(), MOST_CAUGHT_UP);
    assert_eq!(skipped.iter().map(|skipped| skipped.count).sum::<usize>() + ran.len(), 1_441, "each once, in {rounds} rounds");
    assert_eq!((skipped[0].first, *ran.last().unwrap()), (first, at("2026-01-02T00:00:00Z")));
    assert!(skipped.windows(2).all(|pair| pair[1].first - pair[0].last == TimeDelta::minutes(1)));
}

#[test]
fn jitter_is_a_tick_s_own_and_fills_its_width() {
    let (most, id) = (TimeDelta::seconds(600), Uuid::from_u128(7));
    let of = |due: i64| jitter(id, DateTime::from_timestamp(due, 0).unwrap(), most);
    assert_eq!(of(1_767_225_600), of(1_767_225_600));
    assert_ne!(jitter(Uuid::from_u128(8), at("2026-01-01T00:00:00Z"), most), of(1_767_225_600));
    let all: Vec<_> = (0..1_000).map(|day| of(day * 86_400)).collect();
    assert!(all.iter().all(|jitter| (TimeDelta::zero()..=most).contains(jitter)));
    assert!(all.iter().any(|jitter| jitter.num_seconds() < 10) && all.iter().any(|jitter| jitter.num_seconds() > 590));
    assert_eq!(jitter(id, at("2026-01-01T00:00:00Z"), TimeDelta::zero()), TimeDelta::zero());
}

#[test]
fn outcomes_lead_back_and_a_definition_survives_json() {
    for outcome in TickOutcome::ALL {
        assert_eq!(TickOutcome::from_code(outcome.code()), Some(outcome));
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.word());
    }
    assert_eq!(TickOutcome::from_code(99), None);
    let says = definition(json!({
        "kind": "probe.run", "payload": {"sleep_ms": 1}, "owner": "ada", "priority": "low", "cron": "@daily", "time_zone": "UTC",
        "jitter_seconds": 5, "missed": "all", "overlap": "queue", "start_by_seconds": 60, "notify_after_failures": 1
    }));
    assert_eq!(serde_json::from_value::<Definition>(serde_json::to_value(&says).unwrap()).unwrap(), says);
}
