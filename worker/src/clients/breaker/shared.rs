//! The fleet's breakers: [`super::circuit`] as a script in Redis, by Redis' clock, so that all replicas see one state and change it one after
//! the other. One hash a breaker (`shared/src/queue/keys.rs`); it may vanish, and then its breaker is closed and knows nothing.

use std::{sync::LazyLock, time::Duration};

use redis::Script;
use shared::queue::{Commands, keys::Keys};

use super::circuit::{ALL, Answer, BUCKETS, Counts, Event, Millis, Phase, Rules, Stage};

/// The longest that one exchange may take: a call waits for it where the breaker is not closed.
const WITHIN: Duration = Duration::from_millis(500);

/// A hash is gone when nobody has asked for it for so long: longer than a breaker stays open.
const KEPT: Duration = Duration::from_secs(3 * 3_600);

/// KEYS: the breaker. ARGV: now in ms (0: Redis' own clock), ms a part of the window, parts, minimum, failure %, slow %, ms open, channel,
/// ms kept, stages as `percent,least,successes` parted by `;`, then the event and its arguments.
const SCRIPT: &str = "
local clock = redis.call('TIME')
local now = tonumber(ARGV[1])
if now == 0 then now = clock[1] * 1000 + math.floor(clock[2] / 1000) end
local bucket, parts, minimum = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local failure_percent, slow_percent, open_for = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local all = 1000000000
local ramp = {}
for percent, least, successes in string.gmatch(ARGV[10], '(%d+),(%d+),(%d+)') do
  ramp[#ramp + 1] = {tonumber(percent), tonumber(least), tonumber(successes)}
end
local names = {'phase', 'epoch', 'until', 'probe_until', 'stage', 'stage_calls', 'stage_failures', 'stage_slow', 'pace', 'second', 'granted', 'drawn'}
local fields = {'probe'}
for _, name in ipairs(names) do fields[#fields + 1] = name end
for i = 0, parts - 1 do
  for _, name in ipairs({'n', 'c', 'f', 's'}) do fields[#fields + 1] = name .. i end
end
local values = redis.call('HMGET', KEYS[1], unpack(fields))
local c = {probe = values[1] or ''}
for i = 2, #fields do c[fields[i]] = tonumber(values[i] or 0) end
local before, written = c.epoch, false
local number = math.floor(now / bucket)
local second = math.floor(now / 1000)
if c.second ~= second then c.second, c.granted, c.drawn = second, 0, 0 end

local function counted()
  local calls, failures, slow = 0, 0, 0
  for i = 0, parts - 1 do
    if c['n' .. i] + parts > number then
      calls, failures, slow = calls + c['c' .. i], failures + c['f' .. i], slow + c['s' .. i]
    end
  end
  return calls, failures, slow
end
local function count(calls, failures, slow)
  local i = number % parts
  if c['n' .. i] ~= number then c['n' .. i], c['c' .. i], c['f' .. i], c['s' .. i] = number, 0, 0, 0 end
  c['c' .. i], c['f' .. i], c['s' .. i] = c['c' .. i] + calls, c['f' .. i] + failures, c['s' .. i] + slow
end
local function enter(phase, till)
  c.phase, c['until'], c.epoch = phase, till, c.epoch + 1
end
local function open()
  enter(1, now + open_for)
  c.probe = ''
  for i = 0, parts - 1 do c['n' .. i], c['c' .. i], c['f' .. i], c['s' .. i] = 0, 0, 0, 0 end
end
local function allowed()
  local stage = ramp[c.stage + 1]
  if not stage then return all end
  return math.max(math.ceil(c.pace * stage[1] / 100000), stage[2])
end
local calls, failures, slow = counted()
local given = 0
local event = ARGV[11]
if event == 'ask' then
  written = c.phase ~= 0
  if c.phase == 1 and now >= c['until'] then enter(2, 0); c.probe = '' end
  if c.phase == 0 then given = 1
  elseif c.phase == 2 and (c.probe == '' or now >= c.probe_until) then
    c.probe, c.probe_until, given = ARGV[12], now + tonumber(ARGV[13]), 2
  elseif c.phase == 3 and c.granted < allowed() then
    c.granted, given = c.granted + 1, 1
  end
elseif event == 'record' and tonumber(ARGV[12]) == c.epoch and (c.phase == 0 or c.phase == 3) then
  written = true
  local n, f, s = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
  count(n, f, s)
  calls, failures, slow = counted()
  if c.phase == 0 then
    local failed = f > 0 and failures * 100 >= calls * failure_percent
    local slowed = s > 0 and slow * 100 >= calls * slow_percent
    if calls >= minimum and (failed or slowed) then
      c.pace = math.floor(calls * 1000000 / (bucket * parts))
      open()
    end
  else
    c.stage_calls, c.stage_failures, c.stage_slow = c.stage_calls + n, c.stage_failures + f, c.stage_slow + s
    local bad = c.stage_failures + c.stage_slow
    local stage = ramp[c.stage + 1]
    if f + s > 0 and bad * 100 >= c.stage_calls * failure_percent then open()
    elseif not stage or math.max(0, c.stage_calls - bad) >= stage[3] then
      c.stage, c.stage_calls, c.stage_failures, c.stage_slow = c.stage + 1, 0, 0, 0
      if c.stage >= #ramp then enter(0, 0) end
    end
  end
elseif event == 'probed' and c.phase == 2 and c.probe == ARGV[12] then
  written = true
  c.probe = ''
  local f, s = tonumber(ARGV[14]), tonumber(ARGV[15])
  if f + s > 0 then
    open()
    calls, failures, slow = tonumber(ARGV[13]), f, s
  elseif #ramp == 0 then enter(0, 0); count(1, 0, 0)
  else
    enter(3, 0)
    c.stage, c.stage_calls, c.stage_failures, c.stage_slow = 0, 0, 0, 0
  end
elseif event == 'renewed' and c.phase == 2 and c.probe == ARGV[12] then
  written = true
  c.probe_until, given = now + tonumber(ARGV[13]), 1
elseif event == 'released' and c.probe == ARGV[12] then
  written = true
  c.probe = ''
elseif event == 'draw' then
  if c.phase == 0 then given = all
  else
    written = true
    local most = 0
    if c.phase == 1 then
      if now >= c['until'] then most = 1 end
    elseif c.phase == 2 then
      if c.probe == '' or now >= c.probe_until then most = 1 end
    else most = allowed() end
    given = math.max(0, most - c.drawn)
    c.drawn = c.drawn + given
  end
end
if written then
  local pairs_of = {'probe', c.probe}
  for _, name in ipairs(names) do pairs_of[#pairs_of + 1] = name; pairs_of[#pairs_of + 1] = string.format('%.0f', c[name]) end
  for i = 0, parts - 1 do
    for _, name in ipairs({'n', 'c', 'f', 's'}) do
      pairs_of[#pairs_of + 1] = name .. i
      pairs_of[#pairs_of + 1] = string.format('%.0f', c[name .. i])
    end
  end
  redis.call('HSET', KEYS[1], unpack(pairs_of))
  redis.call('PEXPIRE', KEYS[1], ARGV[9])
end
if c.epoch ~= before then redis.call('PUBLISH', ARGV[8], ARGV[16]) end
local till = c['until']
if c.phase == 0 then till = 0
elseif c.phase == 2 then
  if c.probe == '' then till = now else till = c.probe_until end
elseif c.phase == 3 then till = (second + 1) * 1000 end
return {c.phase, c.epoch, till, given, c.epoch ~= before and 1 or 0, calls, failures, slow, now}
";

/// Hashed once: each exchange sends the digest alone.
static COMPILED: LazyLock<Script> = LazyLock::new(|| Script::new(SCRIPT));

/// An answer of Redis, and its clock then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub answer: Answer,
    pub now: Millis,
}

/// Why Redis said nothing: it is away, or too slow to wait for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    #[error("Redis did not do as asked (look at a breaker)")]
    Refused(#[from] redis::RedisError),
    #[error("Redis did not answer within {WITHIN:?}")]
    Slow,
}

/// Tells the fleet's breaker of an event. `now` is for tests; Redis' own clock where `None`.
pub(super) async fn tell(
    connection: &mut Commands,
    keys: &Keys,
    name: &str,
    event: Event,
    rules: &Rules,
    ramp: &[Stage],
    now: Option<Millis>,
) -> Result<Told, Silence> {
    let stages: Vec<String> = ramp.iter().map(|Stage { percent, least, successes }| format!("{percent},{least},{successes}")).collect();
    let mut call = COMPILED.prepare_invoke();
    call.key(keys.breaker(name))
        .arg(now.unwrap_or(0))
        .arg(rules.bucket)
        .arg(BUCKETS)
        .arg(rules.minimum)
        .arg(rules.failure_percent)
        .arg(rules.slow_percent)
        .arg(rules.open)
        .arg(keys.breakers())
        .arg(u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX))
        .arg(stages.join(";"));
    let (word, arguments): (&str, [u64; 4]) = match event {
        Event::Look => ("look", [0; 4]),
        Event::Ask { token, lease } => ("ask", [token, lease, 0, 0]),
        Event::Record { epoch, counts: Counts { calls, failures, slow } } => ("record", [epoch, calls, failures, slow]),
        Event::Probed { token, counts: Counts { calls, failures, slow } } => ("probed", [token, calls, failures, slow]),
        Event::Renewed { token, lease } => ("renewed", [token, lease, 0, 0]),
        Event::Released { token } => ("released", [token, 0, 0, 0]),
        Event::Draw => ("draw", [0; 4]),
    };
    call.arg(word);
    for argument in arguments {
        call.arg(argument);
    }
    call.arg(name);
    let asked = tokio::time::timeout(WITHIN, call.invoke_async::<[u64; 9]>(connection));
    let [phase, epoch, until, granted, changed, calls, failures, slow, now] = asked.await.map_err(|_| Silence::Slow)??;
    let answer = Answer {
        phase: Phase::of_code(phase),
        epoch,
        until,
        granted: granted.min(ALL),
        changed: changed == 1,
        counts: Counts { calls, failures, slow },
    };
    Ok(Told { answer, now })
}
