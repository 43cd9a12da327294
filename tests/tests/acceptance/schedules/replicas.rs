//! Three replicas, one killed in every hour of business time, and 48 hours around both changes of the clock in three zones: every tick
//! happens exactly once, and what was missed goes by its policy.

use std::time::Instant;

use acceptance::{until, until_within};
use chrono::{DateTime, NaiveTime, TimeDelta, Timelike, Utc};
use sandbox::Process;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::Planned;

/// Eight hours of a zone in which its clock is put forward or back.
struct Window {
    zone: &'static str,
    /// When it changes.
    change: &'static str,
    /// Minutes ahead of UTC, before and after.
    offsets: (i64, i64),
    /// A time of day that the clock skips or shows twice.
    struck: &'static str,
}

const WINDOWS: &[Window] = &[
    Window { zone: "America/New_York", change: "2025-03-09T07:00:00Z", offsets: (-300, -240), struck: "02:30" },
    Window { zone: "Europe/Berlin", change: "2025-03-30T01:00:00Z", offsets: (60, 120), struck: "02:30" },
    Window { zone: "Australia/Lord_Howe", change: "2025-04-05T15:00:00Z", offsets: (660, 630), struck: "01:45" },
    Window { zone: "Australia/Lord_Howe", change: "2025-10-04T15:30:00Z", offsets: (630, 660), struck: "02:15" },
    Window { zone: "Europe/Berlin", change: "2025-10-26T01:00:00Z", offsets: (120, 60), struck: "02:30" },
    Window { zone: "America/New_York", change: "2025-11-02T06:00:00Z", offsets: (-240, -300), struck: "01:30" },
];

/// Hours of business time in a window.
const HOURS: i64 = 8;

impl Window {
    fn change(&self) -> DateTime<Utc> {
        self.change.parse().unwrap()
    }

    /// The hour four hours before the change.
    fn begins(&self) -> DateTime<Utc> {
        let change = self.change();
        change - TimeDelta::minutes(i64::from(change.minute())) - TimeDelta::hours(HOURS / 2)
    }

    /// What its clock shows.
    fn shows(&self, at: DateTime<Utc>) -> NaiveTime {
        let offset = if at < self.change() { self.offsets.0 } else { self.offsets.1 };
        (at + TimeDelta::minutes(offset)).time()
    }

    fn minutes(&self) -> impl Iterator<Item = DateTime<Utc>> {
        let begins = self.begins();
        (1..=HOURS * 60).map(move |minute| begins + TimeDelta::minutes(minute))
    }

    /// The minutes at which the clock shows one of these minutes of any hour.
    fn following(&self, of_hour: impl Fn(u32) -> bool) -> Vec<DateTime<Utc>> {
        self.minutes().filter(|at| of_hour(self.shows(*at).minute())).collect()
    }

    /// The one moment of the struck time: the first at which the clock shows it, or the change that skips it.
    fn struck(&self) -> Vec<DateTime<Utc>> {
        let time = NaiveTime::parse_from_str(self.struck, "%H:%M").unwrap();
        vec![self.minutes().find(|at| self.shows(*at) == time).unwrap_or_else(|| self.change())]
    }
}

/// A schedule, and what must become of it.
struct Expected {
    id: String,
    name: String,
    runs: Vec<DateTime<Utc>>,
    /// Due times that its policy skips.
    skips: usize,
}

/// Makes the window's schedules; what becomes of them is reckoned minute by minute from the clock's change alone.
async fn plan(planned: &Planned, number: usize, window: &Window) -> Vec<Expected> {
    let (hour, minute) = (&window.struck[..2], &window.struck[3..]);
    let quarters = window.following(|minute| minute % 15 == 0);
    let tens = window.following(|minute| minute == 10);
    // The clock of this test goes from hour to hour: a tick at the full hour is in time, any other is found late.
    let on_the_hour = |due: &[DateTime<Utc>]| due.iter().copied().filter(|due| due.minute() == 0).collect::<Vec<_>>();
    let late = |due: &[DateTime<Utc>]| due.len() - on_the_hour(due).len();
    // Within an hour's step the last one runs, late as it is.
    let step = |due: &DateTime<Utc>| (*due - window.begins() - TimeDelta::seconds(1)).num_hours();
    let latest: Vec<_> = tens
        .iter()
        .enumerate()
        .filter(|(at, due)| tens.get(at + 1).is_none_or(|next| step(next) > step(due)))
        .map(|(_, due)| *due)
        .collect();
    let before = tens.len() - latest.len();
    let twenties: Vec<_> = (1..=HOURS * 3).map(|third| window.begins() + TimeDelta::minutes(20 * third)).collect();
    let cases = [
        ("quarters", json!({"cron": "*/15 * * * *", "missed": "all"}), quarters.clone(), 0),
        ("hours", json!({"cron": "0 * * * *", "missed": "all"}), window.following(|minute| minute == 0), 0),
        ("struck", json!({"cron": format!("{minute} {hour} * * *"), "missed": "all"}), window.struck(), 0),
        ("even", json!({"every_seconds": 1200, "missed": "all"}), twenties, 0),
        ("skipping", json!({"cron": "*/15 * * * *", "missed": "skip"}), on_the_hour(&quarters), late(&quarters)),
        ("never_in_time", json!({"cron": "10 * * * *", "missed": "skip"}), on_the_hour(&tens), late(&tens)),
        ("latest", json!({"cron": "10 * * * *", "missed": "latest"}), latest, before),
    ];
    let mut expected = Vec::new();
    for (name, timing, runs, skips) in cases {
        let name = format!("{name}_{number}");
        let mut schedule = timing;
        schedule["name"] = json!(name);
        schedule["kind"] = json!("probe.run");
        if schedule["cron"].is_string() {
            schedule["time_zone"] = json!(window.zone);
        }
        expected.push(Expected { id: planned.create(&schedule).await, name, runs, skips });
    }
    expected
}

/// The due times of a schedule's jobs, from the jobs themselves.
async fn jobs_of(planned: &Planned, id: &str) -> Vec<DateTime<Utc>> {
    let jobs = format!(
        "SELECT (options -> 'schedule' ->> 'due_at')::timestamptz AS due FROM job WHERE options -> 'schedule' ->> 'id' = '{id}' ORDER BY due"
    );
    sqlx::query_scalar(AssertSqlSafe(jobs)).fetch_all(planned.world.sandbox.pool()).await.unwrap()
}

#[tokio::test]
async fn every_tick_happens_exactly_once_whoever_dies_and_whatever_the_clock_does() {
    let began = Instant::now();
    let planned = Planned::at("2025-03-01T00:00:00Z").await;
    let launch = || planned.clock.launch().arg("--queues").arg("analytics").env("OFFSTAGE_RETENTION_DAYS", "3650");
    let (one, two, three) =
        tokio::join!(planned.world.start_worker(launch()), planned.world.start_worker(launch()), planned.world.start_worker(launch()));
    let replicas: [Process; 3] = [one, two, three];
    let (mut ticks, mut kills) = (0, 0);
    for (number, window) in WINDOWS.iter().enumerate() {
        planned.clock.set(window.begins());
        let expected = plan(&planned, number, window).await;
        for hour in 1..=HOURS {
            let victim = &replicas[kills % replicas.len()];
            kills += 1;
            // One dies just before the hour strikes, the next just after, the third in the middle of the work.
            if kills % 3 == 0 {
                victim.kill9().await.unwrap();
            }
            planned.clock.set(window.begins() + TimeDelta::hours(hour));
            match kills % 3 {
                1 => drop(victim.kill9().await.unwrap()),
                2 => {
                    let now = planned.clock.now().to_rfc3339();
                    until("the work has begun", async || {
                        match planned.world.number(format!("SELECT count(*) FROM schedule_tick WHERE handled_at >= '{now}'")).await {
                            0 => Err(()),
                            _ => Ok(()),
                        }
                    })
                    .await;
                    victim.kill9().await.unwrap();
                }
                _ => {}
            }
            let now = planned.clock.now().to_rfc3339();
            until("the hour is done", async || {
                match planned.world.number(format!("SELECT count(*) FROM schedule WHERE next_at <= '{now}'")).await {
                    0 => Ok(()),
                    left => Err(left),
                }
            })
            .await;
        }
        for Expected { id, name, runs, skips } in &expected {
            let what = format!("{name} in {}", window.zone);
            assert_eq!(&jobs_of(&planned, id).await, runs, "{what}: one job for each due time, and none else");
            let kept = async |condition: &str| {
                planned
                    .world
                    .number(format!("SELECT coalesce(sum(ticks), 0) FROM schedule_tick WHERE schedule_id = '{id}' AND {condition}"))
                    .await
            };
            assert_eq!(kept("outcome = 0 AND job_id IS NOT NULL").await, i64::try_from(runs.len()).unwrap(), "{what}: ticks with a job");
            assert_eq!(kept("outcome = 3").await, i64::try_from(*skips).unwrap(), "{what}: ticks that its policy skips");
            assert_eq!(kept("outcome NOT IN (0, 3)").await, 0, "{what}");
            ticks += runs.len() + skips;
            // What lies between the windows is nobody's.
            planned.client().post_nothing(&format!("/v1/schedules/{id}/pause")).await.expect(200);
        }
    }
    let jobs = planned.world.number("SELECT count(*) FROM job").await;
    let perhaps_again = async || {
        // A run that was lost may wait for a while of business time.
        planned.clock.advance(TimeDelta::minutes(1));
        planned.world.number("SELECT count(*) FROM job_state WHERE state = 3").await
    };
    until_within(2 * acceptance::PATIENCE, "every job has succeeded", async || match perhaps_again().await {
        done if done == jobs => Ok(()),
        done => Err((done, jobs)),
    })
    .await;
    println!(
        "{ticks} ticks of {} schedules in {} h of business time, {kills} kills: {jobs} jobs, each due time once, in {:.0} s",
        WINDOWS.len() * 7,
        HOURS * i64::try_from(WINDOWS.len()).unwrap(),
        began.elapsed().as_secs_f64()
    );
}
