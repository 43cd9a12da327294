use chrono::DateTime;
use shared::job::{Options, Priority, Reason, State};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::{feeds::MOST_PENDING, *};

fn streams() -> Arc<Streams> {
    // Connects at first use, and there is none.
    let pool = PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new());
    Arc::new(Streams::new(pool, Clock::system(), Arc::new(Places::new(100, 100))))
}

fn seen(number: u128, version: i32, links: Option<Vec<LinkHash>>) -> Arc<Seen> {
    let now = DateTime::UNIX_EPOCH;
    let job = FoundJob {
        id: JobId(Uuid::from_u128(number)),
        kind: "probe.run".into(),
        queue: "analytics".into(),
        priority: Priority::Normal,
        owner: None,
        state: State::Running,
        reason: Reason::None,
        version,
        attempt: 1,
        attempts_allowed: 3,
        cancel_requested: false,
        created_at: now,
        run_at: now,
        start_by: None,
        started_at: Some(now),
        finished_at: None,
        progress_done: None,
        progress_total: None,
        payload: None,
        result: None,
        error: None,
        options: Options::default(),
        children: Vec::new(),
    };
    Arc::new(Seen::new(job, links))
}

fn version(following: &mut Following) -> Option<i32> {
    match following.latest() {
        Latest::Seen(seen) => Some(seen.job.version),
        Latest::Unread | Latest::Gone => None,
    }
}

#[tokio::test]
async fn what_is_told_never_goes_back_and_stays_with_its_tenant() {
    let streams = streams();
    let job = JobId(Uuid::from_u128(1));
    let (mut ours, mut theirs) = (streams.follow(1, job, false).unwrap(), streams.follow(2, job, false).unwrap());
    streams.publish(1, &seen(1, 4, None));
    streams.publish(1, &seen(1, 3, None));
    assert_eq!((version(&mut ours), version(&mut theirs)), (Some(4), None));
    // Another address list is news, an older state with it is not.
    let hash = LinkHash::of("a token");
    streams.publish(1, &seen(1, 3, Some(vec![hash])));
    assert!(!ours.receiver.has_changed().unwrap());
    streams.publish(1, &seen(1, 4, Some(vec![hash])));
    assert!(ours.receiver.has_changed().unwrap());
    assert_eq!(streams.by_tenant().len(), 2);
    drop((ours, theirs));
    assert!(lock(&streams.rooms).is_empty() && streams.by_tenant().is_empty());
}

#[tokio::test]
async fn a_slow_listener_to_many_costs_no_more_than_a_new_picture() {
    let streams = streams();
    let listening = streams.listen(1, Interest::default()).unwrap();
    let put = |number: u128, version: i32| lock(&listening.feed.inbox).put(&seen(number, version, None));
    for version in 1..=10 {
        put(7, version);
    }
    let taken = listening.take().unwrap();
    assert_eq!(taken.iter().map(|seen| seen.job.version).collect::<Vec<_>>(), [10], "the newest state replaces older ones");
    for number in 0..=MOST_PENDING as u128 {
        put(number, 1);
    }
    assert!(lock(&listening.feed.inbox).pending.is_empty(), "nothing is kept");
    assert!(listening.take().is_none(), "it takes a new picture");
    assert!(listening.take().unwrap().is_empty());
    drop(listening);
    assert!(lock(&streams.feeds).is_empty());
}
