//! Each event counts once.

use shared::{
    ledger::events::{NewEvent, Outcome, take},
    tenant::Metric,
};

use super::{Counted, Dice};

#[tokio::test]
async fn an_id_counts_once_across_weeks_and_is_free_again_after_two() {
    let counted = Counted::start().await;
    let mut dice = Dice(1);
    let event = NewEvent { sort: "run".into(), ..dice.event(1) };
    let at = async |time: &str| {
        counted.ledger.clock.set(time.parse().unwrap());
        counted.take(std::slice::from_ref(&event)).await.unwrap()[0]
    };
    // The last moments of a week; and while another program still is in it.
    assert_eq!(at("2026-11-22T23:59:59Z").await, Outcome::Taken);
    assert_eq!(at("2026-11-23T00:00:01Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-22T23:59:58Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-29T23:59:59Z").await, Outcome::Duplicate);
    assert_eq!(at("2026-11-30T00:10:00Z").await, Outcome::Taken, "it was seen two weeks before");
    // Two at once, to either side of the week's end, as clocks are: one of them takes it.
    let other = NewEvent { id: "other".into(), ..event.clone() };
    for (first, second) in [("2026-12-06T23:59:59Z", "2026-12-07T00:00:01Z"), ("2026-12-14T00:05:00Z", "2026-12-13T23:59:00Z")] {
        let twin = NewEvent { id: format!("{}{first}", other.id), ..other.clone() };
        let metrics: Vec<&Metric> = counted.manifest.metrics.values().collect();
        let take = |time: &str| {
            let now = time.parse().unwrap();
            take(&counted.ledger.api, &counted.prepared, counted.ledger.tenant, &metrics, std::slice::from_ref(&twin), now)
        };
        let (one, two) = tokio::join!(take(first), take(second));
        let outcomes = [one.unwrap()[0], two.unwrap()[0]];
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Taken).count(), 1, "{outcomes:?}");
    }
}
