-- Worker processes and what they agree on. All times here are Postgres' (lease time), never business time.
CREATE TABLE worker (
    id         uuid PRIMARY KEY,                -- new at every start of a process: a name may come back, an id does not
    name       text NOT NULL,
    queues     text[] NOT NULL,
    version    text NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Periodic work that one replica does at a time, whichever comes first: a lease a period, no leader.
CREATE TABLE duty (
    name        text PRIMARY KEY,
    taken_until timestamptz NOT NULL,
    worker      uuid NOT NULL
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE, DELETE ON worker, duty TO offstage_engine;
-- Estimates and `explain` may ask whether anybody serves a queue; there is no tenant's data here.
GRANT SELECT ON worker TO offstage_api;
