//! What many runs write down at the same time, in one statement.
//!
//! A run that sends a message asks the ledger before it and tells it afterwards. Each of those is a statement with a commit; under load
//! they gather while the one before is under way, so that many share one. A run that is alone waits for nobody.
//!
//! What must stay true: who is answered was in the statement, and it was committed; nobody fails of another's entry: a statement that was
//! refused is sent again one by one; what waits has a bound; a statement that is held up holds up only those in it.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use shared::{
    clock::Clock,
    ledger::{
        Kept, LedgerError,
        deliveries::{Noted, note_all},
        effects::{Intent, Intention, intend_all},
        timed_out,
    },
    usage::calls::{Spent, spend},
};
use sqlx::{PgConnection, PgPool};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

/// Entries that wait for their statement: beyond them who has another waits too.
const WAITING: usize = 1_024;

/// Entries of one statement.
const BATCH: usize = 128;

/// Statements under way at a time.
const STATEMENTS: usize = 4;

/// Connections of a pool of which each kind of statement keeps one; of a smaller one (a trial's has one) nobody keeps any, or who goes to
/// the pool itself would wait for those.
const ROOM: u32 = 8;

/// How long the next one waits for the one before, that entries may gather. A statement that takes longer waits for a lock or the disk.
const HELD_UP: Duration = Duration::from_millis(25);

/// Something that the ledger is asked or told of many at a time.
pub trait Entry: Send + Sync + Sized + 'static {
    /// What comes back for each.
    type Answer: Send + 'static;

    /// Sends some in one statement; the answers are in their order, one for each.
    fn send(
        connection: &mut PgConnection,
        all: &[Self],
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<Vec<Self::Answer>, LedgerError>> + Send;
}

impl Entry for Intention {
    type Answer = Intent;

    async fn send(connection: &mut PgConnection, all: &[Self], now: DateTime<Utc>) -> Result<Vec<Intent>, LedgerError> {
        intend_all(connection, all, now).await
    }
}

impl Entry for Noted {
    type Answer = ();

    async fn send(connection: &mut PgConnection, all: &[Self], now: DateTime<Utc>) -> Result<Vec<()>, LedgerError> {
        note_all(connection, all, now).await?;
        Ok(vec![(); all.len()])
    }
}

impl Entry for Spent {
    type Answer = ();

    async fn send(connection: &mut PgConnection, all: &[Self], now: DateTime<Utc>) -> Result<Vec<()>, LedgerError> {
        spend(connection, all, now).await?;
        Ok(vec![(); all.len()])
    }
}

type Answered<E> = oneshot::Sender<Result<<E as Entry>::Answer, Arc<LedgerError>>>;

/// The way to one kind of statement. Its task ends with it.
#[derive(Debug)]
pub struct Gathered<E: Entry> {
    entries: mpsc::Sender<(E, Answered<E>)>,
}

impl<E: Entry> Gathered<E> {
    /// Starts the task behind it.
    #[must_use]
    pub fn start(pool: PgPool, clock: Clock) -> Self {
        let (entries, waiting) = mpsc::channel(WAITING);
        tokio::spawn(gather(pool, clock, waiting));
        Self { entries }
    }

    /// Sends an entry with what others send at this moment. Who stops waiting may have sent it all the same.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn send(&self, entry: E) -> Result<E::Answer, Arc<LedgerError>> {
        let (answer, answered) = oneshot::channel();
        let sent = self.entries.send((entry, answer)).await;
        match (sent, answered.await) {
            (Ok(()), Ok(answer)) => answer,
            // The process is ending, or a statement was lost to a panic.
            _ => Err(Arc::new(timed_out())),
        }
    }
}

async fn gather<E: Entry>(pool: PgPool, clock: Clock, mut waiting: mpsc::Receiver<(E, Answered<E>)>) {
    let has_room = pool.options().get_max_connections() >= ROOM;
    let kept = Arc::new(Kept::of(pool, usize::from(has_room)));
    let statements = Arc::new(Semaphore::new(STATEMENTS));
    loop {
        // Never closed.
        let Ok(turn) = Arc::clone(&statements).acquire_owned().await else { return };
        let mut batch = Vec::new();
        if waiting.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        // Runs that were woken together ask together, but one after the other: the first does not go alone while the rest wait for it.
        tokio::task::yield_now().await;
        while batch.len() < BATCH
            && let Ok(entry) = waiting.try_recv()
        {
            batch.push(entry);
        }
        let (kept, now) = (Arc::clone(&kept), clock.now());
        let sending = tokio::spawn(async move {
            send(&kept, batch, now).await;
            drop(turn);
        });
        let _ = timeout(HELD_UP, sending).await;
    }
}

/// Sends a batch; where its statement was refused, for one of them or for two that are the same, one by one.
async fn send<E: Entry>(kept: &Kept, batch: Vec<(E, Answered<E>)>, now: DateTime<Utc>) {
    let (entries, answers): (Vec<E>, Vec<Answered<E>>) = batch.into_iter().unzip();
    match send_in_one(kept, &entries, now).await {
        Ok(said) if said.len() == answers.len() => {
            for (answer, said) in answers.into_iter().zip(said) {
                // Who went away knows nothing of it; it is written down all the same.
                let _ = answer.send(Ok(said));
            }
            return;
        }
        Err(error) if entries.len() == 1 => {
            let error = Arc::new(error);
            for answer in answers {
                let _ = answer.send(Err(Arc::clone(&error)));
            }
            return;
        }
        Ok(_) | Err(_) => {}
    }
    let mut alone = entries.into_iter().zip(answers);
    while let Some((entry, answer)) = alone.next() {
        let said = send_in_one(kept, &[entry], now)
            .await
            .map_err(Arc::new)
            .and_then(|said| said.into_iter().next().ok_or_else(|| Arc::new(timed_out())));
        let away = said.as_ref().err().filter(|error| error.is_transient()).cloned();
        let _ = answer.send(said);
        if let Some(error) = away {
            // The others would only wait as long for the same.
            for (_, answer) in alone.by_ref() {
                let _ = answer.send(Err(Arc::clone(&error)));
            }
        }
    }
}

async fn send_in_one<E: Entry>(kept: &Kept, entries: &[E], now: DateTime<Utc>) -> Result<Vec<E::Answer>, LedgerError> {
    kept.on(async |connection| E::send(connection, entries, now).await).await
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use serde_json::json;
    use shared::{
        kinds::PushSend,
        ledger::{
            deliveries::{Addressed, Attempted, Channel},
            effects::Reach,
        },
    };
    use uuid::Uuid;

    use super::{
        super::{JobContext, workbench::Workbench},
        *,
    };

    const MANIFEST: &str = "[tenant]\nname = \"shop\"\n";

    fn push() -> PushSend {
        serde_json::from_value(json!({"user": "ada", "title": "Hello"})).unwrap()
    }

    fn intention(context: &JobContext, key: &str) -> Intention {
        Intention::of(&context.job, key, &json!({}), Reach::Outward)
    }

    #[tokio::test]
    async fn each_has_an_answer_of_its_own_and_nobody_fails_of_anothers() {
        let bench = Workbench::start(MANIFEST).await;
        let mut jobs = Vec::new();
        for _ in 0..20 {
            jobs.push(bench.claimed(&push(), None).await);
        }
        bench.taken_over(&jobs[3]).await;
        let intentions = &bench.services.gathered.intentions;
        // No text of Postgres' holds a NUL: the statement is refused for it.
        let key = |number| if number == 5 { "push\0" } else { "push" };
        let said = join_all(jobs.iter().enumerate().map(|(number, context)| intentions.send(intention(context, key(number))))).await;
        for (number, said) in said.into_iter().enumerate() {
            match number {
                3 => assert_eq!(said.unwrap(), Intent::Fenced),
                5 => assert!(said.unwrap_err().is_about_data()),
                _ => assert_eq!(said.unwrap(), Intent::New, "{number}"),
            }
        }
        // The same twice at once: one after the other.
        let (one, other) = tokio::join!(intentions.send(intention(&jobs[0], "twice")), intentions.send(intention(&jobs[0], "twice")));
        assert_eq!((one.unwrap(), other.unwrap()), (Intent::New, Intent::Unknown));
        assert_eq!(bench.effects(jobs[0].job.id).await, [("push".to_owned(), 0), ("twice".to_owned(), 2)]);
        assert_eq!(bench.effects(jobs[3].job.id).await, []);
    }

    #[tokio::test]
    async fn what_was_taken_is_noted_with_its_receipt_and_stays_so() {
        let bench = Workbench::start(MANIFEST).await;
        let (first, second) = (bench.claimed(&push(), None).await, bench.claimed(&push(), None).await);
        let browser = Uuid::from_u128(7);
        let noted = |context: &JobContext, attempted: Attempted| {
            let to = Addressed { channel: Channel::Push, device: browser, owner: Some("ada".into()), recipient: None, category: None };
            Noted { id: bench.services.clock.new_id(), job: context.job.id, tenant: context.job.tenant, to, attempted, receipt: None }
        };
        let key = "push:7";
        for context in [&first, &second] {
            assert_eq!(context.intend_outward(key, &json!({})).await.unwrap(), Intent::New);
        }
        // Both to one browser, at once.
        let receipt = json!({"status": 201});
        let (one, other) = tokio::join!(
            first.taken(key, &receipt, noted(&first, Attempted::sent(false))),
            second.taken(key, &receipt, noted(&second, Attempted::sent(true)))
        );
        one.and(other).unwrap();
        first.note(noted(&first, Attempted::not_sent("late", "too late"))).await.unwrap();
        assert_eq!(first.intend_outward(key, &json!({})).await.unwrap(), Intent::Done { receipt });
        let rows: Vec<(String, bool, bool, Option<String>)> =
            sqlx::query_as("SELECT state, is_final, repeated, why FROM delivery ORDER BY repeated")
                .fetch_all(&bench.services.pool)
                .await
                .unwrap();
        assert_eq!(rows, [("sent".to_owned(), true, false, None), ("sent".to_owned(), true, true, None)]);
        assert_eq!(bench.effects(first.job.id).await, [(key.to_owned(), 1)]);
    }
}
