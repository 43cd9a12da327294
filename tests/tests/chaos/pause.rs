//! Show 4: a worker stands still (`SIGSTOP`) for so long that others take its jobs over, and then goes on where it stood.

use std::time::Duration;

use acceptance::until_within;

use crate::{
    arena::{Arena, LONG},
    count,
    report::Report,
    seed::{Seed, size},
    traffic::Mix,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause() {
    let seed = Seed::of("pause");
    let arena = Arena::start(1, size(2, 3)).await;
    arena.all_may_judge().await;
    // Many are in the middle of their seconds when it stops, and over when it goes on.
    let traffic = arena.traffic(&seed, Mix { open: size(400, 2_000), clients: size(8, 24), long_one_in: 3, long_ms: 3_000 });
    arena.under_way(&traffic, size(100, 1_000), 50).await;
    let paused = seed.chance(1).choose(&arena.workers).clone();
    let id = arena.world.text(format!("SELECT id::text FROM worker WHERE name LIKE '%-{}'", paused.pid().expect("it runs"))).await;
    paused.pause().await.expect("SIGSTOP");
    tokio::time::sleep(size(Duration::from_secs(7), Duration::from_secs(20))).await;
    let taken =
        async || arena.world.number(format!("SELECT count(*) FROM job_attempt WHERE outcome = 'crashed' AND worker = '{id}'")).await;
    until_within(LONG, "its jobs were taken over", async || if taken().await > 0 { Ok(()) } else { Err("none was") }).await;
    paused.resume().await.expect("SIGCONT");
    until_within(LONG, "it noticed that it was fenced", async || {
        match arena.world.figure(&paused, "offstage_worker_fenced_total", &[]).await {
            fenced if fenced >= 1.0 => Ok(()),
            none => Err(none),
        }
    })
    .await;
    // Under a new lease it works on.
    let since = arena.world.now().await;
    until_within(LONG, "it works again", async || {
        let name = format!("%-{}", paused.pid().unwrap_or_default());
        let runs = format!(
            "SELECT count(*) FROM job_state s JOIN worker w ON w.id = s.worker WHERE w.name LIKE '{name}' AND s.started_at > '{}'",
            since.to_rfc3339()
        );
        match arena.world.number(runs).await {
            0 => Err("no new job of its"),
            _ => Ok(()),
        }
    })
    .await;
    let sent = traffic.stop().await;
    let mut report = Report::of("pause", "SIGSTOP of a worker, then SIGCONT", &seed);
    report.line("jobs that were taken over from it", taken().await);
    let stale = arena.world.figure(&paused, "offstage_settles_stale_total", &[]).await;
    count::every_job_succeeded(&arena, &sent, &mut report).await;
    report.line("its outcomes that came too late and changed nothing", stale);
    assert_eq!(paused.exits().len(), 0, "it was not restarted");
}
