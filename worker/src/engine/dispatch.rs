//! Step 3's loop: moves due jobs from the backlog to their queue's lanes, tenant by tenant, as far as there is room.
//!
//! Where jobs are so short that this worker fetches them ahead by the batch, it claims them right in the backlog instead
//! ([`claim::take`]): the lane would cost each of them a change of its state and four commands of Redis, and buy nothing, for who
//! claims a hundred at a time needs nobody to hold them ready. What stands in lanes keeps half of the room meanwhile.
//!
//! It looks when somebody says that a queue has work (an API that accepted something for later, a settle that retries), when a
//! reader made room while a backlog waits, when the next job is due, and every [`FALLBACK`] in any case.
//!
//! A lane holds about [`HELD_READY`] of work, as fast as this worker takes it just now: enough that no slot waits, and little enough that
//! a tenant who comes later has its share soon, whatever stands in the lane before it.
//!
//! What must stay true: while Redis takes no jobs (its memory is full, it was demoted), none leave the backlog but the batch on which
//! that was noticed: it is pushed before anything else is moved.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use shared::{
    job::Priority,
    ledger::{
        claim,
        dispatch::{self, Turn},
    },
    queue::{
        Commands, Queue,
        keys::Lane,
        pace,
        push::{self, Depth, Handover},
        read,
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Engine, announce::Announcement, intake::Intake};

/// How often each queue is looked at without a reason.
const FALLBACK: Duration = Duration::from_secs(5);
/// How soon a queue is looked at again when Redis or the ledger did not answer.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// How much work a lane holds ready.
const HELD_READY: Duration = Duration::from_secs(1);
/// The shortest time over which it is measured how fast jobs are taken: the first ones fill free slots, and say nothing of the next.
const MEASURED_OVER: Duration = Duration::from_millis(100);
/// The least that a lane holds ready, in jobs a slot: what is taken before it is known how fast.
const LEAST_READY: u64 = 4;

/// Batches that a look claims at the most, before it is asked anew whose turn it is, and other queues have theirs.
const MOST_BATCHES: usize = 4;

/// In the order in which they are served.
const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

/// How soon a queue with a throttle is looked at again at the soonest: a fast rate goes by small batches.
const LEAST_PACE: Duration = Duration::from_millis(20);

/// The reasons to look, left by others.
#[derive(Debug, Default)]
pub struct Dispatch {
    wanted: Mutex<BTreeMap<Queue, bool>>,
    /// Jobs that were claimed from each queue since the last look.
    taken: Mutex<BTreeMap<Queue, u64>>,
    woken: Notify,
}

impl Dispatch {
    /// Work for a queue may be due.
    pub fn due(&self, queue: Queue) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(queue, true);
        self.woken.notify_one();
    }

    /// Work of any queue that has a backlog may be due.
    pub fn all_due(&self) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).extend(Queue::EVERY.map(|queue| (queue, true)));
        self.woken.notify_one();
    }

    /// A reader took entries: if a backlog waits for room, there is some now.
    pub fn drained(&self, queue: Queue, jobs: usize) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner).entry(queue).or_default() += jobs as u64;
        // The entry stands only while a backlog waits.
        if let Some(wanted) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&queue)
            && !*wanted
        {
            *wanted = true;
            self.woken.notify_one();
        }
    }

    /// Jobs were settled: if a backlog waits for room, there may be some now.
    pub fn settled(&self, queue: Queue) {
        self.drained(queue, 0);
    }

    /// How many jobs were claimed from a queue since this was asked last.
    fn taken(&self, queue: Queue) -> u64 {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&queue).unwrap_or_default()
    }

    fn is_wanted(&self, queue: Queue) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get(&queue).copied().unwrap_or(false)
    }

    /// Looked: until somebody says otherwise nothing is wanted, but room is if a backlog waits for it.
    fn looked(&self, queue: Queue, backlog_waits: bool) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if backlog_waits {
            wanted.insert(queue, false);
        } else {
            wanted.remove(&queue);
        }
    }
}

/// What is known of a queue from look to look.
#[derive(Debug)]
struct Lanes {
    /// Jobs of it that run here at a time.
    slots: u64,
    /// Moved, and not pushed: Redis did not take them.
    unpushed: Vec<Handover>,
    /// Whose turn was the last, by priority.
    last_turn: [i32; 3],
    /// Jobs a second that this worker took lately.
    rate: f64,
    /// Jobs that it took since it was measured.
    taken: u64,
    measured: Instant,
    next_look: Instant,
}

impl Lanes {
    fn new(slots: usize) -> Self {
        let now = Instant::now();
        Self { slots: slots as u64, unpushed: Vec::new(), last_turn: [-1; 3], rate: 0.0, taken: 0, measured: now, next_look: now }
    }

    /// Whose turn of a priority was the last.
    fn last_turn(&mut self, priority: Priority) -> &mut i32 {
        let [high, normal, low] = &mut self.last_turn;
        match priority {
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        }
    }

    /// Learns how fast jobs are taken. Quick to grow, so that a burst is not held up by what was before it; slower to shrink.
    fn learn(&mut self, taken: u64) {
        let elapsed = self.measured.elapsed();
        self.taken += taken;
        self.rate = self.rate.max(self.taken as f64 / elapsed.max(MEASURED_OVER).as_secs_f64());
        if elapsed >= MEASURED_OVER {
            let now = self.taken as f64 / elapsed.as_secs_f64();
            self.rate = now.max(self.rate * 0.5_f64.powf(elapsed.as_secs_f64()));
            self.measured = Instant::now();
            self.taken = 0;
        }
    }

    /// How many jobs a lane should hold.
    fn ready(&self, window: u64) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of jobs, never negative, and clamped")]
        let ready = (self.rate * HELD_READY.as_secs_f64()) as u64;
        ready.max(self.slots * LEAST_READY).min(window)
    }
}

/// Dispatches the worker's queues, each with so many slots, until `stop`. What it claims itself goes in by `intakes`, which it lets go
/// when the engine drains.
pub(super) async fn run(
    engine: Arc<Engine>,
    queues: BTreeMap<Queue, usize>,
    mut intakes: BTreeMap<Queue, Intake>,
    stop: CancellationToken,
    mut connection: Commands,
) {
    let mut queues: BTreeMap<Queue, Lanes> = queues.into_iter().map(|(queue, slots)| (queue, Lanes::new(slots))).collect();
    loop {
        if engine.draining.is_cancelled() {
            intakes.clear();
        }
        for (queue, lanes) in &mut queues {
            let due = lanes.next_look <= Instant::now();
            if (!due && !engine.dispatch.is_wanted(*queue)) || engine.lease.epoch().is_none() {
                continue;
            }
            let wait = match look(&engine, *queue, intakes.get(queue), &mut connection, lanes).await {
                Ok(wait) => wait.min(FALLBACK),
                Err(error) => {
                    tracing::debug!(queue = queue.name(), error = &*error, "can't dispatch now");
                    AFTER_FAULT
                }
            };
            lanes.next_look = Instant::now() + wait;
        }
        let soonest = queues.values().map(|lanes| lanes.next_look).min().unwrap_or_else(|| Instant::now() + FALLBACK);
        // A floor, so that what can't be helped does not spin.
        let sleep = soonest.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let has_lease = engine.lease.epoch().is_some();
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.draining.cancelled(), if !intakes.is_empty() => {}
            // All that was wanted meanwhile is done at once when there is a lease (again): a start is no second late.
            _ = engine.lease.held(), if !has_lease => {}
            () = engine.dispatch.woken.notified(), if has_lease => {}
            () = tokio::time::sleep(sleep), if has_lease => {}
        }
    }
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// One look at a queue: fills its lanes, or takes its jobs in, and answers how long until the next job is due.
async fn look(
    engine: &Engine,
    queue: Queue,
    intake: Option<&Intake>,
    connection: &mut Commands,
    lanes: &mut Lanes,
) -> Result<Duration, Fault> {
    lanes.learn(engine.dispatch.taken(queue));
    if engine.holds.holds().pauses.iter().any(|pause| pause.stops_queue(queue)) {
        engine.dispatch.looked(queue, false);
        return Ok(FALLBACK);
    }
    loop {
        // Whoever inserts from here on says so.
        engine.dispatch.looked(queue, true);
        // What recovery pushed meanwhile loses at its second claim.
        if !lanes.unpushed.is_empty() {
            push::push(connection, engine.redis.keys(), &lanes.unpushed).await?;
            lanes.unpushed.clear();
        }
        let batches = intake.filter(|intake| intake.credits.are_for_batches() && !engine.draining.is_cancelled());
        if let Some(intake) = batches {
            if intake.credits.room_for_batch().is_none() {
                // The next settle says when there is.
                return Ok(FALLBACK);
            }
            let lanes_hold = push::depth(connection, engine.redis.keys(), queue).await?.total() > 0;
            if take(engine, intake, lanes, lanes_hold).await? > 0 {
                // The other queues have their turn.
                engine.dispatch.due(queue);
                return Ok(FALLBACK);
            }
        }
        let now = engine.services.clock.now();
        match engine.bounded(dispatch::next_due(&engine.services.pool, queue, now)).await? {
            Some(wait) if wait.is_zero() => {}
            later => {
                engine.dispatch.looked(queue, false);
                return Ok(later.unwrap_or(FALLBACK));
            }
        }
        let mut moved = 0;
        if batches.is_none() {
            let depth = push::depth(connection, engine.redis.keys(), queue).await?;
            for priority in PRIORITIES {
                moved += fill(engine, queue, priority, connection, lanes, &depth).await?;
            }
        }
        if moved == 0 {
            // A rate is due again by itself, without anybody's word.
            let holds = engine.holds.holds();
            let throttles = holds.throttles.iter().filter(|throttle| throttle.queue.as_deref().is_none_or(|bound| bound == queue.name()));
            let soonest = throttles.map(|throttle| pace::interval(throttle.rate)).min();
            return Ok(soonest.map_or(FALLBACK, |every| every.clamp(LEAST_PACE, FALLBACK)));
        }
    }
}

/// Fills one lane by one batch; answers how many jobs left the backlog.
async fn fill(
    engine: &Engine,
    queue: Queue,
    priority: Priority,
    connection: &mut Commands,
    lanes: &mut Lanes,
    depth: &Depth,
) -> Result<usize, Fault> {
    let ready = lanes.ready(engine.window);
    let room = ready.saturating_sub(depth.of(Lane::of(priority))).min(engine.window.saturating_sub(depth.total()));
    // Refilled from three quarters down, in batches, rather than job by job behind the readers.
    if room == 0 || room < ready / 4 {
        return Ok(0);
    }
    let room = usize::try_from(room).unwrap_or(dispatch::BATCH).min(dispatch::BATCH);
    let now = engine.services.clock.now();
    let pool = &engine.services.pool;
    let after = (priority, *lanes.last_turn(priority));
    let [tenants] = engine.bounded(dispatch::turns(pool, queue, now, [after])).await?;
    if let Some(last) = tenants.get(..room.min(tenants.len())).and_then(<[i32]>::last) {
        *lanes.last_turn(priority) = *last;
    }
    let turns = allowed(engine, queue, room, tenants).await;
    if turns.is_empty() {
        return Ok(0);
    }
    let dispatched = engine.bounded(dispatch::dispatch(pool, queue, priority, now, &turns)).await?;
    let moved = dispatched.handovers.len() + dispatched.expired.len();
    if !dispatched.handovers.is_empty() {
        metrics::counter!("offstage_dispatched_total", "queue" => queue.name()).increment(dispatched.handovers.len() as u64);
        if let Err(error) = push::push(connection, engine.redis.keys(), &dispatched.handovers).await {
            lanes.unpushed.extend(dispatched.handovers);
            return Err(error.into());
        }
    }
    if !dispatched.expired.is_empty() {
        engine.ended.notify_one();
    }
    let changed = dispatched.handovers.iter().map(|handover| handover.job).chain(dispatched.expired).collect();
    engine.announcer.tell(Announcement { changed, ..Announcement::default() });
    Ok(moved)
}

/// Claims batches in the backlog, as long as there is room for one, and takes them in; answers how many jobs left the backlog. Whose turn it
/// is it asks once: the tenants of one answer take turns in all of them.
async fn take(engine: &Engine, intake: &Intake, lanes: &mut Lanes, lanes_hold: bool) -> Result<usize, Fault> {
    let (queue, now) = (intake.queue, engine.services.clock.now());
    let after = PRIORITIES.map(|priority| (priority, *lanes.last_turn(priority)));
    let tenants = engine.bounded(engine.claims.on(async |connection| dispatch::turns(connection, queue, now, after).await)).await?;
    let mut moved = 0;
    for _ in 0..MOST_BATCHES {
        let Some(room) = intake.credits.room_for_batch() else { break };
        // What stands in lanes keeps half.
        let room = if lanes_hold { room / 2 } else { room };
        let shares = read::shares(room, tenants.each_ref().map(|tenants| !tenants.is_empty()), 0);
        let (before, mut all_had_a_turn) = (moved, true);
        for ((priority, tenants), share) in PRIORITIES.into_iter().zip(&tenants).zip(shares) {
            let share = share.min(dispatch::BATCH);
            let served = tenants.get(..share.min(tenants.len())).unwrap_or_default();
            all_had_a_turn &= served.len() == tenants.len();
            if let Some(last) = served.last() {
                *lanes.last_turn(priority) = *last;
            }
            let turns = allowed(engine, queue, share, tenants.clone()).await;
            // What is claimed now belongs to the lease of now.
            let Some(epoch) = engine.lease.epoch().filter(|_| !turns.is_empty()) else { continue };
            let (asking, now) = (engine.held.asking(engine.worker), engine.services.clock.now());
            let taking = engine.claims.on(async |connection| claim::take(&mut *connection, queue, priority, &turns, asking.by, now).await);
            let taken = engine.bounded(taking).await?;
            moved += taken.len();
            metrics::counter!("offstage_dispatched_total", "queue" => queue.name()).increment(taken.len() as u64);
            if intake.take_in(engine, taken, &epoch).await.is_err() {
                return Ok(moved);
            }
            drop(asking);
        }
        // Tenants may have nothing left, or others be next.
        if moved - before < room / 2 || !all_had_a_turn || engine.draining.is_cancelled() {
            break;
        }
    }
    Ok(moved)
}

/// The tenants' turns, as far as pauses and throttles allow them.
async fn allowed(engine: &Engine, queue: Queue, room: usize, mut tenants: Vec<i32>) -> Vec<Turn> {
    let holds = engine.holds.holds();
    if holds.pauses.is_empty() && holds.throttles.is_empty() {
        return dispatch::divide(room, &tenants);
    }
    tenants.retain(|tenant| !holds.pauses.iter().any(|pause| pause.stops_all_of(*tenant, queue)));
    if tenants.is_empty() {
        return Vec::new();
    }
    let mut room = room;
    for throttle in holds.throttles.iter().filter(|throttle| throttle.tenant.is_none() && throttle.bounds(0, queue)) {
        room = engine.holds.draw(throttle, room).await;
    }
    let mut turns = dispatch::divide(room, &tenants);
    for turn in &mut turns {
        for throttle in
            holds.throttles.iter().filter(|throttle| throttle.tenant == Some(turn.tenant) && throttle.bounds(turn.tenant, queue))
        {
            turn.jobs = engine.holds.draw(throttle, turn.jobs).await;
        }
    }
    turns.retain(|turn| turn.jobs > 0);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_holds_little_until_it_is_known_how_fast_it_is_taken() {
        let mut lanes = Lanes::new(64);
        assert_eq!(lanes.ready(10_000), 256);
        lanes.measured = Instant::now().checked_sub(Duration::from_millis(100)).unwrap();
        lanes.learn(1_000);
        assert!((5_000..=10_000).contains(&lanes.ready(10_000)), "{}", lanes.ready(10_000));
        assert!(lanes.ready(2_000) == 2_000, "and never more than the window");
        lanes.measured = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
        lanes.learn(0);
        assert_eq!(lanes.ready(10_000), 256);
    }
}
