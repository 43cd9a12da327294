-- Batches: jobs that were asked for together, followed together, and that something may follow when all of them have ended.
--
-- Nothing here is written while members run: that a batch has ended is found out from its members' ends (`job_ended`) and by looking.
CREATE TABLE batch (
    id           uuid PRIMARY KEY,              -- UUIDv7: its order is the order of creation
    tenant_id    integer NOT NULL,
    owner        text,                          -- the end user who asked for it; NULL: the backend
    name         text,                          -- for people
    created_at   timestamptz NOT NULL,
    asked        integer NOT NULL,              -- items of the request
    members      integer NOT NULL,              -- jobs, without repeats and without what was refused
    then_jobs    jsonb,                         -- what follows (`shared/src/job/next.rs`)
    finished_at  timestamptz,                   -- when all members were found to have ended, for the first time
    cancel_requested_at timestamptz,
    followed_by  uuid[],                        -- the jobs that followed
    witness      uuid,                          -- a member that had not ended when it was last looked at
    looks        integer NOT NULL DEFAULT 0,
    look_at      timestamptz NOT NULL           -- when the sweep looks at it next, by business time
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX batch_list ON batch (tenant_id, id);
CREATE INDEX batch_by_owner ON batch (tenant_id, owner, id) WHERE owner IS NOT NULL;
CREATE INDEX batch_look ON batch (look_at);

CREATE TABLE batch_member (
    batch_id  uuid NOT NULL,
    job_id    uuid NOT NULL,
    tenant_id integer NOT NULL,
    position  integer NOT NULL,                 -- in the request, from 0
    before    boolean NOT NULL,                 -- it was there before: by its idempotency key or its unique key
    PRIMARY KEY (batch_id, job_id)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['batch', 'batch_member'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT ON batch, batch_member TO offstage_api;
GRANT UPDATE (cancel_requested_at) ON batch TO offstage_api;
-- A batch's own idempotency key stands with those of jobs; `job_id` is the batch's id, and the key begins with `batch `, which no
-- job's can, as keys have no spaces.
GRANT INSERT, UPDATE ON idempotency_key TO offstage_api;
