-- Schedules: jobs that are made by the clock (`shared/src/schedule`).
--
-- A tick is a row of `schedule_tick`, inserted with its job in one transaction, by whoever holds the schedule's row: its key makes it
-- happen once, whatever crashes and however many replicas look.
CREATE TABLE schedule (
    id         uuid PRIMARY KEY,                -- UUIDv7: its order is the order of creation
    tenant_id  integer NOT NULL REFERENCES tenant (id),
    version    integer NOT NULL DEFAULT 1,      -- grows with each change that a person makes
    queued     integer NOT NULL DEFAULT 0,      -- ticks that wait for the job of the one before to end
    failures   integer NOT NULL DEFAULT 0,      -- ticks in a row whose jobs failed
    declared   boolean NOT NULL,                -- by the tenant's manifest, and only changed with it
    anchor     timestamptz NOT NULL,            -- what an interval counts from
    next_at    timestamptz,                     -- the next tick's due time; NULL while paused, or where none comes any more
    last_at    timestamptz,                     -- the last due time that was handled: no tick is made at it or before
    paused_at  timestamptz,
    told_at    timestamptz,                     -- when its trouble was told, until it succeeds again
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    paused_by  text,
    name       text NOT NULL,
    kind       text NOT NULL,                   -- as in the definition: a replica takes those of kinds that it knows
    definition jsonb NOT NULL,
    UNIQUE (tenant_id, name)
) WITH (fillfactor = 70);
CREATE INDEX schedule_due ON schedule (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX schedule_queued ON schedule (id) WHERE queued > 0;
CREATE INDEX schedule_tenant ON schedule (tenant_id, id);

-- What became of each due time. Codes (`shared/src/schedule`): outcome 0 a job was made, 1 it waits for the one before to end,
-- 2 skipped since that one had not ended, 3 skipped as missed, 4 too late to start, 5 no job could be made.
CREATE TABLE schedule_tick (
    schedule_id uuid NOT NULL REFERENCES schedule (id) ON DELETE CASCADE,
    due_at      timestamptz NOT NULL,           -- before jitter; of ticks missed in a row the last one's
    tenant_id   integer NOT NULL,
    ticks       integer NOT NULL DEFAULT 1,     -- how many due times the row stands for: those missed in a row share one
    outcome     smallint NOT NULL,
    job_state   smallint,                       -- as the job ended, once that was seen
    manual      boolean NOT NULL DEFAULT false, -- somebody wished it to run now
    open        boolean NOT NULL,               -- it waits, or its job was not seen to have ended
    first_at    timestamptz NOT NULL,           -- the first due time that the row stands for
    handled_at  timestamptz NOT NULL,
    job_id      uuid,
    detail      text,                           -- why no job could be made
    PRIMARY KEY (schedule_id, due_at)
);
-- Small: what is under way. Who looks for ended jobs, for what overlaps and for what waits reads this.
CREATE INDEX schedule_tick_open ON schedule_tick (schedule_id, due_at) WHERE open;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['schedule', 'schedule_tick'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, UPDATE, DELETE ON schedule TO offstage_api;
-- A run that somebody wishes for now is a tick too.
GRANT SELECT, INSERT ON schedule_tick TO offstage_api;

-- A notification to nobody in particular is the tenant's backend's: its owner is the empty text, which no user can be called.
COMMENT ON COLUMN notification.owner IS 'the end user; empty: the tenant''s backend';
