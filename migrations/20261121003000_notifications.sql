-- Notifications that products ask for: of their own types, to many at a time, by several channels.

-- A type is what the product's manifest calls it, or one of the built-in six; the programs check it.
ALTER TABLE notification DROP CONSTRAINT notification_type_check;
-- The job by which it was asked for (`notification.fan_out`); NULL where the product itself had something to tell.
ALTER TABLE notification ADD COLUMN trigger_id uuid;

-- Messages that were not sent for a reason that is no channel's own (their user wants none) are logged for the inbox too.
ALTER TABLE delivery DROP CONSTRAINT delivery_channel_check;

-- How far a notification to many has come. Holds no names: but for `after`, which is empty once all recipients are known.
CREATE TABLE notification_trigger (
    id         uuid PRIMARY KEY,                -- the job
    tenant_id  integer NOT NULL,
    after      text COLLATE "C" NOT NULL DEFAULT '', -- recipients up to this one are known
    is_planned boolean NOT NULL DEFAULT false,  -- all are
    chunks     integer NOT NULL DEFAULT 0,
    recipients integer NOT NULL DEFAULT 0,
    told       integer NOT NULL DEFAULT 0,      -- of the recipients: their messages stand or are on their way, or it is logged why not
    in_app     integer NOT NULL DEFAULT 0,      -- rows in inboxes
    pushes     integer NOT NULL DEFAULT 0,      -- jobs
    emails     integer NOT NULL DEFAULT 0,
    gathered   integer NOT NULL DEFAULT 0,      -- put into a digest
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX notification_trigger_age ON notification_trigger (created_at);

-- Recipients who have not been told yet. Who tells a chunk takes its rows away, in the transaction that tells: so it is told once.
CREATE TABLE notification_recipient (
    trigger_id uuid NOT NULL,
    chunk      integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    tenant_id  integer NOT NULL,
    PRIMARY KEY (trigger_id, chunk, user_id)
);
CREATE INDEX notification_recipient_user ON notification_recipient (tenant_id, user_id);

-- What is gathered for one user until its window closes. Who closes it takes the row away, in the transaction that makes the messages; what
-- comes later begins another.
CREATE TABLE notification_digest (
    id        uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    type      text COLLATE "C" NOT NULL,
    key       text COLLATE "C" NOT NULL,
    items     jsonb NOT NULL,                   -- the first of them
    count     integer NOT NULL,                 -- all of them
    opened_at timestamptz NOT NULL,
    closes_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX notification_digest_open ON notification_digest (tenant_id, user_id, type, key);

-- Messages of throttled types, by the job that sends each: a job counts once however often it is tried.
CREATE TABLE notification_sending (
    job_id    uuid PRIMARY KEY,
    tenant_id integer NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    type      text COLLATE "C" NOT NULL,
    channel   text NOT NULL,
    at        timestamptz NOT NULL
);
CREATE INDEX notification_sending_recent ON notification_sending (tenant_id, user_id, type, channel, at);
CREATE INDEX notification_sending_age ON notification_sending (at);

-- When users want to be left alone, on the clocks of their own zone.
CREATE TABLE quiet_hours (
    tenant_id  integer NOT NULL,
    user_id    text COLLATE "C" NOT NULL,
    begins     smallint NOT NULL,               -- minutes since midnight
    ends       smallint NOT NULL,
    PRIMARY KEY (tenant_id, user_id)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['notification_trigger', 'notification_recipient', 'notification_digest', 'notification_sending', 'quiet_hours'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_engine USING (true) WITH CHECK (true)', name || '_engine', name);
        EXECUTE format('CREATE POLICY %I ON %I TO offstage_api USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant())',
                       name || '_api', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO offstage_engine', name);
    END LOOP;
END
$$;
GRANT SELECT ON notification_trigger TO offstage_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON quiet_hours TO offstage_api;
ALTER POLICY quiet_hours_api ON quiet_hours
    USING (tenant_id = current_tenant()
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.tenant_id = quiet_hours.tenant_id AND e.user_id = quiet_hours.user_id));
