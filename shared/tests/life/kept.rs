//! Connections that are kept, and those that must not be.

use std::{future::poll_fn, task::Poll, time::Duration};

use secrecy::SecretString;
use shared::ledger::{self, Kept, LedgerError, Sessions};
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::timeout;

use super::Ledger;

fn pool(ledger: &Ledger, size: u32) -> PgPool {
    ledger::pool("OFFSTAGE_TEST", &SecretString::from(ledger.sandbox.postgres.engine_url()), Sessions::Plain, size).unwrap()
}

async fn session(connection: &mut PgConnection) -> Result<i32, LedgerError> {
    Ok(sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await?)
}

/// Who was cut off, or was refused something, leaves no connection behind on which the next would read the answer to something else.
#[tokio::test]
async fn what_was_cut_off_or_went_wrong_is_not_kept() {
    let ledger = Ledger::start().await;
    let kept = Kept::of(pool(&ledger, 4), 4);
    let first = kept.on(session).await.unwrap();
    let slow =
        kept.on(async |connection| Ok::<i32, LedgerError>(sqlx::query_scalar("SELECT 1 FROM pg_sleep(60)").fetch_one(connection).await?));
    timeout(Duration::from_millis(200), slow).await.unwrap_err();
    let second = timeout(Duration::from_secs(20), kept.on(session)).await.expect("nobody waits for it").unwrap();
    assert_ne!(second, first, "its answer is not waited for");

    let only = pool(&ledger, 1);
    let kept = Kept::of(only.clone(), 1);
    let refused = async |connection: &mut PgConnection| {
        sqlx::query("SELECT 1 / 0").execute(connection).await?;
        Ok::<(), LedgerError>(())
    };
    kept.on(refused).await.unwrap_err();
    only.acquire().await.expect("the pool has it, and looks at it");
}

/// A session that has ended meanwhile is found out by who uses it soon, and by nobody else.
#[tokio::test]
async fn a_session_that_ended_fails_at_most_the_next() {
    let ledger = Ledger::start().await;
    let kept = Kept::of(pool(&ledger, 4), 4);
    let ended = kept.on(session).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1, 10000)").bind(ended).execute(ledger.sandbox.pool()).await.unwrap();
    // Where that took a second, it is asked before it is used.
    if let Ok(another) = kept.on(session).await {
        assert_ne!(another, ended);
    }
    assert_ne!(kept.on(session).await.unwrap(), ended);
}

/// However many exchanges there are at a time, no more than was said stay out of the pool.
#[tokio::test]
async fn no_more_are_kept_than_was_said() {
    let ledger = Ledger::start().await;
    let pool = pool(&ledger, 3);
    let kept = Kept::of(pool.clone(), 1);
    let all = tokio::sync::Barrier::new(3);
    let exchange = || {
        kept.on(async |connection| {
            let session = session(connection).await?;
            all.wait().await;
            Ok::<i32, LedgerError>(session)
        })
    };
    tokio::try_join!(exchange(), exchange(), exchange()).unwrap();
    // Two of three are the pool's again; were all three kept, this would wait in vain.
    let (_one, _two) = tokio::try_join!(pool.acquire(), pool.acquire()).unwrap();
    assert!(pool.try_acquire().is_none(), "and the third is kept");
}

/// Who stops waiting for the beginning of a transaction leaves none behind, in which others would write what nobody commits.
#[tokio::test]
async fn a_beginning_that_nobody_waited_for_is_no_transaction() {
    let ledger = Ledger::start().await;
    let only = pool(&ledger, 1);
    for steps in 0..30 {
        // Dropped after so many steps, wherever it is then; as often as that takes to come by each of them.
        let mut begin = Box::pin(only.begin());
        let mut left = steps % 6;
        let transaction = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            begin.as_mut().poll(context).map(Some)
        })
        .await;
        drop((transaction, begin));
        let row = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(&only).await.unwrap();
        let free: bool = row.get(0);
        assert!(free, "after {steps} steps");
    }
}
