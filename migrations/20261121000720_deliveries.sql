-- What became of each message on its way to a person: one row a mail, one a device of a push. Written by the worker as it learns it; a
-- row that is not final is tried again, and written over.
CREATE TABLE delivery (
    id           uuid PRIMARY KEY,              -- by time, so that lists are in its order
    tenant_id    integer NOT NULL,
    job_id       uuid NOT NULL,
    channel      text NOT NULL CHECK (channel IN ('email', 'push')),
    device       uuid NOT NULL,                 -- the subscription; all zeros for a mail, and for a push that found no device
    owner        text,                          -- the user it is for, where it is for one
    address_hash bytea,                         -- of a mail's address, as in `suppression`
    category     text,
    state        text NOT NULL CHECK (state IN ('sent', 'not_sent', 'unknown')),
    why          text,                          -- a code, of what was not sent or is not known
    detail       text,                          -- the same in words, without addresses
    is_final     boolean NOT NULL,              -- nothing more is tried
    repeated     boolean NOT NULL DEFAULT false, -- it may have arrived more than once
    refusals     smallint NOT NULL DEFAULT 0,   -- how often it was refused for our standing
    attempts     smallint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    changed_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX delivery_message ON delivery (job_id, channel, device);
CREATE INDEX delivery_owner ON delivery (tenant_id, owner, id DESC) WHERE owner IS NOT NULL;
CREATE INDEX delivery_age ON delivery (changed_at);

ALTER TABLE delivery ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY delivery_engine ON delivery TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY delivery_api ON delivery FOR SELECT TO offstage_api USING (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON delivery TO offstage_engine;
GRANT SELECT ON delivery TO offstage_api;
