//! Ticks on a real Postgres: raced for, cut off in the middle, set aside, pruned.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde_json::{Value, json};
use shared::{
    kinds::Registry,
    ledger::schedule::{
        self, FoundSchedule, NewSchedule, follow,
        history::{self, KEPT, KEPT_FOR},
        tick,
    },
    random,
    tenant::{self, Tenants},
};
use uuid::Uuid;

use super::Ledger;

impl Ledger {
    async fn schedule(&self, name: &str, says: Value) -> FoundSchedule {
        let mut definition = json!({"kind": "probe.run"});
        definition.as_object_mut().unwrap().extend(says.as_object().unwrap().clone());
        let new = NewSchedule {
            id: self.clock.new_id(),
            tenant: self.tenant,
            name: name.to_owned(),
            declared: false,
            definition: serde_json::from_value(definition).unwrap(),
            kind: "probe.run",
        };
        let mut transaction = tenant::transaction(&self.api, self.tenant).await.unwrap();
        let made = schedule::create(&mut transaction, &new, self.now()).await.unwrap();
        transaction.commit().await.unwrap();
        made
    }

    async fn tick(&self, kinds: &Registry, aside: &[Uuid], most: i64) -> tick::Looked {
        tick::tick(&self.engine, &self.clock, kinds, &Tenants::new(self.engine.clone()), aside, most).await.unwrap()
    }

    /// Ends every job that there is, behind everybody's back.
    async fn end_all(&self) {
        sqlx::query("UPDATE job_state SET state = 3, finished_at = now()").execute(self.sandbox.pool()).await.unwrap();
    }
}

const TICKS: &str = "SELECT coalesce(sum(ticks), 0) FROM schedule_tick";
const DISTINCT_JOBS: &str = "SELECT count(DISTINCT (options -> 'schedule' ->> 'id', options -> 'schedule' ->> 'due_at')) FROM job";
const ORPHANS: &str = "SELECT count(*) FROM schedule_tick t FULL JOIN job j ON j.id = t.job_id WHERE t.job_id IS NULL OR j.id IS NULL";

#[tokio::test(flavor = "multi_thread")]
async fn however_many_race_and_wherever_they_are_cut_off_each_tick_happens_once() {
    let ledger = Arc::new(Ledger::start().await);
    for number in 0..120 {
        ledger.schedule(&format!("s{number}"), json!({"every_seconds": 30, "missed": "all"})).await;
    }
    let rounds = 5;
    for _ in 0..rounds {
        ledger.advance(60);
        let racing = (0..4).map(|_| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                let (kinds, tenants) = (Registry::new(true), Tenants::new(ledger.engine.clone()));
                for _ in 0..1_000 {
                    let looking = tick::tick(&ledger.engine, &ledger.clock, &kinds, &tenants, &[], 7);
                    // Some die in the middle, wherever that is.
                    let within = Duration::from_millis(if random::fraction() < 0.5 { 10_000 } else { 4 }).mul_f64(random::fraction());
                    match tokio::time::timeout(within, looking).await {
                        Ok(looked) if looked.as_ref().unwrap().schedules == 0 => {
                            // Another one may hold the rest, and be cut off.
                            let due = format!("SELECT count(*) FROM schedule WHERE next_at <= '{}'", ledger.now().to_rfc3339());
                            let left = ledger.number(&due).await;
                            if left == 0 {
                                return;
                            }
                        }
                        _ => {}
                    }
                }
                panic!("there is no end to it");
            })
        });
        futures_util::future::join_all(racing).await.into_iter().for_each(|raced| raced.unwrap());
    }
    let expected = 120 * 2 * rounds;
    assert_eq!((ledger.number(TICKS).await, ledger.number("SELECT count(*) FROM job").await), (expected, expected));
    assert_eq!((ledger.number(DISTINCT_JOBS).await, ledger.number(ORPHANS).await), (expected, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_has_its_turn_once() {
    let ledger = Arc::new(Ledger::start().await);
    for number in 0..20 {
        ledger.schedule(&format!("s{number}"), json!({"every_seconds": 60, "overlap": "queue"})).await;
    }
    let kinds = Registry::new(true);
    for _ in 0..3 {
        ledger.advance(60);
        while ledger.tick(&kinds, &[], 50).await.schedules > 0 {}
    }
    assert_eq!((ledger.number("SELECT count(*) FROM job").await, ledger.number("SELECT sum(queued) FROM schedule").await), (20, 40));
    for turn in 1..=2 {
        ledger.end_all().await;
        let racing = (0..4).map(|_| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move {
                let (kinds, tenants) = (Registry::new(true), Tenants::new(ledger.engine.clone()));
                for _ in 0..5 {
                    follow::next_queued(&ledger.engine, &ledger.clock, &kinds, &tenants, &[]).await.unwrap();
                }
            })
        });
        futures_util::future::join_all(racing).await.into_iter().for_each(|raced| raced.unwrap());
        assert_eq!(
            (ledger.number("SELECT count(*) FROM job").await, ledger.number("SELECT sum(queued) FROM schedule").await),
            (20 + 20 * turn, 40 - 20 * turn)
        );
    }
    assert_eq!((ledger.number(DISTINCT_JOBS).await, ledger.number(ORPHANS).await), (60, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cant_be_handled_holds_up_no_other() {
    let ledger = Ledger::start().await;
    let odd = ledger.schedule("odd", json!({"every_seconds": 60})).await;
    let unknown = ledger.schedule("unknown", json!({"every_seconds": 60})).await;
    ledger.schedule("good", json!({"every_seconds": 60})).await;
    let set = |statement: &'static str, id: Uuid| sqlx::query(statement).bind(id).execute(ledger.sandbox.pool());
    set(
        "UPDATE schedule SET definition = '{\"kind\": \"probe.run\", \"cron\": \"@daily\", \"missed\": \"someday\"}' WHERE id = $1",
        odd.id,
    )
    .await
    .unwrap();
    set("UPDATE schedule SET kind = 'new.kind', definition = definition || '{\"kind\": \"new.kind\"}' WHERE id = $1", unknown.id)
        .await
        .unwrap();
    ledger.advance(60);
    let kinds = Registry::new(true);
    let looked = ledger.tick(&kinds, &[], 50).await;
    assert_eq!((looked.schedules, looked.aside.as_slice(), looked.late.len()), (1, &[odd.id][..], 1));
    assert_eq!(ledger.tick(&kinds, &looked.aside, 50).await.schedules, 0, "a kind that this program does not know is left to others");
    // Nobody knew it for an hour: it is refused, and told.
    ledger.advance(3_700);
    while ledger.tick(&kinds, &looked.aside, 50).await.schedules > 0 {}
    let detail: String = sqlx::query_scalar("SELECT detail FROM schedule_tick WHERE schedule_id = $1 AND outcome = 5 LIMIT 1")
        .bind(unknown.id)
        .fetch_one(ledger.sandbox.pool())
        .await
        .unwrap();
    assert!(detail.contains("no worker knows the kind `new.kind`"), "{detail}");
    assert_eq!(ledger.number(&format!("SELECT count(*) FROM notification WHERE data ->> 'schedule_id' = '{}'", unknown.id)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_put_back_repeats_nothing() {
    let ledger = Ledger::start().await;
    let made = ledger.schedule("hourly", json!({"cron": "0 * * * *"})).await;
    let kinds = Registry::new(true);
    ledger.advance(2 * 3_600);
    ledger.tick(&kinds, &[], 50).await;
    ledger.advance(-2 * 3_600);
    assert_eq!(ledger.tick(&kinds, &[], 50).await.schedules, 0);
    // Nor does a pause, or a change of its timing.
    let mut transaction = tenant::transaction(&ledger.api, ledger.tenant).await.unwrap();
    let held = schedule::hold(&mut transaction, ledger.tenant, made.id).await.unwrap();
    let last = held.last_at.unwrap();
    let paused = schedule::pause(&mut transaction, &held, Some("ops"), ledger.now()).await.unwrap();
    assert_eq!(paused.next_at, None);
    let resumed = schedule::pause(&mut transaction, &paused, None, ledger.now()).await.unwrap();
    assert_eq!(resumed.next_at, Some(last + TimeDelta::hours(1)));
    let mut other = resumed.definition.clone();
    other.cron = Some("0,30 * * * *".into());
    let changed = schedule::change(&mut transaction, &resumed, "hourly", other, "probe.run", ledger.now()).await.unwrap();
    assert_eq!(changed.next_at, Some(last + TimeDelta::minutes(30)));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_goes_by_age_and_by_count_and_what_is_open_stays() {
    let ledger = Ledger::start().await;
    let (many, old) =
        (ledger.schedule("many", json!({"every_seconds": 60})).await, ledger.schedule("old", json!({"every_seconds": 60})).await);
    for (schedule, rows, apart) in [(&many, 2_500, "1 minute"), (&old, 200, "1 day")] {
        sqlx::query(
            "INSERT INTO schedule_tick (schedule_id, due_at, tenant_id, outcome, open, first_at, handled_at)
             SELECT $1, $2 - i * $3::interval, $4, 1, i % 100 = 0, $2, $2 FROM generate_series(1, $5) i",
        )
        .bind(schedule.id)
        .bind(ledger.now())
        .bind(apart)
        .bind(ledger.tenant)
        .bind(rows)
        .execute(ledger.sandbox.pool())
        .await
        .unwrap();
    }
    let (gone, next) = history::prune(&ledger.engine, Uuid::nil(), ledger.now()).await.unwrap();
    let kept = async |id: Uuid| ledger.number(&format!("SELECT count(*) FROM schedule_tick WHERE schedule_id = '{id}'")).await;
    // Every hundredth is open: of those beyond the bounds fifteen, and one of the old ones.
    assert_eq!((kept(many.id).await, kept(old.id).await), (KEPT + 15, KEPT_FOR.num_days() + 2));
    assert_eq!(i64::try_from(gone).unwrap(), 2_500 + 200 - (KEPT + 15) - (KEPT_FOR.num_days() + 2));
    assert_eq!(history::prune(&ledger.engine, next.unwrap(), ledger.now()).await.unwrap(), (0, None));
    // Of ticks whose job is gone, unseen, nobody waits for the end.
    sqlx::query("UPDATE schedule_tick SET job_id = gen_random_uuid() WHERE open").execute(ledger.sandbox.pool()).await.unwrap();
    ledger.advance(7_200);
    history::prune(&ledger.engine, Uuid::nil(), ledger.now()).await.unwrap();
    assert_eq!(ledger.number("SELECT count(*) FROM schedule_tick WHERE open").await, 0);
}
