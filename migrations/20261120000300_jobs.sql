-- The ledger of jobs.
--
-- A job is an immutable row (`job`), a narrow hot row (`job_state`), and a row a run (`job_attempt`). `job_state` is updated
-- at every step, so it has no index but its key and no predicate anywhere over what changes: its updates stay heap-only.
-- What must be found by state stands in small tables that a job passes through: `job_waiting` (the backlog),
-- `job_dispatched` (queued or running: bounded by the streams' windows and the workers' credits), `job_unsuccessful`
-- (the dead letters, and what was cancelled or expired).
--
-- No foreign keys between these: a job's rows are only ever written by the statements of `shared/src/ledger`, and a
-- foreign key's trigger would cost more than the insert it guards.
--
-- Codes (`shared/src/job`): state 0 waiting, 1 queued, 2 running, 3 succeeded, 4 failed, 5 cancelled, 6 expired;
-- priority 0 high, 1 normal, 2 low; reason 0 none, 1 not due, 2 backing off, 3 window,
-- 4 snoozed.

CREATE TABLE job (
    id          uuid PRIMARY KEY,               -- UUIDv7: its order is the order of creation
    tenant_id   integer NOT NULL,
    priority    smallint NOT NULL,
    max_attempts smallint NOT NULL,
    created_at  timestamptz NOT NULL,
    start_by    timestamptz,
    kind        text NOT NULL,
    queue       text NOT NULL,                  -- stored, so that a kind may move to another queue while its jobs run
    owner       text,                           -- the end user whose job it is
    subject     text,                           -- whom its data is about, for erasure
    payload     jsonb NOT NULL
);
-- A list is read newest first per kind and merged (`shared/src/ledger/find`), so one index serves all lists of a tenant.
CREATE INDEX job_by_kind ON job (tenant_id, kind, id);
CREATE INDEX job_by_owner ON job (tenant_id, owner, id) WHERE owner IS NOT NULL;

CREATE TABLE job_state (
    job_id      uuid PRIMARY KEY,
    token       bigint NOT NULL DEFAULT 0,      -- random, new at each claim: who holds it may settle
    run_at      timestamptz NOT NULL,
    changed_at  timestamptz NOT NULL,
    started_at  timestamptz,                    -- of the latest run
    finished_at timestamptz,
    worker      uuid,                           -- of the latest run
    progress_done  bigint,
    progress_total bigint,
    tenant_id   integer NOT NULL,
    version     integer NOT NULL DEFAULT 1,     -- grows with each visible change
    state       smallint NOT NULL,
    reason      smallint NOT NULL DEFAULT 0,
    attempt     smallint NOT NULL DEFAULT 0,    -- counted runs; a crash or a hand-back gives its run back
    attempts_allowed smallint NOT NULL,
    runs        integer NOT NULL DEFAULT 0,     -- every run, counted or not
    crashes     smallint NOT NULL DEFAULT 0,    -- runs that ended with their process
    cancel_requested boolean NOT NULL DEFAULT false
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

CREATE TABLE job_attempt (
    job_id      uuid NOT NULL,
    run         integer NOT NULL,
    attempt     smallint NOT NULL,
    tenant_id   integer NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    worker      uuid,
    outcome     text NOT NULL,                  -- succeeded, retry, failed, cancelled, expired, crashed
    error       jsonb,                          -- {code, class, message, causes}
    PRIMARY KEY (job_id, run)
);

CREATE TABLE job_result (
    job_id      uuid PRIMARY KEY,
    tenant_id   integer NOT NULL,
    result      jsonb NOT NULL
);

-- A file that a finished job published. Written by the settle that finishes the job, so there is one, the winner's.
CREATE TABLE job_file (
    job_id       uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    object_key   text NOT NULL,
    file_name    text NOT NULL,
    content_type text NOT NULL,
    bytes        bigint NOT NULL,
    sha256       bytea NOT NULL,
    completed_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    deleted_at   timestamptz,
    downloads    integer NOT NULL DEFAULT 0
);
CREATE INDEX job_file_expiry ON job_file (expires_at) WHERE deleted_at IS NULL;

-- The backlog: accepted, not yet handed to a stream.
CREATE TABLE job_waiting (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    run_at    timestamptz NOT NULL,
    priority  smallint NOT NULL,
    reason    smallint NOT NULL,
    queue     text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX job_waiting_due ON job_waiting (queue, run_at, job_id);
CREATE INDEX job_waiting_tenant ON job_waiting (tenant_id, job_id);

-- Queued or running. Bounded by windows and credits, so reading all of it is cheap: no index but the key.
CREATE TABLE job_dispatched (
    job_id        uuid PRIMARY KEY,
    tenant_id     integer NOT NULL,
    dispatched_at timestamptz NOT NULL,         -- Postgres' clock: recovery compares it with now()
    priority      smallint NOT NULL,
    queue         text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

CREATE TABLE job_unsuccessful (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    state     smallint NOT NULL
);
CREATE INDEX job_unsuccessful_tenant ON job_unsuccessful (tenant_id, state, job_id);

-- Wishes to cancel what runs; each heartbeat's reply carries its worker's.
CREATE TABLE job_cancel (
    job_id       uuid PRIMARY KEY,
    tenant_id    integer NOT NULL,
    worker       uuid NOT NULL,
    requested_at timestamptz NOT NULL
);

-- Idempotency keys, apart from the jobs because they expire.
CREATE TABLE idempotency_key (
    tenant_id  integer NOT NULL,
    owner      text NOT NULL,                   -- '' for none: a unique index takes no NULL for equal
    key        text NOT NULL,
    job_id     uuid NOT NULL,
    body_hash  bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, owner, key)
);
CREATE INDEX idempotency_key_expiry ON idempotency_key (expires_at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['job', 'job_state', 'job_attempt', 'job_result', 'job_file', 'job_waiting', 'job_dispatched',
                                'job_unsuccessful', 'job_cancel', 'idempotency_key'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;

-- The API reads its tenant's rows, and changes state only where a client asks: cancel, retry, a counted download.
GRANT SELECT ON job, job_state, job_attempt, job_result, job_file, job_waiting, job_dispatched, job_unsuccessful TO offstage_api;
GRANT UPDATE ON job_state TO offstage_api;
GRANT UPDATE (downloads) ON job_file TO offstage_api;
GRANT INSERT, DELETE ON job_waiting, job_dispatched, job_unsuccessful TO offstage_api;
GRANT SELECT, INSERT ON job_cancel TO offstage_api;
GRANT UPDATE (reason) ON job_waiting TO offstage_api; -- what locking a row of the backlog asks for

